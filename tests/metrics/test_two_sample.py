"""The two-sample test against scikit-learn and brute force."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffflow_ext.metrics import c2st, points, two_sample

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))
# Few distinct points, most of them repeated: distances tie.
GRID_X, GRID_Y = RNG.integers(0, 4, size=(40, 2)), RNG.integers(1, 5, size=(40, 2))
small = arrays.arrays(
    np.int64, st.tuples(st.integers(8, 14), st.just(2)), elements=st.integers(-3, 3)
)


def _halves(x: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = two_sample._halves(torch.as_tensor(x).double(), n, seed)
    return first.numpy(), second.numpy()


def _brute_c2st(x: np.ndarray, y: np.ndarray, k: int, seed: int) -> float:
    """Votes one by one, in fractions."""
    n = min(len(x), len(y))
    halves = [_halves(x, n, seed), _halves(y, n, seed)]
    right = Fraction(0)
    for own in (0, 1):
        for row in halves[own][1]:
            pool = [(((row - p) ** 2).sum(), s) for s in (0, 1) for p in halves[s][0]]
            last = sorted(d for d, _ in pool)[k - 1]
            closer = [s for d, s in pool if d < last]
            tied = [s for d, s in pool if d == last]
            share = Fraction(k - len(closer), len(tied))
            votes = closer.count(own) + share * tied.count(own)
            right += Fraction(1, 2) * (1 + (2 * votes > k) - (2 * votes < k))
    return float(right / sum(len(half[1]) for half in halves))


@pytest.mark.parametrize("k", [1, 5, 15])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 22])
def test_c2st_against_scikit_learn(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs scikit-learn")
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", chunk)
    (train_x, test_x), (train_y, test_y) = _halves(X, 49, 3), _halves(Y, 49, 3)
    model = neighbors.KNeighborsClassifier(k)
    model.fit(np.r_[train_x, train_y], np.repeat([0, 1], [len(train_x), len(train_y)]))
    truth = np.repeat([0, 1], [len(test_x), len(test_y)])
    expected = model.score(np.r_[test_x, test_y], truth)
    found = c2st(X, torch.as_tensor(Y), seed=3, neighbours=k)
    assert found.n == len(truth) == 50
    assert found.accuracy == pytest.approx(expected, abs=1e-12)
    assert found.error == pytest.approx(math.sqrt(expected * (1 - expected) / 50), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_c2st_with_ties_by_brute_force(k: int) -> None:
    for seed in range(4):
        found = c2st(GRID_X, GRID_Y, seed=seed, neighbours=k).accuracy
        assert found == pytest.approx(_brute_c2st(GRID_X, GRID_Y, k, seed), abs=1e-12)


def test_c2st_of_far_equal_and_copied_samples() -> None:
    rng = np.random.default_rng(11)
    assert c2st(X, X + 100.0)[:2] == (1.0, 0.0)
    assert c2st(X, X, neighbours=4).accuracy == 0.5
    assert c2st(np.zeros((40, 2)), np.zeros((60, 2))).accuracy == 0.5
    copies = rng.permutation(X) + 1e-6
    assert c2st(X, copies, neighbours=1).accuracy < 0.4
    memorised = np.repeat(X[:4], 20, axis=0)
    assert c2st(memorised, rng.normal(size=(80, 3)), neighbours=3).accuracy > 0.8


def test_c2st_depends_on_its_seed() -> None:
    values = [c2st(X, Y, seed=seed).accuracy for seed in range(10)]
    assert values[0] == c2st(X, Y).accuracy
    assert len(set(values)) > 2


@given(small, small, st.integers(1, 3), st.integers(0, 9))
def test_c2st_of_any_samples(x: np.ndarray, y: np.ndarray, k: int, seed: int) -> None:
    found = c2st(x, y, neighbours=k, seed=seed)
    assert 0.0 <= found.accuracy <= 1.0
    assert found == c2st(y, x, neighbours=k, seed=seed)
    assert found == c2st(4.0 * x + 8.0, 4.0 * y + 8.0, neighbours=k, seed=seed)
    assert found.n == 2 * -(-min(len(x), len(y)) // 2)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"c2st: .*n >= 32.*\(31, 3\)"):
        c2st(X, Y[:31])
    for arguments in ({"neighbours": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="c2st: expected neighbours >= 1 and seed >= 0"):
            c2st(X, Y, **arguments)
