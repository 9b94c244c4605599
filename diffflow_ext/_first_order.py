"""Backward passes that can be taken once, and say so when a second derivative is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["first_order"]


class _Refuse(Function):
    """The identity, whose own derivative is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        raise RuntimeError(
            "diffflow_ext: second derivatives are not supported; differentiate once, or write the "
            "expression with diffflow_ext.reference, whose ops are plain torch"
        )


def first_order(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Makes gradients of `backward` refuse to be differentiated.

    torch's once_differentiable hands out constants where the incoming gradient is a constant, so
    that a gradient penalty would silently train nothing.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            outputs = backward(ctx, *grads)
        return tuple(
            _Refuse.apply(out.detach().requires_grad_()) if isinstance(out, Tensor) else out
            for out in outputs
        )

    return once
