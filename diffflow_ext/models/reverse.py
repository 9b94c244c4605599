r"""Sampling: the reverse family of SDEs from noise to data, on any grid.

.. math:: x_i = x_{i+1} - \left[ f - \tfrac{1 + \lambda^2}{2} g^2 s \right](t_{i+1}, x_{i+1})
                \Delta t_i + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

All members have the same marginals as :math:`\Delta t \to 0`. At :math:`\lambda = 0` the equation
is ordinary and may be solved at a higher order. Between steps, Langevin moves at a fixed time draw
the sample towards the marginal of that time:

.. math:: x \leftarrow x + \eta \, s(t_i, x) + \sqrt{2 \eta} \, \varepsilon,
          \qquad \eta = c \, g_i^2 \, \Delta t_i
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffflow_ext.engines.ode.solver import fixed_path, fixed_step
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.engines.problem import PathProblem
from diffflow_ext.functional.affine import launch_affine_step
from diffflow_ext.functional.checks import check_choice, checked_count, checked_finite
from diffflow_ext.functional.noise import MAX_STEP, PURPOSES, launch_normal
from diffflow_ext.functional.steps import launch_reverse_step

__all__ = ["LastStep", "ReverseSampler", "reverse_path"]


#: How the step into the data is taken; see DiffFlowSDE.sample.
LastStep = Literal["noisy", "mean", "tweedie"]


#: How a step is taken; all but "euler" are for the ODE.
ReverseSolver = Literal["euler", "heun", "rk4"]


@dataclass(frozen=True)
class ReverseSampler:
    """How to go from noise to data, checked.

    Arguments:
        stochasticity: The factor lambda >= 0.
        last_step: "noisy", "mean" or "tweedie".
        solver: "euler", or for lambda = 0 also "heun" or "rk4".
        corrector_steps: Langevin moves after each step but the last.
        corrector_scale: Their size c > 0.

    Raises:
        ValueError: If an argument is out of its range or they do not go together.
        TypeError: If an argument has the wrong type.
    """

    stochasticity: float = 1.0
    last_step: LastStep = "noisy"
    solver: ReverseSolver = "euler"
    corrector_steps: int = 0
    corrector_scale: float = 0.5

    @property
    def plain(self) -> bool:
        """Whether this is one Euler step after the other and nothing between them."""
        return self.solver == "euler" and self.corrector_steps == 0

    def __post_init__(self) -> None:
        op = "DiffFlowSDE.sample"
        strength = checked_finite(op, "stochasticity", self.stochasticity)
        if strength < 0:
            raise ValueError(f"{op}: expected stochasticity >= 0, got {strength}")
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
        if not checked_finite(op, "corrector_scale", self.corrector_scale) > 0:
            raise ValueError(f"{op}: expected corrector_scale > 0, got {self.corrector_scale}")


def reverse_path(
    p: PathProblem,
    flow: ProbabilityFlow,
    times: list[float],
    x_last: Tensor,
    sampler: ReverseSampler,
    states: Tensor | None,
) -> Tensor:
    """Returns x_0 from x_N. Writes all states into `states` (N+1, B, *event) where given."""
    if p.num_steps * sampler.corrector_steps >= MAX_STEP:
        raise ValueError(
            f"DiffFlowSDE.sample: expected fewer than 2^24 Langevin moves, got {p.num_steps} x "
            f"{sampler.corrector_steps}"
        )
    if sampler.solver != "euler" and sampler.corrector_steps == 0:
        op = "DiffFlowSDE.sample"
        return fixed_path(op, flow, x_last, times[::-1], sampler.solver, states=states)[0]
    x = x_last
    for i in range(p.num_steps - 1, -1, -1):
        if sampler.solver == "euler":
            x = _euler_step(p, x, i, sampler)
        else:
            x = fixed_step(flow, x, times[i + 1], times[i], sampler.solver)
        if i > 0:
            x = _correct(p, x, i, sampler)
        if states is not None:
            states[i] = x
    return x


def _euler_step(p: PathProblem, x: Tensor, i: int, sampler: ReverseSampler) -> Tensor:
    """Steps from x_{i+1} to x_i along the stochastic equation."""
    strength = sampler.stochasticity
    f, s = p.network("drift", i + 1, x), p.network("score", i + 1, x)
    if i == 0 and sampler.last_step == "mean":
        weight = 0.5 * (1 + strength**2) * p.g[1] ** 2
        return _add(x, f, s, -p.steps[0], weight * p.steps[0])
    x = launch_reverse_step(x, f, s, p.steps[i], p.g[i + 1], p.key, i, strength, p.sample_offset)
    if i == 0 and sampler.last_step == "tweedie":
        variance = strength**2 * p.g[1] ** 2 * p.steps[0]
        return _add(x, p.network("score", 1, x), None, variance, 0.0)
    return x


def _correct(p: PathProblem, x: Tensor, i: int, sampler: ReverseSampler) -> Tensor:
    """Langevin moves at time t_i."""
    size: float | Tensor = sampler.corrector_scale * p.steps[i] * p.g[i] * p.g[i]
    root = (2 * size).sqrt() if isinstance(size, Tensor) else math.sqrt(2 * size)
    for move in range(sampler.corrector_steps):
        count = i * sampler.corrector_steps + move
        s = p.network("score", i, x)
        x = launch_affine_step(
            x, s, None, 1.0, size, 0.0, root, p.key, PURPOSES["langevin"], count, p.sample_offset
        )
    return x


def _add(
    x: Tensor, a: Tensor, b: Tensor | None, c_a: float | Tensor, c_b: float | Tensor
) -> Tensor:
    return launch_affine_step(x, a, b, 1.0, c_a, c_b, 0.0, None, PURPOSES["reverse"], 0, 0)


def noise_end(p: PathProblem, like: Tensor) -> Tensor:
    """Returns draws of the prior in the shape of a state."""
    if p.prior is None:
        out = torch.empty_like(like)
        return launch_normal(out, p.key, PURPOSES["prior"], 0, p.sample_offset)
    return p.prior.sample(
        tuple(like.shape), p.key, sample_offset=p.sample_offset, dtype=like.dtype,
        device=like.device,
    )  # fmt: skip
