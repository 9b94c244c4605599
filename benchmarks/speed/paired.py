"""Paired timing: variants in random order, a reference before every sample, ratios inside a round.

Machines that are shared change their speed by tens of per cent within minutes. A ratio to a
reference that was timed a moment before is steady where seconds are not.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

from .problem import Step


def seconds(step: Step, least: float = 0.05) -> float:
    """Returns the time of one call, averaged over as many as take `least` seconds."""
    calls, start = 0, time.perf_counter()
    while True:
        step()
        calls += 1
        spent = time.perf_counter() - start
        if spent >= least:
            return spent / calls


def paired(
    variants: Mapping[str, Step], reference: str, rounds: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Times all variants in each round.

    Returns for each variant its seconds and its ratios to the reference, each with median,
    quartiles and minimum, and the raw numbers.
    """
    order, shuffle = list(variants), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in order}
    ratios: dict[str, list[float]] = {name: [] for name in order}
    for step in variants.values():
        step()
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            before = seconds(variants[reference])
            spent = seconds(variants[name])
            times[name].append(spent)
            ratios[name].append(spent / before)
    return {
        name: {"seconds": spread(times[name]), "ratio": spread(ratios[name])} for name in variants
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Returns median, quartiles and minimum of some numbers, and the numbers."""
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": median, "quartiles": [low, high], "min": min(values), "all": values}
