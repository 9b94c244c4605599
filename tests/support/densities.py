"""Truths that a flow's density is compared with: its integral, and its map's Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mass(log_prob: Callable[[Tensor], Tensor], dim: int, count: int, half: float = 14.0) -> float:
    """The integral of a density over a cube, by the midpoint rule."""
    width = 2 * half / count
    axis = -half + width * (torch.arange(count, dtype=torch.float64) + 0.5)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    with torch.no_grad():
        return float(log_prob(points).exp().sum()) * width**dim


def jacobian_log_det(map_to: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log |det dz/dx| of each sample, from the whole Jacobian."""
    rows = []
    for one in x:
        jacobian = torch.autograd.functional.jacobian(lambda y: map_to(y[None])[0].flatten(), one)
        rows.append(torch.linalg.slogdet(jacobian.reshape(one.numel(), -1))[1])
    return torch.stack(rows)
