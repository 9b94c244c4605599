"""Sums whose result does not depend on how a batch is split, and products of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def event_sum(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Sums over each sample, shape (B,)."""
    if values.dim() == 1:
        return values if dtype is None else values.to(dtype)
    return values.sum(tuple(range(1, values.dim())), dtype=dtype)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums a product over each sample, shape (B,)."""
    return (a * b).sum(tuple(range(1, a.dim()))) if a.dim() > 1 else a * b


def weighted_sum(loss: Tensor, weight: Tensor | float) -> Tensor:
    """Sums over the batch in float64: the value must not depend on its size."""
    return (loss.double() * weight).sum().to(loss.dtype)


def scaled(tensors: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Returns tensors times a factor; those of its dtype and device by one operation."""
    alike = [
        x
        for x in tensors
        if x is not None and (x.dtype, x.device) == (factor.dtype, factor.device)
    ]
    together = iter(torch._foreach_mul(alike, factor) if alike else ())  # pyright: ignore
    own = {id(x) for x in alike}
    return [None if x is None else next(together) if id(x) in own else x * factor for x in tensors]
