"""Every public function with the arguments of a good call, for fuzz_calls.py to spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import (
    DDPM,
    NFDM,
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
from diffflow_ext.processes import LogSNR
from diffflow_ext.training import configure

KEY = NoiseKey(3, 1)


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape or (2, 3), generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Target:
    """A function and the arguments of a good call."""

    call: Callable[..., Any]
    arguments: dict[str, Any]

    def good(self) -> dict[str, Any]:
        values = self.arguments.items()
        return {name: v.clone() if isinstance(v, Tensor) else v for name, v in values}


def target(call: Callable[..., Any], /, **arguments: Any) -> Target:
    return Target(call, arguments)


def rows(*names: str) -> dict[str, Tensor]:
    return {name: x(2, 3) + i for i, name in enumerate(names)}


def linear(t: Tensor, x: Tensor) -> Tensor:
    return -x


def constructed(call: Callable[..., Any], use: Callable[[Any], Any]) -> Callable[..., Any]:
    """Makes an object and uses it: arguments may be refused at either time."""
    return lambda **arguments: use(call(**arguments))


SMALL = DiffFlowSDE(FourierMLP(3, width=4, depth=1), FourierMLP(3, width=4, depth=1), 0.7)
SMALL_DDPM = DDPM(linear, num_timesteps=4)
SMALL_DINOF = DiNof(linear, t_cutoff=0.5)
SMALL_NFDM = NFDM(linear, lambda x0: torch.cat([x0, x0], 1))
GRID = TimeGrid.power(2, 1.0)
STEP: dict[str, Any] = {"key": KEY, "step": 2, "sample_offset": 5}
PATH: dict[str, Any] = {"x0": x(2, 3), "grid": GRID, "key": KEY, "sample_offset": 4}
BARE: dict[str, Any] = {
    "drift": linear, "score": linear, **PATH, "diffusion": 0.5, "params": (), "prior": None,
    "checkpoint_every": 1, "scores_per_call": 2,
}  # fmt: skip
SAMPLE: dict[str, Any] = {"shape": (2, 3), "key": KEY, "sample_offset": 1}
RESIDUAL = ("x", "x_next", "f_next", "s_next")
TARGETS: dict[str, Target] = {
    "em_step": target(functional.em_step, **rows("x", "f"), dt=0.1, g=0.5, **STEP),
    "backward_residual": target(
        functional.backward_residual, **rows(*RESIDUAL), dt=0.1, g_next=0.5,
    ),
    "residual_cost": target(functional.residual_cost, **rows(*RESIDUAL), dt=0.1, g_next=0.5),
    "reverse_step": target(
        functional.reverse_step, **rows("x_next", "f_next", "s_next"), dt=0.1, g_next=0.5, **STEP,
        stochasticity=0.5,
    ),
    "perturb": target(functional.perturb, **rows("x0"), alpha_t=0.8, sigma_t=0.6, **STEP),
    "affine_step": target(
        functional.affine_step, **rows("x", "a", "b"), c_x=0.5, c_a=0.1, c_b=0.2, noise_scale=0.3,
        **STEP, purpose="reverse",
    ),
    "normal": target(
        functional.normal, shape=(2, 3), **STEP, purpose="forward", dtype=torch.float32,
        device="cpu",
    ),
    "philox_words": target(
        functional.philox_words, counter=torch.zeros(3, 4, dtype=torch.int64),
        key=torch.zeros(2, dtype=torch.int64),
    ),
    "diffflow_loss": target(diffflow_loss, **BARE),
    "diffflow_mean_loss": target(diffflow_mean_loss, **BARE),
    "DiffFlowSDE": target(
        constructed(DiffFlowSDE, lambda sde: sde.loss(x(2, 3), GRID, KEY)), drift=linear,
        score=linear, diffusion=0.5, params=(), prior=None, scores_per_call=2,
    ),
    "DiffFlowSDE.loss": target(SMALL.loss, **PATH, checkpoint_every=1, engine="auto"),
    "DiffFlowSDE.mean_loss": target(
        SMALL.mean_loss, **PATH, checkpoint_every=1, engine="auto", weight=torch.ones(2),
    ),
    "DiffFlowSDE.engine_for": target(SMALL.engine_for, x0=x(2, 3), grid=GRID, checkpoint_every=1),
    "DiffFlowSDE.elbo": target(SMALL.elbo, **PATH, num_paths=2, checkpoint_every=1),
    "DiffFlowSDE.bound_minus_loss": target(SMALL.bound_minus_loss, **PATH),
    "DiffFlowSDE.encode": target(SMALL.encode, **PATH),
    "DiffFlowSDE.path": target(SMALL.path, **PATH),
    "DiffFlowSDE.log_prob": target(
        SMALL.log_prob, x=x(2, 3), grid=GRID, key=KEY, solver="heun", divergence="exact",
        num_probes=1, rtol=1e-3, atol=1e-3, sample_offset=1,
    ),
    "DiffFlowSDE.sample": target(
        SMALL.sample, **SAMPLE, grid=GRID, stochasticity=1.0, last_step="noisy", solver="euler",
        corrector_steps=1, corrector_scale=0.5,
    ),
    "DiffFlowSDE.sample_path": target(
        SMALL.sample_path, **SAMPLE, grid=GRID, stochasticity=1.0, last_step="mean",
    ),
    "TimeGrid": target(TimeGrid, times=torch.tensor([0.0, 0.5, 1.0])),
    "TimeGrid.from_times": target(TimeGrid.from_times, times=[0.0, 0.5, 1.0]),
    "TimeGrid.power": target(TimeGrid.power, num_steps=4, t_end=1.0, t_start=0.0, power=0.9),
    "TimeGrid.stratified": target(
        TimeGrid.stratified, num_steps=4, t_end=1.0, t_start=0.0, power=0.9, key=KEY,
    ),
    "ProgressiveGrid": target(
        lambda stages, iteration: ProgressiveGrid(stages)(iteration), stages=((0, 2), (5, 3)),
        iteration=4,
    ),
    "NoiseKey": target(
        lambda seed, stream, at, device: NoiseKey(seed, stream).at(at).to_tensor(device), seed=3,
        stream=4, at=5, device="cpu",
    ),
    "ConstantDiffusion": target(
        constructed(ConstantDiffusion, lambda g: g(torch.ones(2))), g=0.5, learnable=True,
    ),
    "GeometricDiffusion": target(
        constructed(GeometricDiffusion, lambda g: g(torch.ones(2))), g_start=0.5, g_end=1.0,
        t_end=1.0, learnable=True,
    ),
    "DDPM": target(
        constructed(DDPM, lambda model: model.loss(x(2, 3), KEY)), eps_net=linear,
        schedule="linear", num_timesteps=4,
    ),
    "DDPM.loss": target(SMALL_DDPM.loss, x0=x(2, 3), key=KEY, sample_offset=1),
    "DDPM.mean_loss": target(
        SMALL_DDPM.mean_loss, x0=x(2, 3), key=KEY, weight=torch.ones(2), sample_offset=1,
    ),
    "DDPM.elbo": target(
        SMALL_DDPM.elbo, x0=x(2, 3), key=KEY, timesteps=2, decoder="gaussian", variance="small",
        clip=False, sample_offset=1,
    ),
    "DDPM.sample": target(
        SMALL_DDPM.sample, **SAMPLE, num_steps=2, sampler="ddim", eta=0.5, variance="small",
        clip=True, last_step="mean",
    ),
    "DDPM.log_prob": target(
        SMALL_DDPM.log_prob, x=x(2, 3), grid=2, key=KEY, solver="euler", divergence="exact",
    ),
    "DiNof": target(
        constructed(DiNof, lambda model: model.mean_loss(x(2, 3), KEY)), eps_net=linear,
        process="vp", flow=None, t_cutoff=0.5, t_min=1e-3, loss_weight="variance",
    ),
    "DiNof.score_loss": target(SMALL_DINOF.score_loss, x0=x(2, 3), key=KEY, sample_offset=1),
    "DiNof.score": target(SMALL_DINOF.score, t=0.2, x=x(2, 3)),
    "DiNof.sample": target(
        SMALL_DINOF.sample, **SAMPLE, num_steps=2, sampler="em", corrector_steps=1, snr=0.1,
        last_step="noisy",
    ),
    "DiNof.log_prob": target(
        SMALL_DINOF.log_prob, x=x(2, 3), grid=2, key=KEY, solver="heun", divergence="exact",
    ),
    "NFDM": target(
        constructed(NFDM, lambda model: model.mean_loss(x(2, 3), KEY)), net=linear,
        forward_net=None, process=None,
    ),
    "NFDM.loss": target(
        SMALL_NFDM.loss, x0=x(2, 3), key=KEY, sample_offset=1, engine="autograd",
    ),
    "NFDM.elbo": target(SMALL_NFDM.elbo, x0=x(2, 3), key=KEY, timesteps=2, sample_offset=1),
    "NFDM.sample": target(
        SMALL_NFDM.sample, **SAMPLE, num_steps=2, stochasticity=0.5, clip=True,
    ),
    "NFDM.log_prob": target(
        SMALL_NFDM.log_prob, x=x(2, 3), grid=2, key=KEY, solver="euler", divergence="exact",
    ),
    "LogSNR": target(
        constructed(LogSNR, lambda process: process.alpha(torch.ones(2))), start=8.0, end=-4.0,
    ),
    "configure": target(
        configure, model="diffflow", data="moons", steps=5, learning_rate=1e-3,
        progressive="0:2,5:3", grid="power", learn_diffusion=True, t_end=1.0, device="cpu",
        threads=1,
    ),
}  # fmt: skip
