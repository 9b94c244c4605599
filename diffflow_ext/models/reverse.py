r"""Sampling: the reverse family of SDEs from noise to data, on any grid.

.. math:: x_i = x_{i+1} - \left[ f - \tfrac{1 + \lambda^2}{2} g^2 s \right](t_{i+1}, x_{i+1})
                \Delta t_i + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

All have the same marginals as :math:`\Delta t \to 0`. At :math:`\lambda = 0` the equation is
ordinary, and there are solvers of higher order. Langevin steps at a fixed time bring samples
closer to the marginal of that time:

.. math:: x \leftarrow x + \eta \, s(t_i, x) + \sqrt{2 \eta} \, \varepsilon,
          \qquad \eta = c \, g_i^2 \, \Delta t_i
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffflow_ext.engines.adjoint.paths import reverse_euler_step
from diffflow_ext.engines.network import Network
from diffflow_ext.engines.ode.solver import fixed_path, fixed_step
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.engines.paths import path_engine
from diffflow_ext.engines.problem import PathProblem
from diffflow_ext.functional.affine import launch_affine_step
from diffflow_ext.functional.checks import check_choice, checked_count, checked_finite
from diffflow_ext.functional.memory import require_memory
from diffflow_ext.functional.noise import MAX_STEP, PURPOSES, noise_like
from diffflow_ext.functional.steps import checked_stochasticity
from diffflow_ext.processes.diffusion import Diffusion, diffusion_values
from diffflow_ext.processes.grids import TimeGrid, numbers_beside

#: The treatment of the last step; see DiffFlowSDE.sample.
LastStep = Literal["noisy", "mean", "tweedie"]
#: The largest size of a Langevin step.
MAX_SCALE = 1e9
#: Solvers of one step; all but "euler" are for the ODE.
ReverseSolver = Literal["euler", "heun", "rk4"]


@dataclass(frozen=True)
class ReverseSampler:
    """Options of :meth:`diffflow_ext.models.DiffFlowSDE.sample`, checked."""

    stochasticity: float = 1.0
    last_step: LastStep = "noisy"
    solver: ReverseSolver = "euler"
    corrector_steps: int = 0
    corrector_scale: float = 0.5

    def __post_init__(self) -> None:
        op = "DiffFlowSDE.sample"
        strength = checked_stochasticity(op, self.stochasticity)
        check_choice(op, "last_step", self.last_step, LastStep)
        check_choice(op, "solver", self.solver, ReverseSolver)
        if self.solver != "euler" and strength != 0:
            raise ValueError(
                f"{op}: expected stochasticity=0 with solver={self.solver!r}, which is for the "
                f"ordinary equation, got {strength}; take solver='euler' for the stochastic one"
            )
        if self.solver != "euler" and self.last_step != "noisy":
            raise ValueError(
                f"{op}: last_step={self.last_step!r} is for solver='euler', got {self.solver!r}"
            )
        checked_count(op, "corrector_steps", self.corrector_steps, 0, 2**16)
        if not 0 < checked_finite(op, "corrector_scale", self.corrector_scale) <= MAX_SCALE:
            raise ValueError(
                f"{op}: expected 0 < corrector_scale <= {MAX_SCALE:g}, got {self.corrector_scale}"
            )


def path_ode(
    drift: Network,
    score: Network,
    diffusion: Diffusion,
    params: Sequence[Tensor],
    device: torch.device | str,
) -> ProbabilityFlow:
    r"""Returns the equation for lambda = 0, :math:`v = f - \tfrac12 g^2 s`."""

    def g(times: Sequence[float]) -> Tensor:
        beside = numbers_beside(torch.device(device), torch.float64, times)
        return diffusion_values(diffusion, beside)

    def coefficients_at(times: Sequence[float]) -> list[tuple[float, ...]]:
        return [(0.0, 1.0, -0.5 * value**2) for value in g(times).detach().tolist()]

    own = diffusion.parameters() if isinstance(diffusion, nn.Module) else ()
    return ProbabilityFlow(
        (drift, score),
        lambda t: coefficients_at([t])[0],
        names=("drift", "score"),
        params=(*params, *own),
        learned=lambda t: (0.0, 1.0, -0.5 * g([t]).reshape(()).square()),
        coefficients_at=coefficients_at,
    )


def reverse_samples(
    p: PathProblem,
    diffusion: Diffusion,
    grid: TimeGrid,
    like: Tensor,
    sampler: ReverseSampler,
    all_states: bool,
) -> Tensor:
    """Returns samples in the shape of a state, or with all states, shape (N+1, B, *event)."""
    x, times = _prior_sample(p, like), grid.times.tolist()
    ode = path_ode(p.drift, p.score, diffusion, (), like.device)
    if not all_states:
        return _reverse_path(p, ode, times, x, sampler, None)
    shape = (p.num_steps + 1, *x.shape)
    size = math.prod(shape) * x.element_size()
    hint = "ask for fewer at a time"
    require_memory("DiffFlowSDE.sample_path", f"states of shape {shape}", size, hint, x.device)
    states = x.new_empty(shape)
    states[-1] = x
    _reverse_path(p, ode, times, x, sampler, states)
    return states


def _reverse_path(
    p: PathProblem,
    ode: ProbabilityFlow,
    times: list[float],
    x_last: Tensor,
    sampler: ReverseSampler,
    states: Tensor | None,
) -> Tensor:
    """Returns x_0 from x_N; writes x_0 ... x_{N-1} into `states`, shape (N+1, B, *event).

    `ode` is the equation for lambda = 0, and `times` are those of the grid.
    """
    op = "DiffFlowSDE.sample"
    if p.num_steps * sampler.corrector_steps >= MAX_STEP:
        raise ValueError(
            f"{op}: expected fewer than 2^24 Langevin moves, got {p.num_steps} x "
            f"{sampler.corrector_steps}"
        )
    if sampler.corrector_steps > 0:
        return _corrected_path(p, ode, times, x_last, sampler, states)
    if sampler.solver != "euler":
        return fixed_path(op, ode, x_last, times[::-1], sampler.solver, states=states)[0]
    engine = path_engine(op, "auto", p, x_last)
    return engine.reverse(x_last, sampler.stochasticity, sampler.last_step, states)


def _corrected_path(
    p: PathProblem,
    ode: ProbabilityFlow,
    times: list[float],
    x: Tensor,
    sampler: ReverseSampler,
    states: Tensor | None,
) -> Tensor:
    for i in range(p.num_steps - 1, -1, -1):
        if sampler.solver == "euler":
            x = reverse_euler_step(p, x, i, sampler.stochasticity, sampler.last_step)
        else:
            x = fixed_step(ode, x, times[i + 1], times[i], sampler.solver)
        if i > 0:
            x = _correct(p, x, i, sampler)
        if states is not None:
            states[i] = x
    return x


def _correct(p: PathProblem, x: Tensor, i: int, sampler: ReverseSampler) -> Tensor:
    """Takes Langevin steps at time t_i."""
    size = sampler.corrector_scale * p.steps[i] * p.g_values[i] * p.g_values[i]
    root = (2 * size).sqrt() if isinstance(size, Tensor) else math.sqrt(2 * size)
    for j in range(sampler.corrector_steps):
        draw = i * sampler.corrector_steps + j
        s = p.network("score", i, x)
        x = launch_affine_step(
            x, s, None, 1.0, size, 0.0, root, p.key, PURPOSES["langevin"], draw, p.sample_offset
        )
    return x


def _prior_sample(p: PathProblem, like: Tensor) -> Tensor:
    """Returns draws of the prior in the shape of a state."""
    if p.prior is None:
        return noise_like(like, p.key, PURPOSES["prior"], 0, p.sample_offset)
    return p.prior.sample(
        tuple(like.shape), p.key, sample_offset=p.sample_offset, dtype=like.dtype,
        device=like.device,
    )  # fmt: skip
