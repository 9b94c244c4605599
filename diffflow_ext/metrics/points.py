"""Samples as the metrics take them: rows of finite numbers in float64, or images as bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Points = Tensor | NDArray[np.floating]
Images = Tensor | NDArray[np.uint8]
CHUNK_ELEMENTS = 1 << 22  # pairs of rows evaluated at a time: 32 MiB of float64


def pair(
    op: str, x: Points, y: Points, least: int, names: tuple[str, str] = ("x", "y")
) -> tuple[Tensor, Tensor]:
    """Both samples as float64 tensors on the device of the first, checked."""
    a = points(op, names[0], x, least)
    b = points(op, names[1], y, least).to(a.device)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{op}: expected {names[0]} and {names[1]} with as many columns, got shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}; compare the same columns"
        )
    return a, b


def points(op: str, name: str, x: Points, least: int) -> Tensor:
    """One sample of at least so many rows as a float64 tensor, checked."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
        x = torch.from_numpy(np.ascontiguousarray(x, np.float64))
    if not isinstance(x, Tensor) or x.is_complex():
        kind = getattr(x, "dtype", type(x).__name__)
        raise TypeError(
            f"{op}: expected {name} to be a tensor or array of real numbers, got {kind}; "
            "convert it first"
        )
    if x.ndim != 2 or len(x) < least or x.shape[1] < 1:
        raise ValueError(
            f"{op}: expected {name} of shape (n, d) with n >= {least} and d >= 1, got "
            f"{tuple(x.shape)}; flatten each row with reshape(len({name}), -1)"
        )
    x = x.detach().double()
    if not bool(x.isfinite().all()):
        count = int((~x.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"{op}: expected finite values, {count} of {len(x)} rows of {name} have NaN or "
            "infinity; a diverged sample has no distance, find its cause or leave such rows out"
        )
    return x


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of all pairs, with shape (n, m)."""
    # The product form |a|^2 + |b|^2 - 2ab loses all digits of close pairs, and breaks ties.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def chunks(x: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Consecutive rows of x, each part with the index of its first row.

    A part has as many rows as make CHUNK_ELEMENTS pairs with `width` others, at least one.
    """
    size = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, len(x), size):
        yield start, x[start : start + size]


def byte_images(op: str, images: Images) -> Tensor:
    """Images (n, C, H, W) of bytes as a tensor, checked."""
    dtype = getattr(images, "dtype", type(images).__name__)
    if str(dtype) not in ("uint8", "torch.uint8"):
        raise TypeError(
            f"{op}: expected images as uint8, got {dtype}; likelihood.quantise makes bytes of "
            "floats from -1 to 1"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{op}: expected images of shape (n, C, H, W) with n >= 1, got "
            f"{tuple(images.shape)}; grey images have C = 1: images[:, None]"
        )
    if isinstance(images, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(images))
    return images.detach()
