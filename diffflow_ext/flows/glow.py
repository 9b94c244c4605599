r"""Glow: an invertible network over images, from normflows.

Each level folds pixels into channels, applies blocks of

.. math:: \text{ActNorm} \to \text{invertible } 1 \times 1 \text{ convolution}
          \to \text{affine coupling}

and splits off half of the channels as latents. There is no dequantisation and no logit, because
the states of a diffusion are noisy and continuous.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import library

MAX_LEVELS = 3
SMALLEST_STD = 1e-6


def glow(
    shape: Sequence[int], levels: int | None = None, blocks: int = 16, hidden: int = 256
) -> Any:
    """Returns a multi-scale Glow flow over images.

    It has LU-parametrised 1 x 1 convolutions, couplings of channel halves with a sigmoid scale,
    whose networks (3 x 3, 1 x 1 and 3 x 3 convolutions) are initialised to zero, and a learned
    diagonal Gaussian at each level. With 3 levels, 16 blocks and 256 hidden channels it has
    7.92 million parameters at shape (3, 32, 32).

    :class:`ActNorm` is initialised by the first batch, which should be large and from the training
    data. With several processes, evaluate the model once on the same batch in each.

    Arguments:
        shape: The shape (C, H, W) of an image; H and W divisible by 2^levels.
        levels: The number of times that the sides are halved, >= 1. Default: as often as possible,
            at most 3: 3 for sides of 32 and 16, and 2 for 28.
        blocks: Blocks in each level, >= 1.
        hidden: Hidden channels of the networks of the couplings, >= 1.

    Returns:
        A `normflows.MultiscaleFlow` without classes: ``log_prob(x, None)``, ``sample(n)``, and
        ``sample_from(z)``, which maps standard normals (B, C, H, W) to samples.

    Raises:
        ImportError: If normflows is not installed.
        ValueError: If an argument is out of its range.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Example:
        >>> flow = glow((1, 16, 16), levels=2, blocks=2, hidden=32)
        >>> flow.log_prob(torch.randn(5, 1, 16, 16), None).shape
        torch.Size([5])
    """
    channels, height, width = _check_shape(shape)
    levels = _check_levels(height, width, levels)
    for name, value in (("blocks", blocks), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"glow: expected {name} >= 1, got {value}")
    normflows = library("glow", "normflows")
    bases, flows = [], []
    # Level 0 is the coarsest: normflows counts from the latents to the image.
    for level in range(levels):
        halvings = levels - level
        folded = channels * 2 ** (halvings + 1)
        latents = folded if level == 0 else folded // 2
        latent_shape = (latents, height // 2**halvings, width // 2**halvings)
        bases.append(normflows.distributions.DiagGaussian(latent_shape))
        flows.append(
            [_block(normflows, folded, hidden) for _ in range(blocks)]
            + [normflows.flows.Squeeze()]
        )
    merges = [normflows.flows.Merge() for _ in range(levels - 1)]
    flow = normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)
    # Unlike a closure, a partial can be copied and pickled with its flow.
    flow.sample_from = functools.partial(_sample_from, flow, (channels, height, width))
    return flow


def _sample_from(flow: Any, shape: tuple[int, ...], z: Tensor) -> Tensor:
    """Samples from standard normals; the latents of the levels are consecutive parts of z."""
    if z.shape[1:] != shape:
        raise ValueError(f"glow: expected z of shape (B, *{shape}), got {tuple(z.shape)}")
    parts = z.flatten(1).split([math.prod(base.shape) for base in flow.q0], dim=1)
    latents = [
        base.loc + base.log_scale.exp() * part.reshape(-1, *base.shape)
        for base, part in zip(flow.q0, parts, strict=True)
    ]
    return flow.forward_and_log_det(latents)[0]


def _block(normflows: Any, channels: int, hidden: int) -> nn.Module:
    with warnings.catch_warnings():  # normflows calls torch.lu
        warnings.filterwarnings("ignore", "torch.lu is deprecated")
        block = normflows.flows.GlowBlock(channels, hidden, scale_map="sigmoid", use_lu=True)
    block.flows[-1] = ActNorm(channels)
    return block


class ActNorm(nn.Module):
    r"""An affine map for each channel, initialised to standardise the first batch.

    .. math:: z_c = (x_c - t_c) \, e^{-s_c}

    The first batch mapped from data to latents in training mode initialises it; until then it is
    the identity. (normflows' own layer takes the first batch in either direction and any mode, so
    that a sample of a new model would initialise it from noise.) `initialised` is a buffer, so
    loaded models keep their weights.

    Arguments:
        channels: The number of channels.
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.t = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("initialised", torch.tensor(False))
        # Reading a buffer on a GPU waits for the device, so it is read only once.
        self._seen = False

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x from z, and the log-determinant."""
        return z * self.s.exp() + self.t, self.s.sum() * (z.shape[2] * z.shape[3])

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z from x, and the log-determinant."""
        if self.training and not self._seen:
            self._start(x)
        return (x - self.t) * (-self.s).exp(), -self.s.sum() * (x.shape[2] * x.shape[3])

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        if not len(x):
            return
        if not bool(self.initialised):
            std, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
            # A constant channel is not scaled.
            self.s.copy_(torch.where(std > SMALLEST_STD, std, 1.0).log())
            self.t.copy_(mean)
            self.initialised.fill_(True)
        self._seen = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._seen = False
        super()._load_from_state_dict(*args, **kwargs)


def _check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"glow: expected a shape (C, H, W), got {tuple(shape)}")
    return shape[0], shape[1], shape[2]


def _check_levels(height: int, width: int, levels: int | None) -> int:
    possible = min((side & -side).bit_length() - 1 for side in (height, width))
    if levels is None:
        levels = max(1, min(MAX_LEVELS, possible))
    if levels < 1:
        raise ValueError(f"glow: expected levels >= 1, got {levels}")
    if levels > possible:
        raise ValueError(
            f"glow: expected H and W divisible by 2^{levels}, got {height} x {width}; take at "
            f"most {possible} levels, or pad the images"
        )
    return levels
