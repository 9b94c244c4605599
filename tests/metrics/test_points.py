"""What every measure refuses, and what its message names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffflow_ext import metrics

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))
MEASURES = (
    metrics.energy_distance,
    metrics.sliced_wasserstein,
    metrics.kernel_distance,
    metrics.gaussian_nll,
    metrics.frechet_distance,
    metrics.c2st,
    metrics.precision_recall,
)


@pytest.mark.parametrize("measure", MEASURES)
def test_errors(measure: Callable[..., object]) -> None:
    def fails(kind: type[Exception], match: str, x: object, y: object) -> None:
        with pytest.raises(kind, match=f"{name}: expected .*{match}"):
            measure(x, y)

    name = measure.__name__
    columns = "features, got 3 and 2" if name == "frechet_distance" else r"\(57, 3\) and \(49, 2\)"
    fails(ValueError, columns, X, Y[:, :2])
    fails(ValueError, r"\(n, d\).*\(57,\)", X[:, 0], Y)
    fails(ValueError, r"\(0, 3\)", X, Y[:0])
    broken = X.copy()
    broken[2] = np.nan
    fails(ValueError, "finite values, 1 of 57 rows", broken, Y)
    fails(TypeError, "got list", X.tolist(), Y)
    fails(TypeError, "complex", X, torch.as_tensor(Y) + 1j)


@pytest.mark.parametrize("measure", MEASURES[2:])
def test_a_single_row_has_no_spread_and_no_neighbours(measure: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=rf"{measure.__name__}: expected .*\(1, 3\)"):
        measure(X, Y[:1])
