"""Measures beside their floor."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from diffflow_ext.metrics import c2st, frechet_distance, with_floor

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))


class _Pair(NamedTuple):
    first: float
    second: float


def test_floor_by_hand() -> None:
    real = np.arange(10.0)[:, None]
    seen: list[list[float]] = []

    def measure(x: torch.Tensor, y: torch.Tensor) -> _Pair:
        seen.append(x[:, 0].tolist())
        assert y[:, 0].tolist() == [100.0, 200.0]
        return _Pair(float(x.sum()), float(y.mean()))

    found = with_floor(
        measure, np.array([[-1.0], [-2.0], [-3.0]]), [[100.0], [200.0]] * np.ones(1), real
    )
    *draws, samples = seen
    assert samples == [-1.0, -2.0, -3.0]
    assert [len(draw) for draw in draws] == [3, 3, 3]
    rows = [row for draw in draws for row in draw]
    assert len(set(rows)) == 9, "draws are disjoint"
    assert rows != sorted(rows), "and random"
    sums = [sum(draw) for draw in draws]
    assert found.value == {"first": -6.0, "second": 150.0}
    assert found.floor == pytest.approx({"first": np.mean(sums), "second": 150.0})
    assert found.spread == pytest.approx({"first": np.std(sums, ddof=1), "second": 0.0})
    assert (found.n, found.draws) == (3, 3)


def test_floor_of_the_measures() -> None:
    rng = np.random.default_rng(16)
    data = rng.normal(size=(900, 2))
    bad = rng.normal(2.0, 1.0, size=(200, 2))
    far = with_floor(frechet_distance, bad, data[:200], data[200:])
    assert far.draws == 3
    assert far.floor["value"] < 0.1 < 7.0 < far.value["value"]
    assert 0.0 < far.spread["value"] < 0.1
    told = with_floor(c2st, bad, data[:200], data[200:], draws=1)
    assert told.floor["accuracy"] < 0.65 < 0.8 < told.value["accuracy"]
    assert math.isnan(told.spread["accuracy"])
    again = with_floor(frechet_distance, bad, data[:200], data[200:])
    assert again == far
    other = with_floor(frechet_distance, bad, data[:200], data[200:], seed=1)
    assert other.floor != far.floor


def test_floor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"real of shape \(l, 3\) with l >= 57.*got \(49, 3\)"):
        with_floor(frechet_distance, X, Y, Y)
    with pytest.raises(ValueError, match=r"real of shape \(l, 3\).*got \(57, 2\)"):
        with_floor(frechet_distance, X, Y, X[:, :2])
    with pytest.raises(ValueError, match="draws >= 1"):
        with_floor(frechet_distance, X, Y, X, draws=0)
    with pytest.raises(TypeError, match=r"returns a number or a named tuple.*got list"):
        with_floor(lambda x, y: [1.0], X, Y, X)
