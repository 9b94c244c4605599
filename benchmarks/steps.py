"""What a training step of DiffFlow costs on the CPU, by each way to compute it, beside DDPM.

    python benchmarks/steps.py                    # 2-D, a quarter of an hour
    python benchmarks/steps.py --problem table    # d = 10
    python benchmarks/steps.py --threads 2

Times are ratios to a DDPM update on the same network, timed right before: of as many samples, and
in the problem "small", of 2000 samples beside 120 trajectories. Memory is the peak of a process
that takes three steps over that of one that takes none. Writes
benchmarks/results/steps_PROBLEM_THREADS.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from paired import paired
from runs import RESULTS, command, machine, write_json
from step_variants import VARIANTS, Pair, Problem, torchsde_gradient_error

from diffflow_ext import DiffFlowSDE, NoiseKey
from diffflow_ext._engines import engine_name

PROBLEMS = {
    "2d": Problem(),
    "table": Problem(dim=10, batch=512, num_steps=20),
    "small": Problem(batch=120),
}
REFERENCE = "ddpm"


def usable(name: str) -> bool:
    """Whether a variant can run here."""
    if name.startswith("torchsde"):
        return importlib.util.find_spec("torchsde") is not None
    if name == "fused_bf16":
        with torch.autocast("cpu", torch.bfloat16):
            return engine_name() is not None
    return True


def peak_mebibytes(problem: Problem, name: str | None, threads: int) -> float:
    """Peak memory of a fresh process that takes three steps, or none."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import steps;"
        "steps.take(json.loads(sys.argv[2]))"
    )
    what = json.dumps({"problem": asdict(problem), "name": name, "threads": threads})
    words = [sys.executable, "-c", code, str(Path(__file__).parent), what]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def take(what: dict[str, Any]) -> None:
    """The child's part: three steps, then the peak of its memory."""
    torch.set_num_threads(what["threads"])
    problem = Problem(**what["problem"])
    Pair(problem)  # Imports and first allocations are not what is measured.
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()
    if what["name"] is not None:
        step = VARIANTS[what["name"]][0](problem)
        for _ in range(3):
            step()
    # getrusage would count what the parent had when it made this process.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


def product_rate() -> float:
    """Multiply-adds a second of torch's own product of large float32 matrices."""
    a = torch.randn(2048, 2048)
    times = paired({"mm": lambda: a @ a}, "mm", 5)["mm"]["seconds"]
    return 2048**3 / times["min"]


def work(problem: Problem) -> int:
    """Multiply-adds of a step with every network evaluated once a state, and its products."""
    one = 2 * problem.dim * problem.width + problem.depth * problem.width**2
    return 3 * (2 * problem.num_steps + 1) * problem.batch * one


def gradient_error(problem: Problem) -> float:
    """The gradient of the fused engine against float64 autograd, relative."""
    pair = Pair(replace(problem, batch=min(problem.batch, 200)))
    grads = []
    for dtype, engine in ((torch.float32, "fused"), (torch.float64, "autograd")):
        sde = DiffFlowSDE(pair.drift, pair.score, problem.g).to(dtype)
        sde.zero_grad()
        sde.mean_loss(pair.data.to(dtype), problem.grid(), NoiseKey(0), engine=engine).backward()
        found = [p.grad.double().flatten() for p in sde.parameters() if p.grad is not None]
        grads.append(torch.cat(found))
    return float((grads[0] - grads[1]).norm() / grads[1].norm())


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problem", choices=list(PROBLEMS), default="2d")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=None)
    parser.add_argument("--batch", type=int, help="instead of the problem's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    problem = PROBLEMS[args.problem]
    problem = replace(problem, batch=args.batch) if args.batch else problem
    names = [n for n in args.variants or VARIANTS if usable(n)]
    names = [REFERENCE, *(n for n in names if n != REFERENCE)]
    of_ddpm = replace(problem, batch=2000) if args.problem == "small" else problem
    problems = {n: of_ddpm if n.startswith("ddpm") else problem for n in names}
    found = paired({n: VARIANTS[n][0](problems[n]) for n in names}, REFERENCE, args.rounds)
    idle = peak_mebibytes(problem, None, args.threads)
    for name in names:
        found[name]["title"] = VARIANTS[name][1]
        found[name]["mebibytes"] = peak_mebibytes(problems[name], name, args.threads) - idle
    write_json(
        args.results / f"steps_{args.problem}_{args.threads}.json",
        {
            "benchmark": "steps",
            "command": command("steps.py", words),
            "machine": machine(),
            "problem": asdict(problem),
            "instructions": engine_name(),
            "reference": REFERENCE,
            "multiply_adds": work(problem),
            "product_rate": product_rate(),
            "gradient_error": gradient_error(problem),
            "torchsde_adjoint_gradient_error": (
                torchsde_gradient_error(replace(problem, batch=100))
                if "torchsde_adjoint" in names
                else None
            ),
            "batch_of_ddpm": of_ddpm.batch,
            "variants": found,
        },
    )


if __name__ == "__main__":
    main()
