"""A measure of samples beside its floor: its value for real data in their place."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .points import Points, pair, points

Measure = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class WithFloor:
    """A measure of samples beside those of real data.

    Attributes:
        value: Each number of the measure, for the samples.
        floor: Its mean over draws of as many real data.
        spread: Its standard deviation over these draws; NaN for a single one.
        n: The number of samples, and of data in each draw.
        draws: The number of draws.
    """

    value: dict[str, float]
    floor: dict[str, float]
    spread: dict[str, float]
    n: int
    draws: int


def with_floor(
    measure: Measure,
    samples: Points,
    reference: Points,
    real: Points,
    *,
    draws: int = 4,
    seed: int = 0,
) -> WithFloor:
    """Evaluates a measure on samples, and on real data in their place.

    The value is `measure(samples, reference)`, its floor the mean of `measure(draw, reference)`
    over disjoint, random subsets of `real` with as many rows as there are samples. For the floor
    of training against training data, split the training data into `reference` and `real`.

    Arguments:
        measure: Takes two samples; returns a number, or a named tuple of numbers. Bind further
            arguments with a lambda or functools.partial.
        samples: Samples of the model, with shape (n, d).
        reference: The data to compare with, with shape (m, d).
        real: Other data, with shape (l, d), l >= n; none of them in `reference`, or the floor is
            too low.
        draws: The most draws; fewer where `real` has fewer than draws * n rows.
        seed: The seed of the draws, >= 0.

    Returns:
        All numbers by name; a measure that returns one number has the name "value".

    Raises:
        TypeError: If an argument has the wrong type, or the measure returns something else.
        ValueError: If shapes don't fit, values aren't finite, or there are too few real data.

    Example:
        >>> data = torch.randn(3000, 2)
        >>> shifted = data[:1000] + 9.0
        >>> with_floor(precision_recall, shifted, data[1000:2000], data[2000:]).value["recall"]
        0.0
    """
    op = "with_floor"
    x, y = pair(op, samples, reference, 1, names=("samples", "reference"))
    others = points(op, "real", real, 1).to(x.device)
    most = operator.index(draws)
    if most < 1 or operator.index(seed) < 0:
        raise ValueError(
            f"{op}: expected draws >= 1 and seed >= 0, got draws={draws}, seed={seed}; mend the "
            "one out of range"
        )
    if len(others) < len(x) or others.shape[1] != x.shape[1]:
        raise ValueError(
            f"{op}: expected real of shape (l, {x.shape[1]}) with l >= {len(x)}, the number of "
            f"samples, got {tuple(others.shape)}; a floor needs as many rows: give more real "
            "data, or fewer samples"
        )
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    count = min(most, len(others) // len(x))
    parts = order[: count * len(x)].reshape(count, len(x)).to(x.device)
    floors = [_numbers(measure(others[part], y)) for part in parts]
    return WithFloor(
        value=_numbers(measure(x, y)),
        floor={name: float(np.mean([one[name] for one in floors])) for name in floors[0]},
        spread={name: _deviation([one[name] for one in floors]) for name in floors[0]},
        n=len(x),
        draws=count,
    )


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _numbers(result: object) -> dict[str, float]:
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        return {name: float(value) for name, value in cast(Any, result)._asdict().items()}
    if isinstance(result, (int, float)):
        return {"value": float(result)}
    raise TypeError(
        "with_floor: expected a measure that returns a number or a named tuple of numbers, got "
        f"{type(result).__name__}; wrap it in a function that returns one"
    )
