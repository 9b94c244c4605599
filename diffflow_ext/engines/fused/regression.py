"""The loss of models that predict noise, fused for perceptrons on the CPU as paths are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from diffflow_ext.functional.core import core
from diffflow_ext.functional.operator import first_order
from diffflow_ext.functional.sums import weighted_sum

from ..choice import Engine, check_engine, refuse
from . import perceptrons, workspace
from .workspace import Parts, address

__all__ = ["Regression", "prepare", "square_error", "weighted_square_error"]


class Regression(NamedTuple):
    """A network that the engine can take, at a time of each sample's own.

    Arguments:
        parts: The network at all distinct times.
        time_of: The index of each sample's time, shape (B,), int64.
        instructions: The engine's name.
    """

    parts: Parts
    time_of: Tensor
    instructions: str


def prepare(op: str, engine: Engine, net: Any, t: Tensor, x: Tensor) -> Regression | None:
    """Returns a call of the fused engine, None where torch computes.

    Raises:
        ValueError: If the name is unknown, or "fused" is asked for and cannot be had.
    """
    check_engine(op, engine)
    if engine == "autograd":
        return None
    found = _call_or_reason(net, t, x)
    if isinstance(found, Regression):
        return found
    refuse(op, engine, f"eps_net: {found}")
    return None


def _call_or_reason(net: Any, t: Tensor, x: Tensor) -> Regression | str:
    reason = workspace.data_obstacle(x)
    if reason:
        return reason
    # Chains have fewer times than a batch has samples, and an embedding costs as much as the rest.
    times, time_of = t.to(x.dtype).unique(return_inverse=True)
    parts = perceptrons.parts_or_reason(net, times, x)
    if isinstance(parts, str):
        return parts
    instructions = workspace.engine_name()
    assert instructions is not None
    return Regression(parts, time_of, instructions)


def square_error(call: Regression, x: Tensor, target: Tensor) -> Tensor:
    """Returns |target - net(t, x)|^2 / d for each sample; no gradient flows into the target."""
    return _SquareError.apply(call, x, target, *call.parts.tensors)  # pyright: ignore


def weighted_square_error(call: Regression, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the sum of the errors times `weight`, (B,); gradients are found on the way."""
    tensors = call.parts.tensors
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors))):
        return weighted_sum(_run(call, None, x, target, tensors)[0], weight)
    return _Weighted.apply(call, weight, x, target, *tensors)  # pyright: ignore


def _run(
    call: Regression, weight: Tensor | None, x: Tensor, target: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Returns the errors, and with weights the gradients of x and all tensors."""
    parts = Parts(call.parts.activation, list(tensors)).contiguous()
    x, target = x.detach().contiguous(), target.detach().contiguous()
    samples, dim = x.shape
    tile, threads = workspace.tile_size(samples), workspace.num_threads(samples)
    sizes = samples, dim, len(parts.tensors[0]), tile, threads
    head = call.instructions, sizes, parts.described()
    cost, grads = x.new_empty(samples), list[Tensor]()
    if weight is not None:
        weight = weight.detach().to(torch.float32).contiguous()
        grads = [x.new_empty(tensor.shape) for tensor in (x, *tensors)]
    memory = workspace.scratch_memory(core.regression_scratch(*head, weight is not None))
    addresses = [
        workspace.aligned_start(memory),
        x.data_ptr(),
        target.data_ptr(),
        address(weight),
        cost.data_ptr(),
        grads[0].data_ptr() if grads else 0,
        call.time_of.data_ptr(),
    ]
    core.regression(*head, addresses, [grad.data_ptr() for grad in grads[1:]])
    return cost, grads


class _SquareError(Function):
    """Errors of samples; backward evaluates the network again."""

    @staticmethod
    def forward(ctx: Any, call: Regression, x: Tensor, target: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, target, *tensors)
        return _run(call, None, x, target, tensors)[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x, target, *tensors = ctx.saved_tensors
        of_x, *others = _run(ctx.call, grad, x, target, tensors)[1]
        return None, of_x, None, *others


class _Weighted(Function):
    """The weighted sum of errors and its gradients from one pass."""

    @staticmethod
    def forward(
        ctx: Any, call: Regression, weight: Tensor, x: Tensor, target: Tensor, *tensors: Tensor
    ) -> Tensor:
        cost, grads = _run(call, weight, x, target, tensors)
        ctx.save_for_backward(*grads)
        return weighted_sum(cost, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        wanted = [ctx.needs_input_grad[2], *ctx.needs_input_grad[4:]]
        of_x, *others = (
            saved * grad if want else None
            for saved, want in zip(ctx.saved_tensors, wanted, strict=True)
        )
        return None, None, of_x, None, *others
