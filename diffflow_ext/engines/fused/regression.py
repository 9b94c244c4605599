"""The loss of models that predict noise, for perceptrons on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffflow_ext.functional.core import address, core

from ..choice import Engine, check_engine, refuse
from . import perceptrons, workspace
from .losses import sample_losses, weighted_loss
from .workspace import Parts


class Regression(NamedTuple):
    """A perceptron for the fused engine, with one time for each sample.

    Arguments:
        parts: The network at all distinct times.
        time_of: The index of each sample's time, shape (B,), int64.
        instructions: A name of `core.instructions()`.
    """

    parts: Parts
    time_of: Tensor
    instructions: str

    def compute(
        self, weight: Tensor | None, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the errors, and with weights the gradients of x and all tensors."""
        x, target = (tensor.detach().contiguous() for tensor in inputs[:2])
        parts = self.parts.with_tensors(inputs[2:]).contiguous()
        cost, problem = x.new_empty(len(x)), core.RegressionProblem()
        problem.samples, problem.dim = x.shape
        problem.times = len(parts.embedding)
        problem.work = workspace.work_on(len(x), self.instructions)
        problem.mlp, problem.time_of = parts.mlp(), address(self.time_of)
        problem.x, problem.target, problem.cost = map(address, (x, target, cost))
        size = core.regression_scratch_bytes(self.instructions, problem, weight is not None)
        _memory = workspace.lend_scratch(problem, size)
        if weight is None:
            core.run_regression(self.instructions, problem)
            return cost, []
        weight = weight.detach().to(torch.float32).contiguous()
        grad_x, grads = torch.empty_like(x), parts.empty_like()
        problem.weight, problem.grad_x = address(weight), address(grad_x)
        problem.grads = grads.gradients()
        core.run_regression(self.instructions, problem)
        return cost, [grad_x, None, *grads.tensors]


def prepare(
    op: str, engine: Engine, net: Any, t: Tensor, x: Tensor, name: str = "eps_net"
) -> Regression | None:
    """Returns a call of the fused engine, None if torch computes.

    Raises:
        ValueError: If the name is unknown, or "fused" is requested and not possible.
    """
    check_engine(op, engine)
    if engine == "autograd":
        return None
    fused = _regression_or_reason(net, t, x)
    if isinstance(fused, Regression):
        return fused
    refuse(op, engine, f"{name}: {fused}")
    return None


def _regression_or_reason(net: Any, t: Tensor, x: Tensor) -> Regression | str:
    reason = workspace.data_obstacle(x)
    if reason:
        return reason
    # Samples share times in a chain, and an embedding costs as much as the rest of the network.
    times, time_of = t.to(x.dtype).unique(return_inverse=True)
    parts = perceptrons.parts_or_reason(net, times, x)
    if isinstance(parts, str):
        return parts
    instructions = workspace.instructions_name()
    assert instructions is not None
    return Regression(parts, time_of, instructions)


def square_error(call: Regression, x: Tensor, target: Tensor) -> Tensor:
    """Returns |target - net(t, x)|^2 / d for each sample; no gradient flows into the target."""
    return sample_losses(call.compute, x, target, *call.parts.tensors)


def weighted_square_error(call: Regression, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the sum of the errors times `weight`, (B,), and computes its gradients."""
    return weighted_loss(call.compute, weight, x, target, *call.parts.tensors)
