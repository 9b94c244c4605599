"""What the autograd functions of all ops share: which kernel, what is saved, sums of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._operators import operators
from .noise import NoiseKey

Scalar = float | Tensor
Key = NoiseKey | Tensor


def kernel(name: str) -> Any:
    """Returns the operator while a graph is traced, the plain function otherwise."""
    return getattr(operators if torch.compiler.is_compiling() else _kernels, name)


def traceable_scalar(value: Scalar, x: Tensor) -> Scalar:
    """Returns a number as a tensor while a graph is traced: its value must not be compiled in."""
    if isinstance(value, Tensor) or not torch.compiler.is_compiling():
        return value
    return torch.tensor(value, dtype=x.dtype, device=x.device)


def traceable_key(key: Key, device: torch.device) -> Key:
    """Returns a key as a tensor while a graph is traced."""
    if isinstance(key, NoiseKey) and torch.compiler.is_compiling():
        return key.to_tensor(device)
    return key


def save(ctx: Any, **values: Any) -> None:
    """Saves tensors where autograd watches them, everything else on the context."""
    ctx.names = [name for name, value in values.items() if isinstance(value, Tensor)]
    ctx.plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    ctx.save_for_backward(*(values[name] for name in ctx.names))


def saved(ctx: Any) -> dict[str, Any]:
    """Returns by name what `save` was given."""
    return {**ctx.plain, **dict(zip(ctx.names, ctx.saved_tensors, strict=True))}


def root(value: Scalar) -> Scalar:
    """Returns the square root of a number or a tensor."""
    return value.sqrt() if isinstance(value, Tensor) else value**0.5


def scalar_grad(per_sample: Tensor, scalar: Scalar) -> Tensor:
    """Sums a gradient over the batch, in float64, into the shape of a tensor scalar."""
    assert isinstance(scalar, Tensor)
    return per_sample.double().sum().to(scalar.dtype).reshape(scalar.shape)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums a product over each sample, shape (B,)."""
    return (a * b).sum(tuple(range(1, a.dim()))) if a.dim() > 1 else a * b
