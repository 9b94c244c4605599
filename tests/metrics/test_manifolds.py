"""Precision, recall, density and coverage against brute force and expectations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffflow_ext.metrics import points, precision_recall

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))
# Few distinct points, most of them repeated: distances tie.
GRID_X, GRID_Y = RNG.integers(0, 4, size=(40, 2)), RNG.integers(1, 5, size=(40, 2))
small = arrays.arrays(
    np.int64, st.tuples(st.integers(8, 14), st.just(2)), elements=st.integers(-3, 3)
)


def _brute_precision_recall(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    """From the definitions, one ball at a time; squared distances of whole numbers are exact."""

    def radii(a: np.ndarray) -> list[float]:
        return [sorted(((a - p) ** 2).sum(1))[k] for p in a]

    r_x, r_y = radii(x), radii(y)
    inside_y = [[((p - q) ** 2).sum() <= r for q, r in zip(y, r_y, strict=True)] for p in x]
    inside_x = [[((p - q) ** 2).sum() <= r for p, r in zip(x, r_x, strict=True)] for q in y]
    return [
        np.mean([any(row) for row in inside_y]),
        np.mean([any(row) for row in inside_x]),
        sum(map(sum, inside_y)) / (k * len(x)),
        np.mean([any(column) for column in zip(*inside_y, strict=True)]),
    ]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1, 300, 1 << 22])
def test_precision_recall_by_brute_force(
    k: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", chunk)
    for x, y in ((X, torch.as_tensor(Y)), (Y[:20], X), (GRID_X, GRID_Y)):
        expected = _brute_precision_recall(x, np.asarray(y), k)
        assert list(precision_recall(x, y, k)) == pytest.approx(expected, abs=1e-12)


@given(small, small, st.integers(1, 4))
def test_precision_recall_of_any_samples(x: np.ndarray, y: np.ndarray, k: int) -> None:
    found, swapped = precision_recall(x, y, k), precision_recall(y, x, k)
    assert (found.precision, found.recall) == (swapped.recall, swapped.precision)
    assert all(0.0 <= value <= 1.0 for value in (found.precision, found.recall, found.coverage))
    assert found == precision_recall(4.0 * x + 8.0, 4.0 * y + 8.0, k)
    assert (found.density > 0.0) == (found.precision > 0.0) == (found.coverage > 0.0)
    same = precision_recall(x, x, k)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="precision_recall: expected k >= 1, got 0"):
        precision_recall(X, Y, 0)
    with pytest.raises(ValueError, match=r"n >= 6.*\(5, 3\)"):
        precision_recall(X, Y[:5])
