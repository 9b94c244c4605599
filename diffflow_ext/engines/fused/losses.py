"""Losses of compiled code as autograd functions.

One call computes losses, or losses and the gradients of their weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffflow_ext.functional.operator import first_order
from diffflow_ext.functional.sums import scaled, weighted_sum

#: Returns the losses for given inputs, (B,), and with weights, (B,), the gradients of all inputs.
Compute = Callable[[Tensor | None, Sequence[Tensor]], tuple[Tensor, list[Tensor | None]]]


def sample_losses(compute: Compute, *inputs: Tensor) -> Tensor:
    """Returns the loss of each sample; the backward pass computes them again, with weights."""
    return _SampleLosses.apply(compute, *inputs)  # pyright: ignore[reportReturnType]


def weighted_loss(compute: Compute, weight: Tensor, *inputs: Tensor) -> Tensor:
    """Returns the weighted sum of losses; gradients come from the same pass."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        return weighted_sum(compute(None, inputs)[0], weight)
    return _WeightedLoss.apply(compute, weight, *inputs)  # pyright: ignore[reportReturnType]


class _SampleLosses(Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, *inputs: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return compute(None, inputs)[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        inputs = ctx.saved_tensors
        _, grads = ctx.compute(grad, inputs)
        dtypes = [tensor.dtype for tensor in inputs]
        return None, *_wanted(grads, ctx.needs_input_grad[1:], dtypes)


class _WeightedLoss(Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, weight: Tensor, *inputs: Tensor) -> Tensor:
        losses, grads = compute(weight, inputs)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return weighted_sum(losses, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        wanted = _wanted(ctx.saved_tensors, ctx.needs_input_grad[2:], ctx.dtypes)
        return None, None, *scaled(wanted, grad)


def _wanted(
    grads: Sequence[Tensor | None], needed: Sequence[bool], dtypes: Sequence[torch.dtype]
) -> list[Tensor | None]:
    """Returns the gradients that are needed, in the dtypes of their inputs."""
    return [
        None if grad is None or not need else grad if grad.dtype == dtype else grad.to(dtype)
        for grad, need, dtype in zip(grads, needed, dtypes, strict=True)
    ]
