"""Neural spline flows over vectors, from zuko."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .adapters import library


def spline_flow(
    dim: int,
    transforms: int = 3,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    *,
    context_dim: int = 0,
) -> Any:
    r"""Returns an autoregressive flow of monotonic rational-quadratic splines.

    .. math:: z_i = h_{\theta_i}(x_i), \qquad \theta_i = \text{net}(x_1 \dots x_{i-1}, c)

    Splines act within [-5, 5] and are the identity outside, so states should have about unit
    variance. A density costs one pass through each transform's network, a sample `dim` passes.

    Arguments:
        dim: The number of components, >= 1.
        transforms: The number of such maps, >= 1; the order of the components alternates.
        hidden: Widths of the hidden layers of each network.
        bins: Pieces of each spline, >= 2.
        context_dim: The components of a context c, 0 for none.

    Returns:
        A `zuko.flows.NSF`: ``flow()`` is a distribution over vectors (dim,), and
        ``flow.sample_from(z)`` maps standard normals (B, dim) to samples. With a context they are
        ``flow(c)`` and ``flow.sample_from(z, c)``, c of shape (B, context_dim).

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If an argument is out of its range.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Example:
        >>> flow = spline_flow(2)
        >>> flow().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    sizes = [("dim", dim, 1), ("transforms", transforms, 1), ("bins", bins, 2)]
    for name, value, least in (*sizes, ("context_dim", context_dim, 0)):
        if value < least:
            raise ValueError(f"spline_flow: expected {name} >= {least}, got {value}")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"spline_flow: expected hidden widths >= 1, got {tuple(hidden)}")
    flow = library("spline_flow", "zuko").flows.NSF(
        dim, context_dim, transforms=transforms, hidden_features=tuple(hidden), bins=bins
    )
    flow.context_dim = context_dim
    # Unlike a closure, a partial can be copied and pickled with its flow.
    flow.sample_from = functools.partial(_sample_from, flow, dim)
    return flow


def _sample_from(flow: Any, dim: int, z: Tensor, context: Tensor | None = None) -> Tensor:
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"spline_flow: expected z of shape (B, {dim}), got {tuple(z.shape)}")
    return flow(context).transform.inv(z)
