"""From a configuration to the networks, the grids and the device that it asks for."""

from __future__ import annotations

import torch
from torch import nn

from diffflow_ext._backend import build_info
from diffflow_ext.diffusion import ConstantDiffusion, GeometricDiffusion
from diffflow_ext.grids import ProgressiveGrid, TimeGrid
from diffflow_ext.nets import FourierMLP
from diffflow_ext.noise import NoiseKey
from diffflow_ext.sde import DiffFlowSDE
from diffflow_ext.training.config import TrainConfig, parse_progressive

__all__ = ["build_sde", "pick_device", "sampling_grid", "training_grid", "work_done"]


def build_sde(config: TrainConfig, dim: int) -> DiffFlowSDE:
    """Returns the untrained model; its weights depend on the seed alone.

    Arguments:
        config: The configuration.
        dim: Components of a data vector.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        drift, score = _build_net(config, dim), _build_net(config, dim)
    return DiffFlowSDE(drift, score, diffusion=_build_diffusion(config))


def training_grid(config: TrainConfig, step: int) -> TimeGrid:
    """Returns the time grid of one training step; a random one depends on seed and step alone."""
    num_steps = progressive_grid(config)(step)
    if config.grid == "power":
        return sampling_grid(config, num_steps)
    key = NoiseKey(config.seed, stream=step)
    return TimeGrid.stratified(num_steps, config.t_end, config.t_start, config.power, key=key)


def progressive_grid(config: TrainConfig) -> ProgressiveGrid:
    """Returns how many steps N the trajectories of each training step have.

    "auto" starts coarse, N/6 and then N/3, with the switches after 20 and 50 % of the work: at
    equal work that reached lower bounds than N throughout.
    """
    stages = parse_progressive(config.progressive)
    if config.progressive == "auto":
        n = config.num_steps
        marks = {0: max(1, n // 6), round(0.46 * config.steps): max(1, n // 3)}
        marks[round(0.81 * config.steps)] = n
        stages = tuple(marks.items())
    return ProgressiveGrid(stages or ((0, config.num_steps),))


def work_done(config: TrainConfig, step: int) -> float:
    """Returns the part of a run's network evaluations that precede a training step."""
    stages = progressive_grid(config).stages
    ends = [first for first, _ in stages[1:]] + [config.steps]

    def evaluations(until: int) -> int:
        return sum(
            count * max(0, min(until, end) - first)
            for (first, count), end in zip(stages, ends, strict=True)
        )

    return evaluations(step) / max(evaluations(config.steps), 1)


def sampling_grid(config: TrainConfig, num_steps: int | None = None) -> TimeGrid:
    """Returns the fixed time grid for samples and bounds, with the configured N or another."""
    count = config.num_steps if num_steps is None else num_steps
    return TimeGrid.power(count, config.t_end, config.t_start, config.power)


def pick_device(name: str) -> torch.device:
    """Returns the device that "auto", "cpu", "cuda" or "cuda:1" stands for.

    Raises:
        ValueError: If a GPU is asked for and there is none, or the build has no kernels for it.
    """
    usable = torch.cuda.is_available() and bool(build_info()["cuda"])
    if name == "auto":
        return torch.device("cuda" if usable else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not usable:
        missing = "no CUDA kernels in this build" if torch.cuda.is_available() else "no GPU here"
        raise ValueError(f"device={name!r}: {missing} (see diffflow doctor); use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r}: there are {torch.cuda.device_count()} GPUs")
    return device


def _build_net(config: TrainConfig, dim: int) -> FourierMLP:
    return FourierMLP(
        dim,
        width=config.width,
        depth=config.depth,
        activation=config.activation,
        time_scale=config.time_scale,
    )


def _build_diffusion(config: TrainConfig) -> nn.Module:
    if config.diffusion_start == config.diffusion_end and not config.learn_diffusion:
        return ConstantDiffusion(config.diffusion_start)
    return GeometricDiffusion(
        config.diffusion_start,
        config.diffusion_end,
        config.t_end,
        learnable=config.learn_diffusion,
    )
