"""How time and memory of a step grow with its number of steps N, its batch B and its width.

    python -m benchmarks.speed.scaling                  # some minutes on one thread
    python -m benchmarks.speed.scaling --axes width     # one of them

For the fused engine and for the adjoint of any networks (engine="autograd"). Each time is divided
by that of one and the same reference step, timed right before. Exponents are slopes of the
logarithms: 1 is growth in proportion, 0 none. Writes scaling_THREADS.json.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from ..common.reports import parse, parser, write_report
from .paired import seconds, spread
from .peaks import peak_mebibytes
from .problem import Problem, Step
from .variants import VARIANTS

#: The problem that an axis changes, the field that it changes, and its values.
Axis = tuple[Problem, str, tuple[int, ...]]
AXES: dict[str, Axis] = {
    "num_steps": (Problem(batch=120, width=64), "num_steps", (5, 20, 100, 300, 1000)),
    "batch": (Problem(num_steps=5, width=64), "batch", (40, 400, 4000, 20_000, 100_000)),
    "width": (Problem(batch=480), "width", (32, 64, 128, 256)),
}
ENGINES = ("fused", "adjoint")
REFERENCE = Problem(batch=480, width=64)
#: Rounds of a point: as many as take about so many seconds, and at least two.
MOST_ROUNDS, SECONDS = 7, 2.0
#: Steps that a process takes whose memory is measured: in the second one Adam has its moments.
STEPS = 2
#: Below this, what the system gives in pages and what Python does in passing is all there is.
LEAST_MEBIBYTES = 1.0


def timed(step: Step, reference: Step, most_rounds: int = MOST_ROUNDS) -> dict[str, Any]:
    """Seconds of a step, and its ratios to the reference, timed right before."""
    step()
    times, ratios = [], []
    while len(times) < 2 or (len(times) < most_rounds and sum(times) < SECONDS):
        before = seconds(reference)
        times.append(seconds(step))
        ratios.append(times[-1] / before)
    return {"seconds": spread(times), "ratio": spread(ratios)}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y by log x, by least squares."""
    return statistics.linear_regression(*([math.log(v) for v in many] for many in (x, y))).slope


def exponents(values: Sequence[int], points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Growth of time and memory, over all values and over the last three."""
    measures: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "time": lambda one: one["ratio"]["median"],
        "memory": lambda one: max(one["mebibytes"], LEAST_MEBIBYTES),
    }
    return {
        name: {
            "all": slope(values, [measure(one) for one in points]),
            "last": slope(values[-3:], [measure(one) for one in points[-3:]]),
        }
        for name, measure in measures.items()
    }


def measure(axis: Axis, threads: int, most_rounds: int) -> dict[str, Any]:
    """All points of an axis."""
    problem, field, values = axis
    reference = VARIANTS["fused"][0](REFERENCE)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    # What an idle process holds are data and weights, whatever the number of steps.
    idle_of = functools.cache(lambda same: peak_mebibytes(same, None, threads))
    for value in values:
        here = replace(problem, **{field: value})
        idle = idle_of(replace(here, num_steps=1))
        for name in ENGINES:
            one = timed(VARIANTS[name][0](here), reference, most_rounds)
            peak = peak_mebibytes(here, name, threads, STEPS) - idle
            found[name].append({"value": value, **one, "mebibytes": peak})
    return {
        "problem": asdict(problem),
        "values": values,
        "points": found,
        "exponents": {name: exponents(values, points) for name, points in found.items()},
    }


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--rounds", type=int, default=MOST_ROUNDS, help="at most, for a point")
    args = parse(made, words)
    torch.set_num_threads(args.threads)
    titles = {name: VARIANTS[name][1] for name in ENGINES}
    axes = {name: measure(AXES[name], args.threads, args.rounds) for name in args.axes}
    name = f"scaling_{args.threads}"
    write_report(
        args, "speed.scaling", name, reference=asdict(REFERENCE), titles=titles, axes=axes
    )


if __name__ == "__main__":
    main()
