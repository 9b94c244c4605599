r"""Sampling: the reverse family of SDEs from noise to data, on any grid.

.. math:: x_i = x_{i+1} - \left[ f - \tfrac{1 + \lambda^2}{2} g^2 s \right](t_{i+1}, x_{i+1})
                \Delta t_i + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from . import _kernels
from ._sweeps import PathProblem
from .noise import PURPOSES

__all__ = ["LastStep", "reverse_path"]

#: How the step into the data is taken; see DiffFlowSDE.sample.
LastStep = Literal["noisy", "mean", "tweedie"]


def reverse_path(
    p: PathProblem,
    x_last: Tensor,
    stochasticity: float,
    last_step: LastStep,
    states: Tensor | None,
) -> Tensor:
    """Returns x_0 from x_N. Writes all states into `states` (N+1, B, *event) where given."""
    x = x_last
    for i in range(p.num_steps - 1, -1, -1):
        f, s = p.network("drift", i + 1, x), p.network("score", i + 1, x)
        if i == 0 and last_step == "mean":
            x = _mean_step(p, x, f, s, stochasticity)
        else:
            x = _kernels.reverse_step(
                x, f, s, p.steps[i], p.g[i + 1], p.key, i, stochasticity, p.sample_offset
            )
        if i == 0 and last_step == "tweedie":
            x = _tweedie(p, x, stochasticity)
        if states is not None:
            states[i] = x
    return x


def _mean_step(p: PathProblem, x: Tensor, f: Tensor, s: Tensor, stochasticity: float) -> Tensor:
    weight = 0.5 * (1 + stochasticity**2) * p.g[1] ** 2
    return x - (f.to(x.dtype) - weight * s.to(x.dtype)) * p.steps[0]


def _tweedie(p: PathProblem, x: Tensor, stochasticity: float) -> Tensor:
    """x + sigma^2 score for the last step's noise, sigma^2 = lambda^2 g_1^2 dt_0."""
    variance = stochasticity**2 * p.g[1] ** 2 * p.steps[0]
    return x + variance * p.network("score", 1, x).to(x.dtype)


def check_last_step(op: str, last_step: str) -> LastStep:
    """Returns a valid kind of last step."""
    if last_step not in get_args(LastStep):
        raise ValueError(
            f"{op}: expected last_step to be one of {get_args(LastStep)}, got {last_step!r}"
        )
    return last_step  # pyright: ignore[reportReturnType]


def forward_path(p: PathProblem, x0: Tensor, states: Tensor | None) -> Tensor:
    """Returns x_N from x_0. Writes all states into `states` (N+1, B, *event) where given."""
    x = x0
    for k in range(p.num_steps):
        out = None if states is None else states[k + 1]
        x = p.em_step(x, p.network("drift", k, x), k, out)
    return x


def standard_normal(p: PathProblem, like: Tensor) -> Tensor:
    """Returns draws of the prior N(0, I) in the shape of a state."""
    return _kernels.normal(torch.empty_like(like), p.key, PURPOSES["prior"], 0, p.sample_offset)
