"""What the fused ops cost by themselves, beside eager and compiled twins in plain torch.

    python -m benchmarks.speed.ops                       # about two minutes
    python -m benchmarks.speed.ops --ops em_step perturb --ways fused eager --seconds 0.1

One thread, values without gradients; each is timed by torch.utils.benchmark. The twins are those
of diffflow_ext.functional.reference, with noise from torch's generator in the place of the
reference's own slow one: they draw other numbers, as fast as torch can. Writes ops_1.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import reference

from ..common.reports import parse, parser, write_report
from .paired import spread

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
    noise = {"eps": draw(given["x"])} if "key" in options else {}
    call = getattr(reference, op)
    return call(*(given[n] for n in names), **options, **noise, **_scales(op, given))


def _scales(op: str, given: Inputs) -> Inputs:
    return {name: given[name] for name in ("alpha_t", "sigma_t") if op == "perturb"}


def variant(op: str, way: str) -> Callable[[Inputs], Any]:
    """An op as a function of its inputs, by one of the ways."""
    call = partial(fused if way == "fused" else twin, op)
    # Code made for other ops would count towards the limit of recompilations.
    torch.compiler.reset()
    return torch.compile(call, dynamic=False) if way == "compiled" else call


def measure(op: str, size: str, ways: Sequence[str], seconds: float) -> dict[str, Any]:
    """Medians and quartiles of an op by way, and how many times the fused one's."""
    given, times = inputs(SIZES[size]), {}
    for way in ways:
        call = variant(op, way)
        call(given)
        timer = Timer("call(given)", globals={"call": call, "given": given})
        found = timer.blocked_autorange(min_run_time=seconds).times
        middle = spread(found)
        times[way] = {part: middle[part] for part in ("median", "quartiles")}
        times[way]["rounds"] = len(found)
    over = {}
    if "fused" in times:
        base = times["fused"]["median"]
        over = {way: one["median"] / base for way, one in times.items() if way != "fused"}
    return {"op": op, "size": size, "shape": SIZES[size], "seconds": times, "over_fused": over}


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=1.0, help="at least, for each")
    made.add_argument("--ops", nargs="+", choices=list(OPS), default=list(OPS))
    made.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    made.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parse(made, words)
    torch.set_num_threads(1)
    with torch.no_grad():
        found = [
            measure(op, size, args.ways, args.seconds) for op in args.ops for size in args.sizes
        ]
    write_report(args, "speed.ops", "ops_1", ops=found)


if __name__ == "__main__":
    main()
