"""The two-sample test against known answers and votes counted one by one."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffflow_ext.metrics import c2st, two_sample

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))
# Few distinct points, most of them repeated: distances tie.
small = arrays.arrays(
    np.int64, st.tuples(st.integers(8, 14), st.just(2)), elements=st.integers(-3, 3)
)


@pytest.mark.parametrize("constants", [0, 20])
def test_c2st_of_gaussians_is_nearly_the_best_accuracy(constants: int) -> None:
    """The best rule halves the line between the means; constant columns change nothing."""
    rng = np.random.default_rng(1)
    x, y = (
        np.pad(rng.normal(mean, size=(8000, 1)), ((0, 0), (0, constants)), constant_values=1e8)
        for mean in (0, 2)
    )
    found = c2st(x, y, neighbours=101)
    assert found.n == 8000
    assert found.accuracy == pytest.approx(NormalDist().cdf(1.0), abs=4 * found.error)


@pytest.mark.parametrize("k", [1, 5, 15])
@pytest.mark.parametrize("constants", [0, 20])
def test_c2st_by_brute_force(k: int, constants: int) -> None:
    (train_x, test_x), (train_y, test_y) = (
        two_sample._halves(torch.as_tensor(rows), 49, 3) for rows in (X, Y)
    )
    train, right = torch.cat([train_x, train_y]), 0
    for own, rows in enumerate((test_x, test_y)):
        for row in rows:
            nearest = (train - row).square().sum(1).argsort()[:k]
            right += int(((nearest >= len(train_x)) == own).sum()) > k / 2
    x, y = (np.pad(rows, ((0, 0), (0, constants))) for rows in (X, Y))
    found = c2st(x, torch.as_tensor(y), seed=3, neighbours=k)
    a = right / 50
    assert found == pytest.approx((a, math.sqrt(a * (1 - a) / 50), 50), abs=1e-12)
    assert found == c2st(y, x, seed=3, neighbours=k)


def test_c2st_of_far_equal_and_copied_samples() -> None:
    rng = np.random.default_rng(11)
    assert c2st(X, X + 100.0)[:2] == (1.0, 0.0)
    assert c2st(X, X, neighbours=5).accuracy == 0.5
    assert c2st(np.zeros((40, 2)), np.zeros((60, 2))).accuracy == 0.5
    copies = rng.permutation(X) + 1e-6
    assert c2st(X, copies, neighbours=1).accuracy < 0.4
    memorised = np.repeat(X[:4], 20, axis=0)
    assert c2st(memorised, rng.normal(size=(80, 3)), neighbours=3).accuracy > 0.8


@pytest.mark.parametrize("columns", [2, 20])
def test_ties_favour_neither_sample(columns: int) -> None:
    """Of rows at one point 2/3 are of one sample, so that most draws of 15 find it: 0.75."""
    one = np.zeros((200, columns))
    other = np.repeat([0.0, 9.0], 100)[:, None] + one
    for x, y in ((one, other), (other, one)):
        assert np.mean([c2st(x, y, seed=seed).accuracy for seed in range(20)]) > 0.68


def test_c2st_depends_on_its_seed() -> None:
    values = [c2st(X, Y, seed=seed).accuracy for seed in range(10)]
    assert values[0] == c2st(X, Y).accuracy
    assert len(set(values)) > 2


@given(small, small, st.sampled_from([1, 3]), st.integers(0, 9))
def test_c2st_of_any_samples(x: np.ndarray, y: np.ndarray, k: int, seed: int) -> None:
    found = c2st(x, y, neighbours=k, seed=seed)
    assert 0.0 <= found.accuracy <= 1.0
    assert found == c2st(4.0 * x + 8.0, 4.0 * y + 8.0, neighbours=k, seed=seed)
    assert found.n == 2 * -(-min(len(x), len(y)) // 2)
    assert c2st(x, x, neighbours=k, seed=seed).accuracy == 0.5


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"c2st: .*n >= 32.*\(31, 3\)"):
        c2st(X, Y[:31])
    for arguments in ({"neighbours": 0}, {"neighbours": 4}, {"seed": -1}):
        with pytest.raises(ValueError, match="c2st: expected an odd number of neighbours >= 1"):
            c2st(X, Y, **arguments)
