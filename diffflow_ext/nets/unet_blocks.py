"""The blocks of the U-Net: levels, residual blocks and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_GROUPS, MIN_GROUP_SIZE = 32, 4


class BlockOptions(NamedTuple):
    """Options of all blocks of a network."""

    embedding: int  # width of the time embedding
    dropout: float  # probability
    scale_shift: bool  # whether time scales and shifts, or is added


class DownLevel(nn.Module):
    """Blocks at one resolution on the way down, then a step to the next resolution."""

    def __init__(
        self,
        before: int,
        after: int,
        blocks: int,
        attend: bool,
        halve: bool,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        inputs = [before] + [after] * (blocks - 1)
        self.stages = nn.ModuleList(Stage(width, after, attend, options) for width in inputs)
        self.halve = nn.Conv2d(after, after, 3, stride=2, padding=1) if halve else None

    def forward(self, h: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the input of the next level, and the states for skip connections."""
        states = [h]
        for stage in self.stages:
            h = stage(h, embedding)
            states.append(h)
        return (h if self.halve is None else self.halve(h)), states


class UpLevel(nn.Module):
    """Blocks at one resolution on the way up, each with a skip connection.

    `widths` are the channels of the next finer level, of this level, and of the input; `side` is
    that of the next finer level, None at the top.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        attend: bool,
        side: int | None,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        before, own, incoming = widths
        skips = [own] * blocks + [before]
        inputs = [incoming] + [own] * blocks
        self.stages = nn.ModuleList(
            Stage(width + skip, own, attend, options)
            for width, skip in zip(inputs, skips, strict=True)
        )
        self.side = side
        self.smooth = None if side is None else nn.Conv2d(own, own, 3, padding=1)

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """Returns the input of the next finer level."""
        for stage in self.stages:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        if self.smooth is None or self.side is None:
            return h
        return self.smooth(functional.interpolate(h, size=(self.side, self.side)))


class Stage(nn.Module):
    """A residual block, and attention after it where the level attends."""

    def __init__(self, before: int, after: int, attend: bool, options: BlockOptions) -> None:
        super().__init__()
        self.block = ResidualBlock(before, after, options)
        self.attention = SelfAttention(after) if attend else None

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Returns a state of `after` channels."""
        h = self.block(h, embedding)
        return h if self.attention is None else self.attention(h)


class ResidualBlock(nn.Module):
    r"""Two convolutions beside a shortcut.

    .. math:: y = S x + \text{conv}_2(\sigma(\text{norm}_2(\text{conv}_1(\sigma(\text{norm}_1(x)))
                  + W e)))

    with :math:`\sigma` SiLU and :math:`S` the identity or a 1 x 1 convolution.
    """

    def __init__(self, before: int, after: int, options: BlockOptions) -> None:
        super().__init__()
        self.scale_shift = options.scale_shift
        self.norm_in, self.conv_in = group_norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(options.embedding, 2 * after if self.scale_shift else after)
        self.norm_out, self.dropout = group_norm(after), nn.Dropout(options.dropout)
        self.conv_out = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Returns y from x and the time embedding e."""
        h = self.conv_in(functional.silu(self.norm_in(x)))
        time = self.time(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + time)
        return self.shortcut(x) + self.conv_out(self.dropout(functional.silu(h)))


class SelfAttention(nn.Module):
    r"""Attention with one head over the pixels: :math:`y = x + P \, v \, \text{softmax}(q^T k)`.

    Plain products have second derivatives, which continuous flows need, and are deterministic.
    Fused attention has neither.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns y from x."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weight = (q.transpose(1, 2) @ (k * q.shape[1] ** -0.5)).softmax(dim=2)
        return x + self.output((v @ weight.transpose(1, 2)).reshape(x.shape))


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a group norm; groups of one channel would remove the added time embedding."""
    most = max(1, min(MAX_GROUPS, channels // MIN_GROUP_SIZE))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)
