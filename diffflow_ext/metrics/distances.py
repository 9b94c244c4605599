r"""How far samples are from data, and the likelihood that a Gaussian reaches.

Distances are between the empirical distributions of two samples, :math:`x` of size n and
:math:`y` of size m, in the units of the data. They don't vanish for two samples of one
distribution: report the distance between two halves of the data beside them.
"""

from __future__ import annotations

import math
import operator

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from .points import Points, chunks, distances, pair

DEGREE = 3  # of the kernel


def energy_distance(x: Points, y: Points) -> float:
    r"""Returns the squared energy distance of two samples.

    .. math:: 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    with Euclidean norms and no root taken. It is the V-statistic, in which a point is also paired
    with itself: the exact distance of the two empirical distributions, never negative, about
    :math:`E|X - X'| (1/n + 1/m)` for two samples of one distribution. Sums are in float64, in time
    O((n + m)^2 d) and bounded memory.

    Arguments:
        x: The first sample, with shape :math:`(n, d)`.
        y: The second, with shape :math:`(m, d)`.

    Returns:
        The squared distance, in data units.

    Raises:
        TypeError: If an argument is neither a tensor nor an array of real numbers.
        ValueError: If shapes don't fit, values aren't finite, or a sample is too small.

    References:
        | Energy statistics (Szekely & Rizzo, 2013)
        | https://doi.org/10.1016/j.jspi.2013.03.018
    """
    a, b = pair("energy_distance", x, y, 1)
    n, m = len(a), len(b)
    cross = sum(float(distances(rows, b).sum()) for _, rows in chunks(a, m)) / (n * m)
    return 2.0 * cross - _distances_within(a) / n**2 - _distances_within(b) / m**2


def _distances_within(x: Tensor) -> float:
    """Sum over ordered pairs: each chunk against itself once, against all later rows twice."""
    total = 0.0
    for start, rows in chunks(x, len(x)):
        total += float(distances(rows, rows).sum())
        total += 2.0 * float(distances(rows, x[start + len(rows) :]).sum())
    return total


def sliced_wasserstein(
    x: Points, y: Points, num_projections: int = 256, seed: int = 0, p: float = 2
) -> float:
    r"""Returns the sliced Wasserstein distance of two samples.

    .. math:: \Big( \frac1K \sum_{k=1}^K \int_0^1
              \big| F^{-1}_{\theta_k x}(q) - F^{-1}_{\theta_k y}(q) \big|^p dq \Big)^{1/p}

    over K random unit directions :math:`\theta_k`. The integral over quantiles is exact, for
    samples of equal or unequal size. In one dimension this is the Wasserstein distance itself.

    Arguments:
        x: The first sample, with shape :math:`(n, d)`.
        y: The second, with shape :math:`(m, d)`.
        num_projections: The number of directions K, at least 1.
        seed: The seed of the directions, >= 0; compare only distances of one seed.
        p: The order, at least 1.

    Returns:
        The distance, in data units, computed in float64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes don't fit, values aren't finite, or a number is out of range.

    References:
        | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
        | https://doi.org/10.1007/s10851-014-0506-3
    """
    a, b = pair("sliced_wasserstein", x, y, 1)
    count = operator.index(num_projections)
    if count < 1 or not (1.0 <= p < math.inf) or seed < 0:
        raise ValueError(
            "sliced_wasserstein: expected num_projections >= 1, finite p >= 1 and seed >= 0, got "
            f"num_projections={count}, p={p}, seed={seed}; mend the one out of range"
        )
    width, index_a, index_b = (part.to(a.device) for part in _quantile_cells(len(a), len(b)))
    total = 0.0
    for _, theta in chunks(_directions(count, a.shape[1], seed).to(a.device), len(a) + len(b)):
        quantiles_a = (theta @ a.T).sort(dim=1).values[:, index_a]
        quantiles_b = (theta @ b.T).sort(dim=1).values[:, index_b]
        total += float(((quantiles_a - quantiles_b).abs().pow(p) @ width).sum())
    return (total / count) ** (1.0 / p)


def _directions(count: int, dim: int, seed: int) -> Tensor:
    draws = np.random.Generator(np.random.PCG64(seed)).standard_normal((count, dim))
    return torch.from_numpy(draws / np.linalg.norm(draws, axis=1, keepdims=True))


def _quantile_cells(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Intervals on which both quantile functions are constant: width, and the order statistics."""
    # In units of 1 / (n m) all break points are integers, so that none is lost to rounding.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    width = np.diff(ends, prepend=0) / (n * m)
    parts = (width, (ends - 1) // m, (ends - 1) // n)
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1]), torch.from_numpy(parts[2])


def kernel_distance(x: Points, y: Points) -> float:
    r"""Returns the squared maximum mean discrepancy of two samples, without bias.

    .. math:: E\, k(X, X') + E\, k(Y, Y') - 2 E\, k(X, Y), \qquad
              k(a, b) = \Big(\frac{a \cdot b}d + 1\Big)^3

    over pairs of different rows, after columns have been shifted and scaled so that :math:`y` has
    mean 0 and variance 1: unscaled features of a network give it no meaningful unit. Its mean is
    zero for two samples of one distribution, whatever their sizes, so that it may be negative;
    prefer it to `frechet_distance` where rows are few or columns many. It's what is called KID
    where the features are the standardised ones of the Inception network, and only there.

    Arguments:
        x: The samples, with shape :math:`(n, d)`, n >= 2.
        y: The data, with shape :math:`(m, d)`, m >= 2; they set the scale. A column in which
            they are constant is only shifted.

    Returns:
        The squared distance, dimensionless, of either sign. All pairs count, there are no random
        subsets. Sums are in float64, in time O((n + m)^2 d) and bounded memory.

    Raises:
        TypeError: If an argument is neither a tensor nor an array of real numbers.
        ValueError: If shapes don't fit, values aren't finite, or a sample is too small.

    References:
        | Demystifying MMD GANs (Binkowski et al., 2018)
        | https://arxiv.org/abs/1801.01401
    """
    a, b = pair("kernel_distance", x, y, 2)
    mean, scale = b.mean(dim=0), b.std(dim=0)
    # The deviation of a constant column is rounding error, if not zero.
    scale = scale.where(scale > 1e-12 * mean.abs(), scale.new_ones(()))
    a, b = (a - mean) / scale, (b - mean) / scale
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _kernel_trace(a)) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _kernel_trace(b)) / (m * (m - 1))
    return within_a + within_b - 2.0 * _kernel_sum(a, b) / (n * m)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    parts = (rows @ b.T for _, rows in chunks(a, len(b)))
    return sum(float((part / a.shape[1] + 1.0).pow(DEGREE).sum()) for part in parts)


def _kernel_trace(a: Tensor) -> float:
    return float((a.square().mean(dim=1) + 1.0).pow(DEGREE).sum())


def gaussian_nll(train: Points, test: Points) -> tuple[float, float]:
    r"""Returns the test NLL of the Gaussian with the training data's mean and covariance.

    .. math:: \tfrac12 (y - m)^T C^{-1} (y - m) + \tfrac12 \log\det C + \tfrac d2 \log 2\pi

    The least that a model has to beat. :math:`m` and :math:`C` are those of maximum likelihood.

    Arguments:
        train: The rows to fit, with shape :math:`(n, d)`.
        test: The rows to score, with shape :math:`(m, d)`, m >= 2.

    Returns:
        The mean over the test rows and its standard error, both in nats.

    Raises:
        TypeError: If an argument is neither a tensor nor an array of real numbers.
        ValueError: If shapes don't fit, values aren't finite, or the covariance is singular.
    """
    fit, rows = pair("gaussian_nll", train, test, 2, names=("train", "test"))
    mean = fit.mean(dim=0)
    # torch gives a single number for a single column.
    covariance = fit.T.cov(correction=0).reshape(fit.shape[1], fit.shape[1])
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal()
    # A column that repeats others leaves a pivot of rounding error, not always an exact zero.
    if int(failed) or bool((pivots <= 1e-7 * covariance.diagonal().sqrt()).any()):
        raise ValueError(
            f"gaussian_nll: expected a covariance of full rank, {len(fit)} rows of dimension "
            f"{fit.shape[1]} give a singular one; add rows, or leave out columns that are "
            "constant or repeat others"
        )
    nll = -MultivariateNormal(mean, scale_tril=factor, validate_args=False).log_prob(rows)
    return float(nll.mean()), float(nll.std(correction=1)) / math.sqrt(len(nll))
