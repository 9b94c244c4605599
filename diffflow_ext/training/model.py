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

__all__ = ["build_sde", "pick_device", "sampling_grid", "training_grid"]


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
    num_steps = config.num_steps
    if config.progressive:
        num_steps = ProgressiveGrid(parse_progressive(config.progressive))(step)
    if config.grid == "power":
        return sampling_grid(config, num_steps)
    key = NoiseKey(config.seed, stream=step)
    return TimeGrid.stratified(num_steps, config.t_end, config.t_start, config.power, key=key)


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
