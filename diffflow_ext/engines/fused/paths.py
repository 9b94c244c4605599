r"""Whole paths in one call: the fused engine for perceptrons on the CPU.

Samples do not interact. A tile of some forty samples is carried through all steps of the forward
SDE and back through the adjoint by one thread, with the networks' weights and activations in its
cache; what `adjoint` does step by step over the whole batch happens here without leaving the
compiled code. Noise, losses and gradients are those of
:mod:`diffflow_ext.engines.adjoint.losses`: the
same normals to the bit, the same formulas, sums in another order.

Gradients of the weights are added up in the order of the tiles, whose size depends on the batch
alone: what happens here does not depend on the number of threads. (Time embeddings that are not of
:class:`diffflow_ext.nets.FourierMLP` are torch's, whose last bits may.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffflow_ext.functional.core import core
from diffflow_ext.functional.noise import PURPOSES, NoiseKey
from diffflow_ext.functional.operator import first_order
from diffflow_ext.functional.sums import weighted_sum

from ..problem import PathProblem
from . import paths_cuda, workspace
from .workspace import Parts, Rounding, address

__all__ = [
    "FusedCall",
    "FusedPaths",
    "fused_encode",
    "fused_loss",
    "fused_mean_loss",
    "fused_path",
    "fused_sample",
]


_LAST_STEPS = {"noisy": 0, "mean": 1, "tweedie": 2}


#: Bytes of activations that a thread keeps; with more, it evaluates the drift a second time.
KEPT_BYTES = 32 * 2**20


#: Vectors are at most 16 floats wide, and layers are padded to pairs of them.
_PADDING = 32


@dataclass
class FusedCall:
    """A problem that the fused engine can take: its networks at all times, in torch's graph."""

    p: PathProblem
    drift: Parts
    score: Parts
    instructions: str
    on_gpu: Rounding | None = None

    def tensors(self) -> list[Tensor]:
        """Returns the tensors of both networks."""
        return [*self.drift.tensors, *self.score.tensors]

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[Parts, Parts]:
        """Returns both networks with other tensors, contiguous and without graphs."""
        cut = len(self.drift.tensors)
        drift = Parts(self.drift.activation, list(tensors[:cut]))
        score = Parts(self.score.activation, list(tensors[cut:]))
        return drift.contiguous(), score.contiguous()

    def sizes(self, x: Tensor) -> tuple[Any, ...]:
        """Returns what the core is told of sizes."""
        samples, dim = x.shape
        tile, n = workspace.tile_size(samples), self.p.num_steps
        width = math.ceil(self.drift.tensors[0].shape[1] / _PADDING) * _PADDING
        kept = 8 * (n + 1) * (self.drift.depth + 1) * tile * width
        return samples, dim, n, tile, kept <= KEPT_BYTES, workspace.num_threads(samples)

    def scratch_bytes(self, x: Tensor, *, gradients: bool) -> int:
        """Returns how much memory the engine works in."""
        mlps = self.drift.described(), self.score.described()
        return core.trajectory_scratch(self.instructions, self.sizes(x), *mlps, gradients)


def fused_mean_loss(call: FusedCall, x0: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
    """Returns sum_b weight_b L_b (weight None: the mean); its gradients are found on the way."""
    if weight is None:
        weight = torch.full((x0.shape[0],), 1.0 / x0.shape[0], device=x0.device)
    tensors = call.tensors()
    if not _wanted(x0, g, *tensors):
        return weighted_sum(_run_loss(call, None, x0, g, tensors)[0], weight)
    return _MeanLoss.apply(call, weight, x0, g, *tensors)  # pyright: ignore[reportReturnType]


def fused_loss(call: FusedCall, x0: Tensor, g: Tensor) -> Tensor:
    """Returns L for each sample; the backward pass walks the paths again."""
    return _Loss.apply(call, x0, g, *call.tensors())  # pyright: ignore[reportReturnType]


def fused_path(call: FusedCall, x0: Tensor, g: Tensor) -> Tensor:
    """Returns all states of forward paths, shape (N+1, B, dim)."""
    states = x0.new_empty((call.p.num_steps + 1, *x0.shape))
    _run_path(call, x0, g, states, None)
    return states


def fused_encode(call: FusedCall, x0: Tensor, g: Tensor) -> Tensor:
    """Returns the ends of forward paths, shape (B, dim)."""
    last = x0.new_empty(x0.shape)
    _run_path(call, x0, g, None, last)
    return last


def fused_sample(
    call: FusedCall,
    x_last: Tensor,
    g: Tensor,
    stochasticity: float,
    last_step: str,
    states: Tensor | None,
) -> Tensor:
    """Returns x_0 of reverse paths from x_N; writes all states where asked."""
    x_last = x_last.contiguous()
    first = x_last.new_empty(x_last.shape)
    call_core = _Core(call, x_last, g, call.tensors(), gradients=False, purpose="reverse")
    core.trajectory_sample(
        *call_core.arguments,
        [x_last.data_ptr(), first.data_ptr(), address(states)],
        float(stochasticity),
        _LAST_STEPS[last_step],
    )
    return first


class FusedPaths:
    """Losses and paths of a problem; see :class:`diffflow_ext.engines.paths.PathEngine`."""

    def __init__(
        self,
        problem: PathProblem,
        drift_parts: Parts,
        score_parts: Parts,
        instructions: str,
        rounding: Rounding | None = None,
    ) -> None:
        self.problem = problem
        self.call = FusedCall(problem, drift_parts, score_parts, instructions, rounding)

    def scratch_bytes(self, x: Tensor) -> int:
        """Returns how much memory the engine works in."""
        return self.call.scratch_bytes(x, gradients=True)

    def losses(self, x0: Tensor) -> Tensor:
        """Returns the loss of each sample."""
        return fused_loss(self.call, x0, self.problem.g)

    def mean_loss(self, x0: Tensor, weight: Tensor | None) -> Tensor:
        """Returns the weighted sum of losses, the mean without weights."""
        return fused_mean_loss(self.call, x0, self.problem.g, weight)

    def forward(self, x0: Tensor, states: Tensor | None = None) -> Tensor:
        """Returns x_N from x_0."""
        if states is None:
            return fused_encode(self.call, x0, self.problem.g)
        states.copy_(fused_path(self.call, x0, self.problem.g))
        return states[-1]

    def reverse(
        self, x_last: Tensor, stochasticity: float, last_step: str, states: Tensor | None = None
    ) -> Tensor:
        """Returns x_0 from x_N."""
        g = self.problem.g
        return fused_sample(self.call, x_last, g, stochasticity, last_step, states)


def _wanted(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Core:
    """The arguments of the core, and what must live until it returns."""

    def __init__(
        self,
        call: FusedCall,
        x: Tensor,
        g: Tensor,
        tensors: Sequence[Tensor],
        *,
        gradients: bool,
        purpose: str,
    ) -> None:
        p, key = call.p, call.p.key
        assert isinstance(key, NoiseKey)
        drift, score = call.with_tensors(tensors)
        dt = torch.tensor(p.steps, dtype=torch.float32, device="cpu")
        at = g.detach().to(torch.float32).contiguous()
        memory = workspace.scratch_memory(call.scratch_bytes(x, gradients=gradients))
        self.arguments = (
            call.instructions,
            call.sizes(x),
            drift.described(),
            score.described(),
            (dt.data_ptr(), at.data_ptr(), workspace.aligned_start(memory)),
            (key.seed & (2**64 - 1), key.stream, PURPOSES[purpose], p.sample_offset),
        )
        self._alive = (drift, score, dt, at, memory, x)


def _run_path(
    call: FusedCall, x0: Tensor, g: Tensor, states: Tensor | None, last: Tensor | None
) -> None:
    x0 = x0.contiguous()
    call_core = _Core(call, x0, g, call.tensors(), gradients=False, purpose="forward")
    addresses = [0, x0.data_ptr(), 0, address(states), address(last), 0, 0]
    core.trajectory_loss(*call_core.arguments, addresses, [], [])


def _run_loss(
    call: FusedCall, weight: Tensor | None, x0: Tensor, g: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Returns the losses, and with weights the gradients of x0, g and all tensors."""
    x0 = x0.detach().contiguous()
    if call.on_gpu is not None:
        nets, at = call.with_tensors(tensors), g.detach().to(torch.float32).contiguous()
        return paths_cuda.GpuRun(call.p, *nets, call.on_gpu, at).loss(weight, x0)
    cost, grads = x0.new_empty(x0.shape[0]), list[Tensor]()
    if weight is not None:
        weight = weight.detach().to(torch.float32).contiguous()
        grads = [x0.new_empty(x0.shape), g.new_empty(g.shape, dtype=torch.float64)]
        grads += [x0.new_empty(tensor.shape) for tensor in tensors]
    call_core = _Core(call, x0, g, tensors, gradients=weight is not None, purpose="forward")
    addresses = [
        address(weight),
        x0.data_ptr(),
        cost.data_ptr(),
        0,
        0,
        grads[0].data_ptr() if grads else 0,
        grads[1].data_ptr() if grads and call.p.learned_g else 0,
    ]
    of_nets, cut = [grad.data_ptr() for grad in grads[2:]], len(call.drift.tensors)
    core.trajectory_loss(*call_core.arguments, addresses, of_nets[:cut], of_nets[cut:])
    return cost, grads


class _MeanLoss(Function):
    """Weighted sum of losses; forward finds the gradients too, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, call: FusedCall, weight: Tensor, x0: Tensor, g: Tensor, *tensors: Tensor
    ) -> Tensor:
        cost, grads = _run_loss(call, weight, x0, g, tensors)
        ctx.save_for_backward(*grads)
        ctx.dtype = g.dtype
        return weighted_sum(cost, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        return None, None, *_as_wanted(ctx, ctx.saved_tensors, 2, grad)


class _Loss(Function):
    """Loss of each sample; backward runs the paths again with its weights."""

    @staticmethod
    def forward(ctx: Any, call: FusedCall, x0: Tensor, g: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call, ctx.dtype = call, g.dtype
        ctx.save_for_backward(x0, g, *tensors)
        return _run_loss(call, None, x0, g, tensors)[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x0, g, *tensors = ctx.saved_tensors
        _, grads = _run_loss(ctx.call, grad, x0, g, tensors)
        return None, *_as_wanted(ctx, grads, 1, None)


def _as_wanted(
    ctx: Any, grads: Sequence[Tensor], skipped: int, factor: Tensor | None
) -> list[Tensor | None]:
    """Returns gradients where they are wanted, g's in its own dtype, scaled."""
    out: list[Tensor | None] = []
    for i, grad in enumerate(grads):
        if not ctx.needs_input_grad[skipped + i]:
            out.append(None)
            continue
        value = grad.to(ctx.dtype) if i == 1 else grad
        out.append(value if factor is None else value * factor)
    return out
