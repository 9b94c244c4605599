"""What the fused ops cost by themselves, beside eager and compiled twins in plain torch.

    python -m benchmarks.speed.ops                       # about three minutes
    python -m benchmarks.speed.ops --only "em_step and not compiled" --seconds 0.1

One thread; pytest-benchmark times test_ops.py. The twins are what a user would write: the formula
with plain numbers, and noise from torch's generator. The largest size is also timed with each set
of instructions, the others with gradients of all states and network outputs, and beside a
`torch.add`. The import of the package is timed beside that of torch. Writes ops_1.json.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional.core import core

from ..common.files import ROOT
from ..common.reports import parse, parser, run_python, write_report

STEP = {"dt": 0.03125, "g": 0.75}
RESIDUAL = {"dt": 0.03125, "g_next": 0.75}
NOISE = {"key": NoiseKey(7), "step": 5}
#: A call with nothing to compute, 2-D training, and 2^20 elements in rows like those of a table.
SIZES: dict[str, tuple[int, int]] = {"2x2": (2, 2), "2000x2": (2000, 2), "16384x64": (16384, 64)}
LARGE = "16384x64"
WAYS = (
    "fused",
    "eager",
    "compiled",
    "fused_gradient",
    "eager_gradient",
    "avx2",
    "portable",
    "add",
)
Inputs = dict[str, Any]
#: Returns noise for a state.
Draw = Callable[[Tensor], Tensor]
Call = Callable[[], Any]
#: Names of an op's inputs, and its options; those with a key draw noise.
OPS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "normal": (("x",), NOISE),
    "em_step": (("x", "f"), STEP | NOISE),
    "backward_residual": (("x", "x_next", "f", "s"), RESIDUAL),
    "residual_cost": (("x", "x_next", "f", "s"), RESIDUAL),
    "reverse_step": (("x", "f", "s"), RESIDUAL | NOISE),
    "perturb": (("x",), {"key": NOISE["key"]}),
}
#: Ratios of the report: one way over another.
RATIOS = {
    "eager": ("eager", "fused"),
    "compiled": ("compiled", "fused"),
    "gradient": ("eager_gradient", "fused_gradient"),
    "avx2": ("eager", "avx2"),
    "portable": ("eager", "portable"),
}
IMPORTS = """
import time
start = time.perf_counter()
import torch
torch_is_there = time.perf_counter()
from diffflow_ext import DiffFlowSDE
print(time.perf_counter() - start, torch_is_there - start)
"""


def is_measured(op: str, size: str, way: str) -> bool:
    """Whether a way makes sense for an op of a size."""
    if way in ("avx2", "portable"):
        return size == LARGE and way in core.instructions()
    if way.endswith("gradient"):
        return size != LARGE and op != "normal"
    return way != "add" or (size != LARGE and op == "normal")


def inputs(size: tuple[int, int]) -> Inputs:
    """Tensors that the ops take, by name."""
    generator = torch.Generator().manual_seed(0)
    found: Inputs = {
        name: torch.randn(size, generator=generator) for name in ("x", "x_next", "f", "s")
    }
    found["alpha_t"], found["sigma_t"] = (
        torch.rand(size[0], generator=generator) for _ in range(2)
    )
    return found


def fused(op: str, given: Inputs) -> Call:
    """The op."""
    names, options = OPS[op]
    if op == "normal":
        return partial(functional.normal, tuple(given["x"].shape), **options)
    tensors = (given[n] for n in names)
    return partial(getattr(functional, op), *tensors, **options, **_scales(op, given))


def twin(
    op: str,
    given: Inputs,
    draw: Draw = torch.randn_like,
    wrap: Callable[[Any], Any] = lambda formula: formula,
) -> Call:
    """The same in plain torch, with noise from somewhere else."""
    names, options = OPS[op]
    numbers = {name: value for name, value in options.items() if name in STEP | RESIDUAL}
    noise = {"draw": draw} if "key" in options else {}
    tensors = (given[n] for n in names)
    return partial(wrap(TWINS[op]), *tensors, **numbers, **noise, **_scales(op, given))


def _normal(x: Tensor, *, draw: Draw) -> Tensor:
    return draw(x)


def _em_step(x: Tensor, f: Tensor, *, dt: float, g: float, draw: Draw) -> Tensor:
    return x + f * dt + g * math.sqrt(dt) * draw(x)


def _backward_residual(
    x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, *, dt: float, g_next: float
) -> Tensor:
    return (x - x_next + (f - g_next**2 * s) * dt) / (g_next * math.sqrt(dt))


def _residual_cost(*tensors: Tensor, dt: float, g_next: float) -> Tensor:
    return _backward_residual(*tensors, dt=dt, g_next=g_next).square().sum(1) / 2


def _reverse_step(
    x_next: Tensor, f: Tensor, s: Tensor, *, dt: float, g_next: float, draw: Draw
) -> Tensor:
    return x_next - (f - g_next**2 * s) * dt + g_next * math.sqrt(dt) * draw(x_next)


def _perturb(x0: Tensor, *, alpha_t: Tensor, sigma_t: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    eps = draw(x0)
    return alpha_t[:, None] * x0 + sigma_t[:, None] * eps, eps


#: The formulas once more, and not those of functional.reference, which take a tensor for each
#: number: a user would not write them so.
TWINS: dict[str, Callable[..., Any]] = {
    "normal": _normal,
    "em_step": _em_step,
    "backward_residual": _backward_residual,
    "residual_cost": _residual_cost,
    "reverse_step": _reverse_step,
    "perturb": _perturb,
}


def _scales(op: str, given: Inputs) -> Inputs:
    return {name: given[name] for name in ("alpha_t", "sigma_t") if op == "perturb"}


def variant(op: str, way: str, given: Inputs) -> Call:
    """An op by one of the ways."""
    if way == "add":
        return partial(torch.add, given["x"], given["f"])
    if way.endswith("gradient"):
        return _with_gradient(op, fused if way == "fused_gradient" else twin, given)
    if way == "eager":
        return twin(op, given)
    if way == "compiled":
        # Code made for other ops would count towards the limit of recompilations.
        torch.compiler.reset()
        return twin(op, given, wrap=partial(torch.compile, dynamic=False))
    core.use_op_instructions(core.instructions()[0] if way == "fused" else way)
    return fused(op, given)


def _with_gradient(op: str, how: Callable[[str, Inputs], Call], given: Inputs) -> Call:
    """The op, and the gradients of its states and network outputs."""
    leaves = {n: given[n].clone().requires_grad_() for n in OPS[op][0]}
    call, wanted = how(op, {**given, **leaves}), list(leaves.values())
    value = call()
    ones = torch.ones_like(value[0] if isinstance(value, tuple) else value)

    def run() -> Any:
        value = call()
        return torch.autograd.grad(value[0] if isinstance(value, tuple) else value, wanted, ones)

    return run


def measure(seconds: float, only: str) -> dict[str, Any]:
    """Runs test_ops.py and returns the report of pytest-benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        done = run_python(
            *("-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-k", only),
            *("--benchmark-only", f"--benchmark-json={report}", "--benchmark-warmup=on"),
            *("--benchmark-warmup-iterations=100", f"--benchmark-max-time={seconds}"),
            str(Path(__file__).with_name("test_ops.py")),
            env={"PYTEST_XDIST_WORKER": ""},  # Below a test it would turn benchmarks off.
        )
        if done.returncode:
            log = (done.stdout + done.stderr)[-3000:]
            raise RuntimeError(f"ops: expected pytest to succeed, got\n{log}")
        return json.loads(report.read_text())


def condensed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Medians and quartiles of each op and size by way, and ratios of medians.

    They are those of eager and compiled code over the fused op, with gradients over it with
    gradients, and eager code over the op on other sets of instructions.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in report["benchmarks"]:
        about, stats = one["params"], one["stats"]
        found.setdefault((about["op"], about["size"]), {})[about["way"]] = {
            "median": stats["median"],
            "quartiles": [stats["q1"], stats["q3"]],
            "rounds": stats["rounds"],
        }
    rows = []
    for (op, size), times in found.items():
        medians = {way: one["median"] for way, one in times.items()}
        over = {
            name: medians[above] / medians[below]
            for name, (above, below) in RATIOS.items()
            if {above, below} <= {*medians}
        }
        row = {"op": op, "size": size, "shape": SIZES[size], "seconds": times, "ratios": over}
        rows.append(row)
    return rows


def import_seconds(rounds: int = 5) -> dict[str, float]:
    """Medians of the time to import torch and the package, and torch alone."""
    pairs = [run_python("-c", IMPORTS).stdout.split() for _ in range(rounds)]
    both, alone = (statistics.median(map(float, times)) for times in zip(*pairs, strict=True))
    return {"both": both, "torch": alone}


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=1.0, help="at most, for each")
    made.add_argument("--only", default="", help="an expression of pytest -k")
    args = parse(made, words)
    torch.set_num_threads(1)
    ops = condensed(measure(args.seconds, args.only))
    write_report(args, "speed.ops", "ops_1", ops=ops, imports=import_seconds())


if __name__ == "__main__":
    main()
