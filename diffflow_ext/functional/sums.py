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
    """Returns tensors times a factor, by one operation if all have its dtype and device."""
    present = [x for x in tensors if x is not None]
    if any((x.dtype, x.device) != (factor.dtype, factor.device) for x in present):
        return [None if x is None else x * factor for x in tensors]
    products = iter(torch._foreach_mul(present, factor) if present else ())  # pyright: ignore
    return [None if x is None else next(products) for x in tensors]
