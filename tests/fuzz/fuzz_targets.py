"""Every public function with the arguments of a good call, for fuzz_calls.py to spoil."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import (
    DDPM,
    ConstantDiffusion,
    DiffFlowSDE,
    DiNof,
    GeometricDiffusion,
    NoiseKey,
    ProgressiveGrid,
    TimeGrid,
    diffflow_loss,
    diffflow_mean_loss,
    functional,
)
from diffflow_ext.nets import FourierMLP
from diffflow_ext.training import configure

KEY = NoiseKey(3, 1)


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape or (2, 3), generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Target:
    """A function and the arguments of a good call."""

    call: Callable[..., Any]
    good: Callable[[], dict[str, Any]]


STEP = {"key": KEY, "step": 2, "sample_offset": 5}


def rows(*names: str) -> dict[str, Tensor]:
    return {name: x(2, 3) + i for i, name in enumerate(names)}


@functools.cache
def small() -> DiffFlowSDE:
    return DiffFlowSDE(FourierMLP(3, width=4, depth=1), FourierMLP(3, width=4, depth=1), 0.7)


def linear(t: Tensor, x: Tensor) -> Tensor:
    return -x


def grid() -> TimeGrid:
    return TimeGrid.power(2, 1.0)


def method(make: Callable[[], Any], name: str) -> Callable[..., Any]:
    """A method of an object that is made when it is first wanted."""

    def call(**arguments: Any) -> Any:
        return getattr(make(), name)(**arguments)

    return call


def path_arguments() -> dict[str, Any]:
    return {"x0": x(2, 3), "grid": grid(), "key": KEY, "sample_offset": 4}


def bare(call: Callable[..., Any]) -> Target:
    return Target(
        call,
        lambda: {
            "drift": linear, "score": linear, **path_arguments(), "diffusion": 0.5, "params": (),
            "prior": None, "checkpoint_every": 1, "scores_per_call": 2, "kept_graphs": 1,
        },
    )  # fmt: skip


def constructed(call: Callable[..., Any], use: Callable[[Any], Any]) -> Callable[..., Any]:
    """Makes an object and uses it: arguments may be refused at either time."""
    return lambda **arguments: use(call(**arguments))


@functools.cache
def ddpm() -> DDPM:
    return DDPM(linear, num_timesteps=4)


@functools.cache
def dinof() -> DiNof:
    return DiNof(linear, t_cutoff=0.5)


def with_path(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**path_arguments(), **more}


SAMPLE = {"shape": (2, 3), "key": KEY, "sample_offset": 1}
RESIDUAL = ("x", "x_next", "f_next", "s_next")
TARGETS: dict[str, Target] = {
    "em_step": Target(
        functional.em_step, lambda: {**rows("x", "f"), "dt": 0.1, "g": 0.5, **STEP}
    ),
    "backward_residual": Target(
        functional.backward_residual, lambda: {**rows(*RESIDUAL), "dt": 0.1, "g_next": 0.5}
    ),
    "residual_cost": Target(
        functional.residual_cost, lambda: {**rows(*RESIDUAL), "dt": 0.1, "g_next": 0.5}
    ),
    "reverse_step": Target(
        functional.reverse_step,
        lambda: {
            **rows("x_next", "f_next", "s_next"), "dt": 0.1, "g_next": 0.5, **STEP,
            "stochasticity": 0.5,
        },
    ),
    "perturb": Target(
        functional.perturb, lambda: {**rows("x0"), "alpha_t": 0.8, "sigma_t": 0.6, **STEP}
    ),
    "affine_step": Target(
        functional.affine_step,
        lambda: {
            **rows("x", "a", "b"), "c_x": 0.5, "c_a": 0.1, "c_b": 0.2, "noise_scale": 0.3, **STEP,
            "purpose": "reverse",
        },
    ),
    "normal": Target(
        functional.normal,
        lambda: {
            "shape": (2, 3), **STEP, "purpose": "forward", "dtype": torch.float32, "device": "cpu",
        },
    ),
    "philox_words": Target(
        functional.philox_words,
        lambda: {
            "counter": torch.zeros(3, 4, dtype=torch.int64),
            "key": torch.zeros(2, dtype=torch.int64),
        },
    ),
    "diffflow_loss": bare(diffflow_loss),
    "diffflow_mean_loss": bare(diffflow_mean_loss),
    "DiffFlowSDE": Target(
        constructed(DiffFlowSDE, lambda sde: sde.loss(x(2, 3), grid(), KEY)),
        lambda: {
            "drift": linear, "score": linear, "diffusion": 0.5, "params": (), "prior": None,
            "scores_per_call": 2,
        },
    ),
    "DiffFlowSDE.loss": Target(
        method(small, "loss"), with_path(checkpoint_every=1, engine="auto", kept_graphs=1)
    ),
    "DiffFlowSDE.mean_loss": Target(
        method(small, "mean_loss"),
        with_path(checkpoint_every=1, engine="auto", weight=torch.ones(2)),
    ),
    "DiffFlowSDE.engine_for": Target(
        method(small, "engine_for"), lambda: {"x0": x(2, 3), "grid": grid(), "checkpoint_every": 1}
    ),
    "DiffFlowSDE.elbo": Target(method(small, "elbo"), with_path(num_paths=2, checkpoint_every=1)),
    "DiffFlowSDE.bound_minus_loss": Target(method(small, "bound_minus_loss"), with_path()),
    "DiffFlowSDE.encode": Target(method(small, "encode"), with_path()),
    "DiffFlowSDE.path": Target(method(small, "path"), with_path()),
    "DiffFlowSDE.log_prob": Target(
        method(small, "log_prob"),
        lambda: {
            "x": x(2, 3), "grid": grid(), "key": KEY, "solver": "heun", "divergence": "exact",
            "num_probes": 1, "rtol": 1e-3, "atol": 1e-3, "sample_offset": 1,
        },
    ),
    "DiffFlowSDE.sample": Target(
        method(small, "sample"),
        lambda: {
            **SAMPLE, "grid": grid(), "stochasticity": 1.0, "last_step": "noisy",
            "solver": "euler", "corrector_steps": 1, "corrector_scale": 0.5,
        },
    ),
    "DiffFlowSDE.sample_path": Target(
        method(small, "sample_path"),
        lambda: {**SAMPLE, "grid": grid(), "stochasticity": 1.0, "last_step": "mean"},
    ),
    "TimeGrid": Target(TimeGrid, lambda: {"times": torch.tensor([0.0, 0.5, 1.0])}),
    "TimeGrid.from_times": Target(TimeGrid.from_times, lambda: {"times": [0.0, 0.5, 1.0]}),
    "TimeGrid.power": Target(
        TimeGrid.power, lambda: {"num_steps": 4, "t_end": 1.0, "t_start": 0.0, "power": 0.9}
    ),
    "TimeGrid.stratified": Target(
        TimeGrid.stratified,
        lambda: {"num_steps": 4, "t_end": 1.0, "t_start": 0.0, "power": 0.9, "key": KEY},
    ),
    "ProgressiveGrid": Target(
        lambda stages, iteration: ProgressiveGrid(stages)(iteration),
        lambda: {"stages": ((0, 2), (5, 3)), "iteration": 4},
    ),
    "NoiseKey": Target(
        lambda seed, stream, at, device: NoiseKey(seed, stream).at(at).to_tensor(device),
        lambda: {"seed": 3, "stream": 4, "at": 5, "device": "cpu"},
    ),
    "ConstantDiffusion": Target(
        constructed(ConstantDiffusion, lambda g: g(torch.ones(2))),
        lambda: {"g": 0.5, "learnable": True},
    ),
    "GeometricDiffusion": Target(
        constructed(GeometricDiffusion, lambda g: g(torch.ones(2))),
        lambda: {"g_start": 0.5, "g_end": 1.0, "t_end": 1.0, "learnable": True},
    ),
    "DDPM": Target(
        constructed(DDPM, lambda model: model.loss(x(2, 3), KEY)),
        lambda: {"eps_net": linear, "schedule": "linear", "num_timesteps": 4},
    ),
    "DDPM.loss": Target(
        method(ddpm, "loss"), lambda: {"x0": x(2, 3), "key": KEY, "sample_offset": 1}
    ),
    "DDPM.mean_loss": Target(
        method(ddpm, "mean_loss"),
        lambda: {"x0": x(2, 3), "key": KEY, "weight": torch.ones(2), "sample_offset": 1},
    ),
    "DDPM.elbo": Target(
        method(ddpm, "elbo"),
        lambda: {
            "x0": x(2, 3), "key": KEY, "timesteps": 2, "decoder": "gaussian",
            "variance": "small", "clip": False, "sample_offset": 1,
        },
    ),
    "DDPM.sample": Target(
        method(ddpm, "sample"),
        lambda: {
            **SAMPLE, "num_steps": 2, "sampler": "ddim", "eta": 0.5, "variance": "small",
            "clip": True, "last_step": "mean",
        },
    ),
    "DDPM.log_prob": Target(
        method(ddpm, "log_prob"),
        lambda: {"x": x(2, 3), "grid": 2, "key": KEY, "solver": "euler", "divergence": "exact"},
    ),
    "DiNof": Target(
        constructed(DiNof, lambda model: model.mean_loss(x(2, 3), KEY)),
        lambda: {
            "eps_net": linear, "process": "vp", "flow": None, "t_cutoff": 0.5, "t_min": 1e-3,
            "loss_weight": "variance",
        },
    ),
    "DiNof.score_loss": Target(
        method(dinof, "score_loss"), lambda: {"x0": x(2, 3), "key": KEY, "sample_offset": 1}
    ),
    "DiNof.score": Target(method(dinof, "score"), lambda: {"t": 0.2, "x": x(2, 3)}),
    "DiNof.sample": Target(
        method(dinof, "sample"),
        lambda: {
            **SAMPLE, "num_steps": 2, "sampler": "em", "corrector_steps": 1, "snr": 0.1,
            "last_step": "noisy",
        },
    ),
    "DiNof.log_prob": Target(
        method(dinof, "log_prob"),
        lambda: {"x": x(2, 3), "grid": 2, "key": KEY, "solver": "heun", "divergence": "exact"},
    ),
    "configure": Target(
        configure,
        lambda: {
            "model": "diffflow", "data": "moons", "steps": 5, "learning_rate": 1e-3,
            "progressive": "0:2,5:3", "grid": "power",
            "learn_diffusion": True, "t_end": 1.0, "device": "cpu", "threads": 1,
        },
    ),
}  # fmt: skip
