r"""Whole paths in one call: the fused engine for perceptrons on the CPU.

Samples are independent. One thread takes a tile of about 40 samples through all steps of the
forward SDE and back through the adjoint, with the networks' weights and activations in its cache.
The noise is that of :mod:`diffflow_ext.engines.adjoint` to the bit; losses and gradients have the
same formulas, with sums in another order.

Gradients of the weights are summed in the order of the tiles, whose size depends only on the
batch. Results do not depend on the number of threads, except for time embeddings that torch
computes (those of networks other than :class:`diffflow_ext.nets.FourierMLP`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.functional.core import address, core
from diffflow_ext.functional.noise import PURPOSES, noise_source

from ..problem import PathProblem
from . import workspace
from .losses import sample_losses, weighted_loss
from .paths_cuda import GpuRun
from .workspace import Parts, Rounding

#: Most bytes of activations that a thread stores; beyond, it evaluates the drift a second time.
KEPT_BYTES = 32 * 2**20


class FusedPaths:
    """Losses and paths of one problem; states are float32 of shape (B, dim).

    Arguments:
        problem: The problem.
        drift_parts: The drift at all times.
        score_parts: The score at all times.
        instructions: The set of instructions, a name of `core.instructions()`.
        rounding: How the kernels of a GPU round factors; None for the CPU.
    """

    def __init__(
        self,
        problem: PathProblem,
        drift_parts: Parts,
        score_parts: Parts,
        instructions: str,
        rounding: Rounding | None = None,
    ) -> None:
        self.problem = problem
        self.drift, self.score = drift_parts, score_parts
        self.instructions = instructions
        self.rounding: Rounding | None = rounding

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of both networks."""
        return [*self.drift.tensors, *self.score.tensors]

    def losses(self, x0: Tensor) -> Tensor:
        """Returns the loss of each sample, (B,); the backward pass computes the paths again."""
        return sample_losses(self._compute, x0, self.problem.g, *self.tensors)

    def mean_loss(self, x0: Tensor, weight: Tensor | None) -> Tensor:
        """Returns sum_b weight_b L_b, by default the mean; gradients come from the same pass."""
        if weight is None:
            weight = torch.full((x0.shape[0],), 1.0 / x0.shape[0], device=x0.device)
        return weighted_loss(self._compute, weight, x0, self.problem.g, *self.tensors)

    def forward(self, x0: Tensor, states: Tensor | None = None) -> Tensor:
        """Returns x_N from x_0; writes all states into `states`, (N+1, B, dim), if given."""
        x0 = x0.contiguous()
        if self.rounding is not None:
            path = self.on_gpu(self.problem.g, self.tensors).path(x0)
            return path[-1] if states is None else states.copy_(path)[-1]
        problem, _alive = self._core_problem(x0, self.problem.g, self.tensors)
        x_last = torch.empty_like(x0)
        problem.x0, problem.x_last, problem.states = map(address, (x0, x_last, states))
        core.run_paths(self.instructions, problem)
        return x_last

    def reverse(
        self, x_last: Tensor, stochasticity: float, last_step: str, states: Tensor | None = None
    ) -> Tensor:
        """Returns x_0 from x_N; writes all states into `states`, (N+1, B, dim), if given."""
        if self.rounding is not None:
            raise RuntimeError(
                "FusedPaths.reverse: expected a problem on the CPU, got one on a GPU, where there "
                "are no reverse paths; use AdjointPaths"
            )
        x_last = x_last.contiguous()
        problem, _alive = self._core_problem(
            x_last, self.problem.g, self.tensors, purpose="reverse"
        )
        x0 = torch.empty_like(x_last)
        problem.x0, problem.x_last, problem.states = map(address, (x0, x_last, states))
        problem.stochasticity = stochasticity
        problem.last_step = getattr(core.LastStep, last_step)
        core.run_reverse_paths(self.instructions, problem)
        return x0

    def scratch_bytes(self, x: Tensor) -> int:
        """Returns the size of the scratch memory of losses with gradients."""
        problem = self._sized(x, self.drift, self.score)
        return core.paths_scratch_bytes(self.instructions, problem, True)

    def on_gpu(self, g: Tensor, tensors: Sequence[Tensor]) -> GpuRun:
        """Returns a run of the kernels for a GPU."""
        assert self.rounding is not None
        g = g.detach().to(torch.float32).contiguous()
        return GpuRun(self.problem, *self._networks(tensors), self.rounding, g)

    def _networks(self, tensors: Sequence[Tensor]) -> tuple[Parts, Parts]:
        """Returns both networks with other tensors, contiguous and without graphs."""
        cut = len(self.drift.tensors)
        drift = self.drift.with_tensors(tensors[:cut])
        return drift.contiguous(), self.score.with_tensors(tensors[cut:]).contiguous()

    def _sized(self, x: Tensor, drift: Parts, score: Parts) -> Any:
        """Returns a problem of the core with its sizes and networks."""
        problem, steps = core.PathsProblem(), self.problem.num_steps
        problem.samples, problem.dim = x.shape
        problem.num_steps, problem.work = steps, workspace.work_on(len(x), self.instructions)
        problem.drift, problem.score = drift.mlp(), score.mlp()
        layers = (steps + 1) * (drift.depth + 1)
        size = 8 * layers * problem.work.tile * workspace.padded(drift.width)
        problem.keep_activations = size <= KEPT_BYTES
        return problem

    def _core_problem(
        self,
        x: Tensor,
        g: Tensor,
        tensors: Sequence[Tensor],
        *,
        purpose: str = "forward",
        gradients: bool = False,
    ) -> tuple[Any, Any]:
        """Returns a problem of the core, and objects that must live until it has run."""
        drift, score = self._networks(tensors)
        problem = self._sized(x, drift, score)
        dt = torch.tensor(self.problem.steps, dtype=torch.float32, device="cpu")
        g = g.detach().to(torch.float32).contiguous()
        problem.dt, problem.g = address(dt), address(g)
        key, sample_offset = self.problem.key, self.problem.sample_offset
        problem.noise = noise_source(key, PURPOSES[purpose], 0, sample_offset)
        size = core.paths_scratch_bytes(self.instructions, problem, gradients)
        return problem, (drift, score, dt, g, workspace.lend_scratch(problem, size))

    def _compute(
        self, weight: Tensor | None, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the losses, and with weights the gradients of x0, g and all tensors."""
        x0, g, *tensors = inputs
        x0 = x0.detach().contiguous()
        if self.rounding is not None:
            return self.on_gpu(g, tensors).loss(weight, x0)
        gradients = weight is not None
        problem, _alive = self._core_problem(x0, g, tensors, gradients=gradients)
        cost = x0.new_empty(x0.shape[0])
        problem.x0, problem.cost = address(x0), address(cost)
        if weight is None:
            core.run_paths(self.instructions, problem)
            return cost, []
        weight = weight.detach().to(torch.float32).contiguous()
        grad_x0, grad_g = torch.empty_like(x0), None
        if self.problem.learned_g:
            grad_g = g.new_empty(g.shape, dtype=torch.float64)
        drift, score = self.drift.empty_like(), self.score.empty_like()
        problem.weight, problem.grad_x0, problem.grad_g = map(address, (weight, grad_x0, grad_g))
        problem.grad_drift, problem.grad_score = drift.gradients(), score.gradients()
        core.run_paths(self.instructions, problem)
        return cost, [grad_x0, grad_g, *drift.tensors, *score.tensors]
