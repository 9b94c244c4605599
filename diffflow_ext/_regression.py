"""The loss of models that predict noise, fused for perceptrons on the CPU as paths are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import _backend, trajectory
from ._first_order import first_order

__all__ = ["square_error", "supports", "weighted_square_error"]


def supports(net: Any, x: Tensor) -> bool:
    """Says whether :func:`square_error` can be had for a network and a batch."""
    obstacle = trajectory.data_obstacle(x) or trajectory.network_obstacle(net, x.shape[1])
    return not obstacle


def square_error(net: Any, t: Tensor, x: Tensor, target: Tensor) -> Tensor:
    """Returns |target - net(t, x)|^2 / d for each sample, with t of shape (B,)."""
    how, tensors = _prepared(net, t)
    return _SquareError.apply(how, x, target, *tensors)  # pyright: ignore


def weighted_square_error(
    net: Any, t: Tensor, x: Tensor, target: Tensor, weight: Tensor
) -> Tensor:
    """Returns the sum of the errors times `weight`, (B,); gradients are found on the way."""
    how, tensors = _prepared(net, t)
    return _Weighted.apply(how, weight, x, target, *tensors)  # pyright: ignore


class _How(NamedTuple):
    instructions: str
    activation: str


def _prepared(net: Any, t: Tensor) -> tuple[_How, list[Tensor]]:
    instructions = trajectory.engine_name()
    assert instructions is not None
    with torch.autocast("cpu", enabled=False):
        parts = net.perceptron_at(t)
        return _How(instructions, parts.activation), parts.tensors()


def _run(
    how: _How, weight: Tensor | None, x: Tensor, target: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Returns the errors, and with weights the gradients of x and all tensors."""
    instructions, activation = how
    alive = [tensor.detach().contiguous() for tensor in tensors]
    x, target = x.detach().contiguous(), target.detach().contiguous()
    mlp = trajectory.described(activation, alive)
    samples, dim = x.shape
    sizes = samples, dim, trajectory.tile_size(samples), torch.get_num_threads()
    cost, grads = x.new_empty(samples), list[Tensor]()
    if weight is not None:
        weight = weight.detach().to(torch.float32).contiguous()
        grads = [torch.empty_like(tensor) for tensor in (x, *alive)]
    size = _backend.core.regression_scratch(instructions, sizes, mlp, weight is not None)
    memory = trajectory.scratch_memory(size)
    addresses = [
        trajectory.aligned_start(memory),
        x.data_ptr(),
        target.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        cost.data_ptr(),
        grads[0].data_ptr() if grads else 0,
    ]
    of_weights = [grad.data_ptr() for grad in grads[1:]]
    _backend.core.regression(instructions, sizes, mlp, addresses, of_weights)
    return cost, grads


class _SquareError(Function):
    """Errors of samples; backward evaluates the network again."""

    @staticmethod
    def forward(ctx: Any, how: _How, x: Tensor, target: Tensor, *tensors: Tensor) -> Tensor:
        _refuse_target(ctx.needs_input_grad[2])
        ctx.how = how
        ctx.save_for_backward(x, target, *tensors)
        return _run(how, None, x, target, tensors)[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x, target, *tensors = ctx.saved_tensors
        of_x, *others = _run(ctx.how, grad, x, target, tensors)[1]
        return None, of_x, None, *others


class _Weighted(Function):
    """The weighted sum of errors and its gradients from one pass."""

    @staticmethod
    def forward(
        ctx: Any, how: _How, weight: Tensor, x: Tensor, target: Tensor, *tensors: Tensor
    ) -> Tensor:
        _refuse_target(ctx.needs_input_grad[3])
        wanted = any(ctx.needs_input_grad[2:])
        cost, grads = _run(how, weight if wanted else None, x, target, tensors)
        ctx.save_for_backward(*grads)
        return (cost.double() * weight).sum().to(cost.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        of_x, *others = (
            saved * grad if wanted else None
            for saved, wanted in zip(ctx.saved_tensors, _wanted(ctx.needs_input_grad), strict=True)
        )
        return None, None, of_x, None, *others


def _wanted(needs: Sequence[bool]) -> list[bool]:
    """Of activation, weight, x, target and tensors, leaves x and the tensors."""
    return [needs[2], *needs[4:]]


def _refuse_target(wanted: bool) -> None:
    assert not wanted, "the target is noise, which has no gradient"
