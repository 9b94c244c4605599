"""Steps of the reverse SDE of a linear diffusion: predictors, and Langevin correctors between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from diffflow_ext.functional.affine import affine_step
from diffflow_ext.functional.checks import check_choice, checked_count
from diffflow_ext.functional.noise import Key
from diffflow_ext.processes.grids import TimeGrid
from diffflow_ext.processes.linear import VE, LinearProcess

from .denoising import EpsNetwork, network_output

Sampler = Literal["auto", "em", "reverse_diffusion", "ode"]


@dataclass(frozen=True)
class Step:
    """One step: y = c_x x + c_eps eps(t, x) + noise z, with z from draw `step` of `purpose`."""

    t: float
    c_x: float
    c_eps: float
    noise: float
    purpose: str
    step: int


def resolve_sampler(
    op: str, process: LinearProcess, sampler: str, corrector_steps: int | None
) -> tuple[str, int]:
    """Returns a sampler and its number of corrector steps, checked and with defaults."""
    check_choice(op, "sampler", sampler, Sampler)
    exploding = isinstance(process, VE)
    if sampler == "auto":
        sampler = "reverse_diffusion" if exploding else "em"
    if corrector_steps is None:
        return sampler, int(exploding and sampler != "ode")
    repeats = checked_count(op, "corrector_steps", corrector_steps, 0, 2**16)
    if repeats and sampler == "ode":
        raise ValueError(
            f"{op}: expected corrector_steps=0 for sampler='ode', got {repeats}; "
            "correctors are for 'em' and 'reverse_diffusion'"
        )
    return sampler, repeats


def sampler_steps(
    process: LinearProcess, grid: TimeGrid, sampler: str, repeats: int, snr: float, last_step: str
) -> list[Step]:
    """Returns all steps of a sampler, from noise to data."""
    steps = []
    edges = list(enumerate(pairwise(grid.times.tolist())))
    sigmas = process.sigma(grid.times).tolist()
    for i, (t, t_next) in reversed(edges):
        steps += [_corrector(t_next, sigmas[i + 1], snr, i * repeats + j) for j in range(repeats)]
        noisy = i > 0 or last_step != "mean"
        steps.append(_predictor(process, sampler, t, t_next, sigmas[i + 1], i, noisy))
    return steps


def _predictor(
    process: LinearProcess,
    sampler: str,
    t: float,
    t_next: float,
    sigma: float,
    i: int,
    noisy: bool,
) -> Step:
    if sampler == "em":
        rate, g = process.coefficients(t_next)
        c_x, variance = 1 - rate * (t_next - t), g * g * (t_next - t)
    else:
        a, variance = process.transition(t, t_next)
        c_x = 2 - a
    noise = math.sqrt(variance) if noisy else 0.0
    return Step(t_next, c_x, -variance / sigma, noise, "reverse", i)


def _corrector(t: float, sigma: float, snr: float, step: int) -> Step:
    length = 2 * (snr * sigma) ** 2
    return Step(t, 1.0, -length / sigma, math.sqrt(2 * length), "langevin", step)


def take_steps(
    op: str, net: EpsNetwork, x: Tensor, steps: list[Step], key: Key, sample_offset: int
) -> Tensor:
    """Returns the state after all steps, one network evaluation and one kernel for each."""
    for step in steps:
        eps = network_output(op, net, step.t, x)
        x = affine_step(
            x, eps, c_x=step.c_x, c_a=step.c_eps, noise_scale=step.noise,
            key=key, purpose=step.purpose, step=step.step, sample_offset=sample_offset,
        )  # fmt: skip
    return x
