"""Backward passes that can be taken once, and say so where a second derivative is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_order"]


def first_order(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Makes a backward pass refuse `create_graph=True`.

    torch's once_differentiable hands out constants where the incoming gradient is a constant, so
    that a gradient penalty would silently train nothing.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "diffflow_ext: second derivatives are not supported; differentiate without "
                "create_graph=True, or write the expression in plain torch, as "
                "diffflow_ext.reference does"
            )
        return backward(ctx, *grads)

    return once
