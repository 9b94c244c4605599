"""Smaller images by area averaging, in exact integer arithmetic."""

from __future__ import annotations

import operator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

PIXELS = 1 << 24  # converted to float64 at a time: 128 MiB


def resize_images(images: Tensor, size: int) -> Tensor:
    r"""Resizes images to `size` x `size` pixels, each the mean of the area that it covers.

    .. math:: y = \mathrm{round}\Big( \frac{W_H\, x\, W_W^T}{H W} \Big)

    with integer overlaps :math:`W`, so the mean is exact; halves are rounded to even. Images that
    are not square are cropped to their centre first. Those of the MNIST family, 28 x 28 with one
    channel and a black border, are padded to 32 x 32 if 32 is a multiple of `size` and 28 is not:
    14 and 7 come from 28; 32, 16 and 8 from 32.

    Arguments:
        images: uint8, shape (n, C, H, W).
        size: The new height and width, at least 1 and at most min(H, W), after padding.

    Returns:
        uint8, shape (n, C, size, size).

    Raises:
        TypeError: If `size` is not an integer.
        ValueError: If the images would have to grow.
    """
    size = operator.index(size)
    height, width = images.shape[2:]
    if tuple(images.shape[1:]) == (1, 28, 28) and size >= 1 and 28 % size and 32 % size == 0:
        images = pad(images, (2, 2, 2, 2))
    side = min(images.shape[2:])
    if not 1 <= size <= side:
        raise ValueError(
            f"resize_images: expected image_size from 1 to {side}, the size of these images "
            f"({height} x {width}), got {size}; images are made smaller, never larger"
        )
    images = _centre(images, side)
    if size == side:
        return images.contiguous()
    weights = _overlaps(side, size)
    small = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    rows = max(1, PIXELS // max(1, images[:1].numel()))
    for part, out in zip(images.split(rows), small.split(rows), strict=True):
        out.copy_(_average(part, weights))
    return small


def _centre(images: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


def _overlaps(side: int, size: int) -> NDArray[np.float64]:
    """Returns the overlap of new pixel j and old pixel i times `size`, shape (size, side)."""
    old = np.arange(side) * size
    new = np.arange(size)[:, None] * side
    overlap = np.minimum(old + size, new + side) - np.maximum(old, new)
    return np.maximum(overlap, 0).astype(np.float64)


def _average(images: Tensor, weights: NDArray[np.float64]) -> Tensor:
    # Sums are integers below 255 side^2, which float64 holds exactly in any order; one division
    # rounds once. Large images are taken some columns at a time.
    size, side = weights.shape
    sums = np.zeros((*images.shape[:2], size, size))
    columns = max(1, PIXELS * side // max(1, images.numel()))
    for start in range(0, side, columns):
        part = images[..., start : start + columns].numpy().astype(np.float64, order="C")
        sums += weights @ part @ weights[:, start : start + columns].T
    return torch.from_numpy(np.rint(sums / weights.sum(axis=1)[0] ** 2).astype(np.uint8))
