"""The kernel distance: the squared maximum mean discrepancy with a cubic kernel, unbiased."""

from __future__ import annotations

from torch import Tensor

from .._points import Points, chunks, pair

__all__ = ["kernel_distance"]

CHUNK_ELEMENTS = 1 << 22  # kernel values held at a time: 32 MiB
DEGREE = 3


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
    within_a = (_sum(a, a) - _sum_of_equals(a)) / (n * (n - 1))
    within_b = (_sum(b, b) - _sum_of_equals(b)) / (m * (m - 1))
    return within_a + within_b - 2.0 * _sum(a, b) / (n * m)


def _sum(a: Tensor, b: Tensor) -> float:
    parts = (rows @ b.T for _, rows in chunks(a, len(b), CHUNK_ELEMENTS))
    return sum(float((part / a.shape[1] + 1.0).pow(DEGREE).sum()) for part in parts)


def _sum_of_equals(a: Tensor) -> float:
    return float((a.square().mean(dim=1) + 1.0).pow(DEGREE).sum())
