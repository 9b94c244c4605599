"""What a training step of DiffFlow costs on the CPU, by each way to compute it, beside DDPM.

    python -m benchmarks.speed.steps                       # 2-D, with the memory of each variant
    python -m benchmarks.speed.steps --problem table-63    # 63 columns
    python -m benchmarks.speed.steps --threads 2 --no-memory
    python -m benchmarks.speed.steps --compile loop        # torch.compile of all steps at once
    python -m benchmarks.speed.steps --compile no          # neither torch.compile nor jax

Times are ratios to a DDPM update on the same network, timed right before: of as many samples, and
in the problem "small", of 2000 samples beside 120 trajectories. Memory is the peak of a process
that takes two steps over that of one that takes none; of what compiles, only with --compile loop.
Writes steps_PROBLEM_THREADS.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import DiffFlowSDE, NoiseKey
from diffflow_ext.engines.fused.workspace import instructions_name

from ..common.reports import parse, parser, write_report
from .paired import paired, spread
from .peaks import peak_mebibytes
from .problem import Pair, Problem, Step
from .torch_steps import torchsde_gradient_error
from .variants import NEEDS, VARIANTS, VECTORS_ONLY

PROBLEMS = {
    "2d": Problem(),
    "table-6": Problem(dim=6, batch=500, num_steps=20),
    "table-21": Problem(dim=21, batch=500, num_steps=10, width=256),
    "table-63": Problem(dim=63, batch=256, num_steps=10, width=256, depth=4),
    "small": Problem(batch=120),
    "image": Problem(side=16, batch=8, num_steps=8, width=16, depth=1),
}
IMAGE_VARIANTS = ("ddpm", "release", "graph", "adjoint", "scores_batched")
REFERENCE = "ddpm"
#: Of the matrices whose product is the yardstick.
SIDE = 2048
#: Their compiler's memory is that of the program, of any size, and is counted as idle.
JAX = ("jax", "diffrax")
COMPILED = ("compiled", *JAX, "compiled_loop")
#: What to compile: seconds for a step and for jax, minutes for torch's loop.
COMPILING = {"no": (), "step": COMPILED[:-1], "loop": COMPILED}


def obstacle(name: str, problem: Problem) -> str:
    """Why a variant cannot run here; "" if it can."""
    if problem.side is not None and name in VECTORS_ONLY:
        return "it knows vectors only"
    needs = NEEDS.get(name, ())
    if any(importlib.util.find_spec(library) is None for library in needs):
        return f"it needs {' and '.join(needs)}"
    if name == "fused_bf16":
        with torch.autocast("cpu", torch.bfloat16):
            return "" if instructions_name() else "this processor has no product of bfloat16"
    return ""


def chosen(
    asked: Sequence[str] | None, problem: Problem, compiling: str
) -> tuple[list[str], dict[str, str]]:
    """The variants to run, the reference first, and why the others were left out."""
    names = list(asked or (VARIANTS if problem.side is None else IMAGE_VARIANTS))
    left_out = {n: why for n in names if (why := obstacle(n, problem))}
    if not asked:
        unwanted = [n for n in names if n in COMPILED and n not in COMPILING[compiling]]
        left_out |= dict.fromkeys(unwanted, f"the run was one with --compile {compiling}")
    kept = [n for n in names if n not in left_out and n != REFERENCE]
    return [REFERENCE, *kept], left_out


def first_calls(steps: dict[str, Step]) -> dict[str, float]:
    """Seconds of the first call of each, which compiles where there is something to compile."""
    found = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        found[name] = time.perf_counter() - start
    return found


def work(problem: Problem) -> int | None:
    """Multiply-adds of a step with every network evaluated once a state, and its products."""
    if problem.side is not None:
        return None
    one = 2 * problem.dim * problem.width + problem.depth * problem.width**2
    return 3 * (2 * problem.num_steps + 1) * problem.batch * one


def product_share(step: Step, multiply_adds: int, rounds: int) -> dict[str, Any]:
    """A step's rate of multiply-adds over that of torch's product of large float32 matrices.

    Each product is timed right before a step, as in all ratios.
    """
    a = torch.randn(SIDE, SIDE)
    ratios = paired({"mm": lambda: a @ a, "step": step}, "mm", rounds)["step"]["ratio"]["all"]
    return spread([multiply_adds / SIDE**3 / ratio for ratio in ratios])


# --- gradients -----------------------------------------------------------------------------------


def gradient(pair: Pair, dtype: torch.dtype, key: NoiseKey, **options: Any) -> Tensor:
    """The gradient of the loss by all weights, in float64."""
    sde = DiffFlowSDE(pair.drift, pair.score, pair.problem.g).to(dtype)
    sde.zero_grad()
    sde.mean_loss(pair.data.to(dtype), pair.problem.grid(), key, **options).backward()
    return torch.cat([p.grad.double().flatten() for p in sde.parameters() if p.grad is not None])


def gradient_errors(problem: Problem) -> dict[str, float | None]:
    """How far gradients are from that of float64 autograd through the loop, relative.

    Beside them, how far the gradient of another draw of the noise is.
    """
    pair = Pair(replace(problem, batch=min(problem.batch, 200)))
    engine = "fused" if problem.side is None else "autograd"
    found = {"float32": gradient(pair, torch.float32, NoiseKey(0), engine=engine)}
    if not obstacle("fused_bf16", problem):
        with torch.autocast("cpu", torch.bfloat16):
            found["bfloat16"] = gradient(pair, torch.float32, NoiseKey(0), engine=engine)
    exact = {"engine": "autograd", "checkpoint_every": 0}
    truth = gradient(pair, torch.float64, NoiseKey(0), **exact)
    found["other_noise"] = gradient(pair, torch.float64, NoiseKey(1), **exact)
    return {"bfloat16": None} | {
        name: float((one - truth).norm() / truth.norm()) for name, one in found.items()
    }


# --- memory --------------------------------------------------------------------------------------


@cache
def idle(problem: Problem, library: str, threads: int) -> float:
    """Peak memory of a process that takes no step, with a library loaded."""
    return peak_mebibytes(problem, None, threads, library=library)


def over_idle(problem: Problem, name: str, threads: int) -> float:
    """Peak memory of steps over that of none."""
    library = name if name in JAX else REFERENCE
    peak = peak_mebibytes(problem, name, threads, library=library)
    return peak - idle(problem, library, threads)


# --- report --------------------------------------------------------------------------------------


def say(what: str) -> None:
    """Progress, for those who wait."""
    print(f"steps: {what}", file=sys.stderr, flush=True)


def measure(names: Sequence[str], problems: dict[str, Problem], args: Any) -> dict[str, Any]:
    """Times and memory of each variant."""
    say(f"{len(names)} variants, {args.rounds} rounds; first calls, which may compile")
    steps = {n: VARIANTS[n][0](problems[n]) for n in names}
    first = first_calls(steps)
    say("times")
    found = paired(steps, REFERENCE, args.rounds)
    for name, one in found.items():
        # Each process would compile for itself.
        wanted = args.memory and (args.compile == "loop" or name not in COMPILED)
        if wanted:
            say(f"memory of {name}")
        peak = over_idle(problems[name], name, args.threads) if wanted else None
        one |= {"title": VARIANTS[name][1], "first_call_seconds": first[name], "mebibytes": peak}
    return found


def summary(found: Mapping[str, Any]) -> str:
    """Lines for a person: ratio and time of each variant."""
    return "\n".join(
        f"{one['ratio']['median']:8.2f} x DDPM {1e3 * one['seconds']['median']:10.2f} ms  "
        f"{one['title']}"
        for one in found.values()
    )


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--problem", choices=list(PROBLEMS), default="2d", help="default: 2d")
    made.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS),
        help="by default all; DDPM, the reference, is always there",
    )  # fmt: skip
    made.add_argument(
        "--compile", choices=list(COMPILING), default="step",
        help="what torch.compile gets; with no, jax is left out too",
    )  # fmt: skip
    made.add_argument("--threads", type=int, default=1, help="default: 1")
    made.add_argument("--rounds", type=int, default=8, help="how often each is timed; default: 8")
    made.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out peaks of memory"
    )
    return parse(made, words)


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    torch.set_num_threads(args.threads)
    problem = PROBLEMS[args.problem]
    names, left_out = chosen(args.variants, problem, args.compile)
    of_ddpm = replace(problem, batch=2000) if args.problem == "small" else problem
    problems = {n: of_ddpm if n.startswith("ddpm") else problem for n in names}
    found = measure(names, problems, args)
    path = write_report(
        args, "speed.steps", f"steps_{args.problem}_{args.threads}",
        problem=asdict(problem),
        instructions=instructions_name(),
        reference=REFERENCE,
        rounds=args.rounds,
        **checks(names, problem, args.rounds),
        batch_of_ddpm=of_ddpm.batch,
        left_out=left_out,
        variants=found,
    )  # fmt: skip
    print(summary(found), path, sep="\n")


def checks(names: Sequence[str], problem: Problem, rounds: int) -> dict[str, Any]:
    """The rate of the fused engine's arithmetic, and errors of gradients."""
    multiply_adds, share, torchsde_error = work(problem), None, None
    if "fused" in names and multiply_adds:
        share = product_share(VARIANTS["fused"][0](problem), multiply_adds, rounds)
    if "torchsde_adjoint" in names:
        torchsde_error = torchsde_gradient_error(replace(problem, batch=100))
    return {
        "multiply_adds": multiply_adds,
        "product_share": share,
        "gradient_errors": gradient_errors(problem),
        "torchsde_adjoint_gradient_error": torchsde_error,
    }


if __name__ == "__main__":
    main()
