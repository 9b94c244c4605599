"""The engine for any networks: losses by the adjoint, paths step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffflow_ext.functional.affine import launch_affine_step
from diffflow_ext.functional.noise import PURPOSES
from diffflow_ext.functional.steps import launch_reverse_step

from ..problem import PathProblem
from .backward import check_leaves
from .forward import forward_sweep
from .losses import mean_path_loss, path_losses, unrolled_losses, weighted_mean


@dataclass(frozen=True)
class AdjointPaths:
    """Losses and paths of a problem; see :class:`diffflow_ext.engines.paths.PathEngine`."""

    problem: PathProblem

    def losses(self, x0: Tensor) -> Tensor:
        """Returns the loss of each sample."""
        p = self.problem
        if p.checkpoint_every == 0:
            return unrolled_losses(p, x0)
        if self._wants_gradients(x0):
            return path_losses(p, x0)
        return self._values(x0)

    def mean_loss(self, x0: Tensor, weight: Tensor | None) -> Tensor:
        """Returns the weighted sum of losses, the mean without weights."""
        p = self.problem
        if p.checkpoint_every == 0 or not self._wants_gradients(x0):
            return weighted_mean(self.losses(x0), weight)
        return mean_path_loss(p, x0, weight)

    @torch.no_grad()
    def forward(self, x0: Tensor, states: Tensor | None = None) -> Tensor:
        """Returns x_N from x_0."""
        p, x = self.problem, x0
        if states is not None:
            states[0] = x0
        for k in range(p.num_steps):
            out = None if states is None else states[k + 1]
            x = p.em_step(x, p.network("drift", k, x), k, out)
        return x

    @torch.no_grad()
    def reverse(
        self, x_last: Tensor, stochasticity: float, last_step: str, states: Tensor | None = None
    ) -> Tensor:
        """Returns x_0 from x_N."""
        x = x_last
        for i in range(self.problem.num_steps - 1, -1, -1):
            x = reverse_euler_step(self.problem, x, i, stochasticity, last_step)
            if states is not None:
                states[i] = x
        return x

    def _wants_gradients(self, x0: Tensor) -> bool:
        inputs = (x0, self.problem.g, *self.problem.params)
        return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)

    def _values(self, x0: Tensor) -> Tensor:
        """Returns the losses, without gradients."""
        with torch.no_grad():
            losses, _ = forward_sweep(self.problem, x0, with_costs=True, keep=False)
        assert losses is not None
        if torch.is_grad_enabled():
            self._check_leaves(x0)
        return losses

    def _check_leaves(self, x0: Tensor) -> None:
        """Refuses networks that would silently get no gradient.

        Called after the loss, because some flows are initialised by their first batch.
        """
        p, sample = self.problem.for_first(1), x0[:1].detach()
        with torch.random.fork_rng(devices=[]):
            for name in ("drift", "score"):
                check_leaves(name, p.network(name, 1, sample), sample, p.params)
            check_leaves("prior.log_prob", p.prior_cost(sample), sample, p.params)


def reverse_euler_step(
    p: PathProblem, x: Tensor, i: int, stochasticity: float, last_step: str
) -> Tensor:
    """Returns x_i from x_{i+1} by one Euler step; see :meth:`diffflow_ext.DiffFlowSDE.sample`."""
    dt, g = p.steps[i], p.g_values[i + 1]
    f, s = p.network("drift", i + 1, x), p.network("score", i + 1, x)
    if i == 0 and last_step == "mean":
        weight = 0.5 * (1 + stochasticity**2) * g**2
        return _plus(x, f, s, -dt, weight * dt)
    x = launch_reverse_step(x, f, s, dt, g, p.key, i, stochasticity, p.sample_offset)
    if i == 0 and last_step == "tweedie":
        return _plus(x, p.network("score", 1, x), None, stochasticity**2 * g**2 * dt, 0.0)
    return x


def _plus(
    x: Tensor, a: Tensor, b: Tensor | None, c_a: float | Tensor, c_b: float | Tensor
) -> Tensor:
    """Returns x + c_a a + c_b b."""
    return launch_affine_step(x, a, b, 1.0, c_a, c_b, 0.0, None, PURPOSES["reverse"], 0, 0)
