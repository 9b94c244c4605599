r"""Random masks: a model of data given any part of them.

A mask m is 1 where a value is seen and 0 where it is hidden. The context of a sample x is

.. math:: c = (m \, x, \; m)

Zeros stand for none: all is hidden. Columns of a table are hidden independently with a rate that
is uniform in (0, 1). Of images a third each of the masks hide

* a half: top, bottom, left or right;
* a rectangle, with sides uniform from one pixel to all, and a uniform place;
* independent pixels, with a rate that is uniform in (0, 1).

All channels of a pixel are hidden together, and both coordinates of a column with missing values;
but of half of the hidden ones it is seen whether they are missing, as it is known when one is
filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .encoding import Encoding

#: The word for masks as a condition.
MASKS = "masks"
#: Halves of an image, in the order in which masks are drawn.
HALVES = ("top", "bottom", "left", "right")
#: Uniforms of a mask of an image before those of its pixels.
_SHAPES = 6


@dataclass(frozen=True)
class Masks:
    """The masks of one kind of data.

    Attributes:
        event_shape: The shape of a sample x: (d,), or (C, H, W) of images.
        owners: The column of each coordinate of a table, in the order of `data.encoding`; none of
            images.
    """

    event_shape: tuple[int, ...]
    owners: tuple[int, ...] = ()

    @classmethod
    def of(cls, event_shape: tuple[int, ...], encoding: Encoding | None) -> Masks:
        """Returns the masks of rows with an encoding, or of images."""
        if encoding is None:
            return cls(event_shape)
        return cls(event_shape, (*range(len(encoding.columns)), *encoding.masked))

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> Masks:
        """Returns the masks from the plain data of `to_meta`."""
        return cls(tuple(map(int, values["event_shape"])), tuple(map(int, values["owners"])))

    def to_meta(self) -> dict[str, Any]:
        """Returns plain data for a manifest."""
        return {"event_shape": list(self.event_shape), "owners": list(self.owners)}

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """The shape of a mask: (d,), or (1, H, W) of images."""
        return self.event_shape if self.owners else (1, *self.event_shape[1:])

    @property
    def context_shape(self) -> tuple[int, ...]:
        """The shape of c: (2 d,), or (C + 1, H, W) of images."""
        channels, *rest = self.event_shape
        return (channels + self.mask_shape[0], *rest)

    @property
    def uniforms(self) -> int:
        """The uniform numbers that a mask is made of."""
        return 1 + len(self.owners) if self.owners else _SHAPES + math.prod(self.mask_shape)

    def drawn(self, uniforms: Tensor) -> Tensor:
        """Returns masks, bool of shape (n, *mask_shape), from uniforms of shape (n, uniforms)."""
        if self.owners:
            return self._of_columns(uniforms[:, :1], uniforms[:, 1:])
        return ~self._hidden_pixels(uniforms)[:, None]

    def _of_columns(self, rate: Tensor, u: Tensor) -> Tensor:
        columns = max(self.owners) + 1
        hidden = (u[:, :columns] < rate)[:, list(self.owners)]
        hidden[:, columns:] &= u[:, columns:] < 0.5
        return ~hidden

    def _hidden_pixels(self, u: Tensor) -> Tensor:
        _, height, width = self.event_shape
        kind, which, *corner = u[:, :_SHAPES].T[..., None, None]
        tall, top = _piece(height, corner[0], corner[1])
        wide, left = _piece(width, corner[2], corner[3])
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        rectangle = (rows >= top) & (rows < top + tall) & (columns >= left)
        rectangle &= columns < left + wide
        halves = torch.stack([hidden_half(half, height, width) for half in HALVES])
        half = halves[(4 * which[:, 0, 0]).long()]
        # The number that chooses a half is the rate of pixels elsewhere.
        pixels = u[:, _SHAPES:].reshape(-1, height, width) < which
        return torch.where(kind < 1 / 3, half, torch.where(kind < 2 / 3, rectangle, pixels))

    def context(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns contexts (n, *context_shape) of samples (n, *event_shape) and their masks."""
        return torch.cat([torch.where(mask, x, 0.0), mask.to(x)], dim=1)

    def none(self, count: int, like: Tensor) -> Tensor:
        """Returns contexts in which all is hidden, of the dtype and on the device of a tensor."""
        return like.new_zeros(count, *self.context_shape)


def hidden_half(half: str, height: int, width: int) -> Tensor:
    """Returns which pixels a half has, bool of shape (height, width); a middle one is below.

    Arguments:
        half: "top", "bottom", "left" or "right".
        height: The height of the image.
        width: Its width.
    """
    first = half in ("top", "left")
    part = torch.zeros(height, width, dtype=torch.bool)
    along = part if half in ("top", "bottom") else part.T
    middle = len(along) // 2
    (along[:middle] if first else along[middle:])[:] = True
    return part


def _piece(size: int, length: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a uniform length from 1 to size, and a uniform start, from uniforms."""
    long = 1 + (size * length).long().clamp(max=size - 1)
    return long, ((size - long + 1) * place).long().clamp(max=size - 1)
