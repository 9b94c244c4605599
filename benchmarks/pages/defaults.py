"""The tables of docs/training.md: DiffFlow's defaults, one change at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .quality import spelt
from .tables import NONE, Block, Report, conditions, number, of_all, table, with_error

SETS = ("2-spirals", "olympic-rings", "magic", "mnist")
Measure = Callable[[Report], float]


def _spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean, and the standard deviation of several seeds."""
    if not values:
        return NONE
    error = statistics.stdev(values) if len(values) > 1 else None
    return with_error(statistics.fmean(values), error, digits)


def _table(reports: Sequence[Report], measures: Mapping[str, Measure], digits: int) -> str:
    """Returns a row for each variant, and for each set its measures."""
    names = list(dict.fromkeys(
        one["variant"] for report in reports for one in report["variants"].values()
    ))  # fmt: skip
    rows = []
    for name in names:
        cells = []
        for report in reports:
            own = [one for one in report["variants"].values() if one["variant"] == name]
            cells += [_spread([m(one) for one in own], digits) for m in measures.values()]
        rows.append([name, *cells])
    head = [f"{spelt(r['data'])}, {measure}" for r in reports for measure in measures]
    return table(["variant", *head], rows)


def _bound(num_steps: int) -> Measure:
    def measure(one: Report) -> float:
        found = one["bounds"][str(num_steps)]["bound"]
        return found.get("bits", found["nats"])

    return measure


def _distance(num_steps: int) -> Measure:
    def measure(one: Report) -> float:
        found = one["samples"][str(num_steps)]
        return found["fd"] if "fd" in found else found["mean"]

    return measure


def bounds(reports: Sequence[Any]) -> str:
    return _table(reports, {f"N = {n}": _bound(n) for n in (5, 30)}, 2)


def samples(reports: Sequence[Any]) -> str:
    return _table(reports, {f"N = {n}": _distance(n) for n in (5, 30)}, 1)


def costs(reports: Sequence[Any]) -> str:
    """Seeds, updates and time of each set."""
    rows = []
    for report in reports:
        runs = list(report["variants"].values())
        seconds = statistics.median(one["train_cpu_seconds"] for one in runs)
        seeds = len({one["seed"] for one in runs})
        rows.append([spelt(report["data"]), f"{runs[0]['steps']:,}", number(seconds), str(seeds)])
    return table(["set", "updates", "CPU seconds of a training", "seeds"], rows)


_REPORTS = [f"defaults_sweep_{name}" for name in SETS]
BLOCKS: dict[str, Block] = {
    "defaults-bounds": of_all(_REPORTS, bounds),
    "defaults-samples": of_all(_REPORTS, samples),
    "defaults-costs": of_all(_REPORTS, costs),
    "defaults-conditions": conditions(["defaults_sweep"]),
}
