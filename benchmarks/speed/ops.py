"""What the fused ops cost by themselves, beside eager and compiled twins in plain torch.

    python -m benchmarks.speed.ops                       # about two minutes
    python -m benchmarks.speed.ops --only "em_step and not compiled" --seconds 0.1

One thread, values without gradients; pytest-benchmark times test_ops.py. The twins are what a user
would write: the formula with plain numbers, and noise from torch's generator. Writes ops_1.json.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import NoiseKey, functional

from ..common.machine import ROOT
from ..common.reports import parse, parser, run_python, write_report

STEP = {"dt": 0.03125, "g": 0.75}
RESIDUAL = {"dt": 0.03125, "g_next": 0.75}
NOISE = {"key": NoiseKey(7), "step": 5}
#: 2-D training, and 2^20 elements in rows like those of a table.
SIZES: dict[str, tuple[int, int]] = {"2000x2": (2000, 2), "16384x64": (16384, 64)}
WAYS = ("fused", "eager", "compiled")
Inputs = dict[str, Any]
#: Returns noise for a state.
Draw = Callable[[Tensor], Tensor]
#: Names of an op's inputs, and its options; those with a key draw noise.
OPS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "normal": (("x",), NOISE),
    "em_step": (("x", "f"), STEP | NOISE),
    "backward_residual": (("x", "x_next", "f", "s"), RESIDUAL),
    "residual_cost": (("x", "x_next", "f", "s"), RESIDUAL),
    "reverse_step": (("x", "f", "s"), RESIDUAL | NOISE),
    "perturb": (("x",), {"key": NOISE["key"]}),
}


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


def fused(op: str, given: Inputs) -> Any:
    """The op."""
    names, options = OPS[op]
    if op == "normal":
        return functional.normal(tuple(given["x"].shape), **options)
    return getattr(functional, op)(*(given[n] for n in names), **options, **_scales(op, given))


def twin(op: str, given: Inputs, draw: Draw = torch.randn_like) -> Any:
    """The same in plain torch, with noise from somewhere else."""
    names, options = OPS[op]
    if op == "normal":
        return draw(given["x"])
    numbers = {name: value for name, value in options.items() if name in STEP | RESIDUAL}
    noise = {"eps": draw(given["x"])} if "key" in options else {}
    return TWINS[op](*(given[n] for n in names), **numbers, **noise, **_scales(op, given))


def _em_step(x: Tensor, f: Tensor, *, dt: float, g: float, eps: Tensor) -> Tensor:
    return x + f * dt + g * math.sqrt(dt) * eps


def _backward_residual(
    x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, *, dt: float, g_next: float
) -> Tensor:
    return (x - x_next + (f - g_next**2 * s) * dt) / (g_next * math.sqrt(dt))


def _residual_cost(*tensors: Tensor, dt: float, g_next: float) -> Tensor:
    return _backward_residual(*tensors, dt=dt, g_next=g_next).square().sum(1) / 2


def _reverse_step(
    x_next: Tensor, f: Tensor, s: Tensor, *, dt: float, g_next: float, eps: Tensor
) -> Tensor:
    return x_next - (f - g_next**2 * s) * dt + g_next * math.sqrt(dt) * eps


def _perturb(
    x0: Tensor, *, alpha_t: Tensor, sigma_t: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    return alpha_t[:, None] * x0 + sigma_t[:, None] * eps, eps


TWINS: dict[str, Callable[..., Any]] = {
    "em_step": _em_step,
    "backward_residual": _backward_residual,
    "residual_cost": _residual_cost,
    "reverse_step": _reverse_step,
    "perturb": _perturb,
}


def _scales(op: str, given: Inputs) -> Inputs:
    return {name: given[name] for name in ("alpha_t", "sigma_t") if op == "perturb"}


def variant(op: str, way: str) -> Callable[[Inputs], Any]:
    """An op as a function of its inputs, by one of the ways."""
    call = partial(fused if way == "fused" else twin, op)
    # Code made for other ops would count towards the limit of recompilations.
    torch.compiler.reset()
    return torch.compile(call, dynamic=False) if way == "compiled" else call


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
    """Medians and quartiles of each op and size by way, and how many times the fused one's."""
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
        base = times.get("fused", {}).get("median")
        over = {w: one["median"] / base for w, one in times.items() if base and w != "fused"}
        row = {"op": op, "size": size, "shape": SIZES[size], "seconds": times, "over_fused": over}
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=1.0, help="at most, for each")
    made.add_argument("--only", default="", help="an expression of pytest -k")
    args = parse(made, words)
    torch.set_num_threads(1)
    ops = condensed(measure(args.seconds, args.only))
    write_report(args, "speed.ops", "ops_1", ops=ops)


if __name__ == "__main__":
    main()
