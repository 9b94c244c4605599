r"""The U-Net of denoising diffusion models, for drift, score or noise of small images.

It has residual blocks of two 3 x 3 convolutions at several resolutions, each with the time as an
input, and skip connections from the downward to the upward blocks. Self-attention follows the
blocks of chosen resolutions and the first middle block.

The time embedding is made for indices 0 ... 1000, so `time_scale` must map the times of a model
to that range: ``time_scale = 1000 / t_end``. Without scaling, times in [0, 0.05] have nearly equal
embeddings.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), appendix B
    | https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .conditions import Context, context_embedding, null_context, refuse_context
from .unet_blocks import (
    BlockOptions,
    DownLevel,
    ResidualBlock,
    SelfAttention,
    Stage,
    UpLevel,
    group_norm,
)

#: The slowest sinusoid of the time embedding turns by 1/10000 radian per index.
SLOWEST = 1e-4


class UNet(nn.Module):
    r"""Maps a time and a batch of square images to a batch of images.

    Level l works on images of side :math:`\lceil \text{size} / 2^l \rceil` with
    :math:`\text{base} \cdot \text{channel\_multiplier} \cdot \text{mults}_l` channels. Any size
    does: 28 gives 28, 14, 7 and 4, and on the way up each level returns to the side it had.

    With 3 channels, size 32 and base 128 it is the network of DDPM for CIFAR-10, with 35,746,307
    parameters; `channel_multiplier` 0.5 leaves 8,952,067 and 0.25 leaves 2,245,763. The last
    convolution starts at zero, and so does the network's value.

    Arguments:
        channels: The channels :math:`C \geq 1` of an image.
        size: The side :math:`\geq 1` of an image.
        base: Channels of the first level, before `channel_multiplier`.
        mults: For each level, how many times `base` its channels are.
        blocks: Residual blocks per level on the way down, :math:`\geq 1`; one more on the way up.
        attention: Sides of the levels with attention. A side that no level has stands for the next
            smaller level: 16 is 14 in images of side 28. () is no attention at all.
        dropout: The probability of dropping an entry before each block's second convolution.
        channel_multiplier: Scales the channels of all levels: 0.5 for half, 0.25 for a quarter.
        time_scale: The factor from time to indices 0 ... 1000: 1000 divided by the last time.
        out_channels: The channels of the value. Default: those of an image.
        output_scale: The factor > 0 of the value, about the size of what the network is to learn;
            see docs/training.md for that of a drift and of a score.
        scale_shift: Whether the time embedding scales and shifts the output of a block's second
            norm, instead of being added to its input.
        num_classes: The number of classes of labels in the context, 0 for none. Label
            `num_classes` stands for no class.
        context_dim: The components of vectors in the context, 0 for none; 0 stands for no vector.

    A context is added to the time embedding before its last activation, see
    :mod:`diffflow_ext.nets.conditions`; with labels and vectors it is a mapping of both.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), appendix B
        | https://arxiv.org/abs/2006.11239

    Example:
        >>> score = UNet(channels=1, size=28, base=16, mults=(1, 2), time_scale=1000 / 0.05)
        >>> score(torch.tensor(0.02), torch.randn(8, 1, 28, 28)).shape
        torch.Size([8, 1, 28, 28])
    """

    #: The network is trunk(x, embed(t)): engines may embed all times of a path in one call.
    time_enters_by_embedding: ClassVar[bool] = True
    frequencies: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        base: int = 64,
        mults: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        channel_multiplier: float = 1.0,
        time_scale: float = 1000.0,
        *,
        out_channels: int | None = None,
        output_scale: float = 1.0,
        scale_shift: bool = False,
        num_classes: int = 0,
        context_dim: int = 0,
    ) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        _check_arguments(channels, outputs, size, base, mults, blocks, dropout)
        _check_factors(time_scale, output_scale)
        self.channels, self.size = channels, size
        self.time_scale, self.output_scale = time_scale, output_scale
        self.sides = [-(-size // 2**level) for level in range(len(mults))]
        attending = _attending_levels(self.sides, attention)
        width = _width(base, channel_multiplier)
        widths = [width * mult for mult in mults]
        options = BlockOptions(4 * width, dropout, scale_shift)

        self.register_buffer("frequencies", _rates(width // 2))
        self.time_in = nn.Linear(width, options.embedding)
        self.time_out = nn.Linear(options.embedding, options.embedding)
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(before, after, blocks, level in attending, level < len(mults) - 1, options)
            for level, (before, after) in enumerate(pairwise([width, *widths]))
        )
        self.middle = nn.ModuleList(
            Stage(widths[-1], widths[-1], attend, options) for attend in (bool(attention), False)
        )
        chain = [width, *widths, widths[-1]]
        self.up = nn.ModuleList(
            UpLevel(chain[level : level + 3], blocks, level in attending, side, options)
            for level, side in reversed(list(enumerate([None, *self.sides[:-1]])))
        )
        self.norm, self.output = group_norm(widths[0]), nn.Conv2d(widths[0], outputs, 3, padding=1)
        _initialise(self)
        # Last, so that all other weights are those of a network without a context.
        self.condition = context_embedding("UNet", num_classes, context_dim, options.embedding)

    def forward(self, t: Tensor, x: Tensor, context: Context | None = None) -> Tensor:
        r"""Evaluates the network.

        Arguments:
            t: The time of all samples, shape :math:`()`, or of each, shape :math:`(B,)`.
            x: The images, with shape :math:`(B, C, \text{size}, \text{size})`.
            context: Labels of shape :math:`(B,)`, vectors, or both, if the network takes them.

        Returns:
            Images of the same shape, with `out_channels` channels.

        Raises:
            ValueError: If an argument has another shape, or a context is missing or not taken.
        """
        if t.ndim != 0 and t.shape != x.shape[:1]:
            raise ValueError(
                f"UNet: expected t of shape () or ({x.shape[0]},), one time for each image, "
                f"got {tuple(t.shape)}"
            )
        self._check_images(x)
        return self.trunk(x, self.embed(t.reshape(-1), x.dtype), context)

    def null_context(self, count: int) -> Context:
        """Returns the context that stands for none, of `count` rows."""
        return null_context("UNet", self.condition, count)

    def trunk(self, x: Tensor, embedding: Tensor, context: Context | None = None) -> Tensor:
        r"""Evaluates the network from a given time embedding.

        Arguments:
            x: The images, with shape :math:`(B, C, \text{size}, \text{size})`.
            embedding: What `embed` returned, with shape :math:`(1, 4\,\text{width})` or
                :math:`(B, 4\,\text{width})`.
            context: As in `forward`.

        Returns:
            Images of the same shape.

        Raises:
            ValueError: If `x` has another shape, or a context is missing or not taken.
        """
        self._check_images(x)
        if self.condition is None:
            refuse_context("UNet", context)
        else:
            embedding = functional.silu(embedding + self.condition(context))
        h = self.input(x)
        skips: list[list[Tensor]] = []
        for level in self.down:
            h, states = level(h, embedding)
            skips.append(states)
        for stage in self.middle:
            h = stage(h, embedding)
        for level in self.up:
            h = level(h, embedding, skips.pop())
        value = self.output(functional.silu(self.norm(h)))
        return value if self.output_scale == 1.0 else value * self.output_scale

    def sinusoids(self, t: Tensor) -> Tensor:
        r"""Returns the fixed part of the time embedding.

        .. math:: [\sin(\omega c t), \cos(\omega c t)], \qquad \omega = 1 \dots 10^{-4}

        geometrically spaced, with :math:`c` the time scale.

        Arguments:
            t: Times of any shape :math:`(*)`, float32 or float64.

        Returns:
            The features, with shape :math:`(*, \text{width})`.
        """
        angle = (t * self.time_scale).unsqueeze(-1) * self.frequencies.to(t.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def embed(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        r"""Returns the time embedding, an input of all blocks.

        With a context, `trunk` adds that of the context and takes the last activation.

        Arguments:
            t: Times of any shape :math:`(*)`.
            dtype: The dtype of the weights. Default: that of the times.

        Returns:
            The embeddings, with shape :math:`(*, 4\,\text{width})`.
        """
        dtype = t.dtype if dtype is None else dtype
        # Indices up to 1000 need more bits than 16-bit dtypes have.
        exact = t.to(torch.promote_types(dtype, torch.float32))
        features = self.sinusoids(exact).to(dtype)
        value = self.time_out(functional.silu(self.time_in(features)))
        return functional.silu(value) if self.condition is None else value

    def _check_images(self, x: Tensor) -> None:
        event = (self.channels, self.size, self.size)
        if x.ndim != 4 or x.shape[1:] != event:
            raise ValueError(
                f"UNet: expected x of shape (B, {', '.join(map(str, event))}), "
                f"got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """Returns the arguments that no submodule shows, for `repr`."""
        return (
            f"channels={self.channels}, size={self.size}, time_scale={self.time_scale}, "
            f"output_scale={self.output_scale}"
        )


def _rates(count: int) -> Tensor:
    """Returns angles per index, from 1 down to the slowest."""
    return torch.linspace(0.0, math.log(SLOWEST), count).exp()


def _initialise(net: UNet) -> None:
    """Draws Xavier weights; the last layers of branches and of the network start at 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv_out.weight)
        elif isinstance(module, SelfAttention | UNet):
            nn.init.zeros_(module.output.weight)


def _check_arguments(
    channels: int, out_channels: int, size: int, base: int, mults: Sequence[int], blocks: int,
    dropout: float,
) -> None:  # fmt: skip
    names = ("channels", "out_channels", "size", "base", "blocks")
    for name, value in zip(names, (channels, out_channels, size, base, blocks), strict=True):
        if value < 1:
            raise ValueError(f"UNet: expected {name} >= 1, got {value}")
    if not mults or min(mults) < 1:
        raise ValueError(f"UNet: expected one mult >= 1 for each level, got mults={tuple(mults)}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"UNet: expected 0 <= dropout < 1, got {dropout}")


def _check_factors(time_scale: float, output_scale: float) -> None:
    for name, value in (("time_scale", time_scale), ("output_scale", output_scale)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"UNet: expected a positive, finite {name}, got {value}")


def _width(base: int, channel_multiplier: float) -> int:
    """Returns the channels of the first level; the time embedding needs an even number >= 4."""
    width = base * channel_multiplier
    if width < 4 or width % 2:
        raise ValueError(
            "UNet: expected base * channel_multiplier to be an even number >= 4, "
            f"got {base} * {channel_multiplier} = {width:g}"
        )
    return int(width)


def _attending_levels(sides: Sequence[int], attention: Sequence[int]) -> set[int]:
    levels = set()
    for side in attention:
        if side < sides[-1]:
            raise ValueError(
                f"UNet: expected attention at one of the sides {tuple(sides)}, got {side}; "
                "add a level to mults, or leave it out"
            )
        levels.add(next(level for level, own in enumerate(sides) if own <= side))
    return levels
