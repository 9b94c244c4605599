"""Distances against SciPy, POT, brute force and closed forms; the Gaussian baseline."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffflow_ext.metrics import (
    energy_distance,
    gaussian_nll,
    kernel_distance,
    points,
    sliced_wasserstein,
)
from diffflow_ext.metrics.distances import _directions

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(41, 3))


def _brute_energy(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, pairs: int) -> float:
        return np.linalg.norm(a[:, None] - b[None], axis=2).sum() / pairs

    n, m = len(x), len(y)
    return 2 * mean(x, y, n * m) - mean(x, x, n * n) - mean(y, y, m * m)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_energy_distance_by_brute_force(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", chunk)
    assert energy_distance(X, Y) == pytest.approx(_brute_energy(X, Y), rel=1e-12)


def test_energy_distance_in_one_dimension_is_scipy_s_squared() -> None:
    expected = stats.energy_distance(X[:, 0], Y[:, 0]) ** 2
    assert energy_distance(X[:, :1], Y[:, :1]) == pytest.approx(expected, rel=1e-10)


def test_energy_distance_of_two_points() -> None:
    assert energy_distance(np.zeros((1, 2)), np.array([[3.0, 4.0]])) == pytest.approx(10.0)
    assert energy_distance(X, X) == pytest.approx(0.0, abs=1e-12)


def test_float32_far_from_zero_loses_nothing() -> None:
    x, y = (torch.as_tensor(a[:, :2]).float() + 4096.0 for a in (X, Y))
    expected = _brute_energy(x.double().numpy(), y.double().numpy())
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("p", [1, 2, 3.5])
@pytest.mark.parametrize("sizes", [(40, 40), (57, 41), (12, 36), (1, 5)])
def test_sliced_wasserstein_in_one_dimension(p: float, sizes: tuple[int, int]) -> None:
    ot = pytest.importorskip("ot", reason="needs POT")
    x, y = X[: sizes[0], :1], Y[: sizes[1], :1]
    expected = ot.wasserstein_1d(x[:, 0], y[:, 0], p=p) ** (1.0 / p)
    assert sliced_wasserstein(x, y, 3, p=p) == pytest.approx(float(expected), rel=1e-10)
    if p == 1:
        assert expected == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("rows", [41, 57])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_sliced_wasserstein_against_pot(
    p: int, rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ot = pytest.importorskip("ot", reason="needs POT")
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", chunk)
    theta = _directions(64, 3, 5).numpy()
    expected = ot.sliced_wasserstein_distance(X[:rows], Y, projections=theta.T, p=p)
    found = sliced_wasserstein(X[:rows], torch.as_tensor(Y), 64, seed=5, p=p)
    assert found == pytest.approx(float(expected), rel=1e-10)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by v costs |theta . v| in each direction; the mean square is |v|^2 / d."""
    shift = np.array([3.0, 0.0, 4.0])
    found = sliced_wasserstein(X, X + shift, 20_000)
    assert found == pytest.approx(5.0 / math.sqrt(3.0), rel=0.02)
    assert sliced_wasserstein(X, X[::-1].copy()) == pytest.approx(0.0, abs=1e-12)
    assert sliced_wasserstein(X, Y, seed=1) == sliced_wasserstein(X, Y, seed=1)
    assert sliced_wasserstein(X, Y, seed=1) != sliced_wasserstein(X, Y, seed=2)


def test_directions_are_uniform() -> None:
    theta = _directions(20_000, 3, 0)
    assert torch.allclose(theta.norm(dim=1), torch.ones(20_000).double())
    # Archimedes: each coordinate of a point on the sphere is uniform on [-1, 1].
    assert stats.kstest(theta[:, 1].numpy(), "uniform", (-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_kernel_distance_by_brute_force(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", chunk)
    x, y = ((rows - Y.mean(0)) / Y.std(0, ddof=1) for rows in (X, Y))
    k = [(a @ b.T / 3 + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(one.sum() - np.trace(one)) / (len(one) * (len(one) - 1)) for one in k[:2]]
    expected = sum(within) - 2.0 * k[2].mean()
    assert kernel_distance(X, Y) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("level", [0.0, 0.1, 1.0 / 3.0, 0.7, 1e6 / 7.0])
def test_kernel_distance_leaves_constant_columns_out(level: float) -> None:
    """They add nothing to products, and one to the number of columns; so does rounding error."""
    rounding = 1.0 + 2e-16 * np.arange(3).repeat(19)
    columns = [np.c_[rows, level * rounding[: len(rows)]] for rows in (X, Y)]
    expected = [np.c_[rows, np.zeros(len(rows))] for rows in (X, Y)]
    assert kernel_distance(*columns) == pytest.approx(kernel_distance(*expected), rel=1e-8)


def test_gaussian_nll_against_scipy() -> None:
    mean, error = gaussian_nll(X, Y)
    fitted = stats.multivariate_normal(X.mean(0), np.cov(X.T, bias=True))
    nll = -fitted.logpdf(Y)
    assert mean == pytest.approx(nll.mean(), rel=1e-10)
    assert error == pytest.approx(stats.sem(nll), rel=1e-10)


@pytest.mark.parametrize(
    "train",
    [X[:3], np.c_[X, X[:, :1] + X[:, 1:2]], np.c_[X, np.ones(57)], np.c_[X, X[:, :1] * 1e6]],
)
def test_gaussian_nll_refuses_a_singular_covariance(train: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"full rank.*singular"):
        gaussian_nll(train, np.zeros((5, train.shape[1])))


def test_errors_of_single_arguments() -> None:
    for arguments in ({"num_projections": 0}, {"p": 0.5}, {"p": math.inf}, {"seed": -1}):
        with pytest.raises(ValueError, match="sliced_wasserstein: expected num_projections >= 1"):
            sliced_wasserstein(X, Y, **arguments)
