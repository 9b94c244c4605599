r"""Likelihoods of 8-bit images: dequantisation and bits per dimension.

A pixel of level k in 0 ... 255 becomes a number in [-1, 1),

.. math:: x = \frac{k + u}{128} - 1, \qquad u \sim \mathcal U(0, 1)

and a density of x bounds the probability of the level from below:

.. math:: \log_2 P(k) \ge \mathbb E_u \left[ \log_2 p(x) \right] - 7 \quad \text{per dimension}

References:
    | A note on the evaluation of generative models (Theis et al., 2016), section 3.1
    | https://arxiv.org/abs/1511.01844
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from diffflow_ext.functional.checks import check_device, checked_count
from diffflow_ext.functional.noise import (
    NoiseKey,
    checked_key,
    checked_sample_offset,
    normal,
)
from diffflow_ext.functional.tensors import checked_tensor

#: Levels of a pixel over the width of the interval it is scaled to: 256 / 2.
LEVELS_PER_UNIT = 128
#: A larger u could round k + u up to the next level in float32.
_MAX_NOISE = 1.0 - 2.0**-16
Number = TypeVar("Number", float, Tensor)


def dequantise(
    images: Tensor, key: NoiseKey | Tensor | None = None, *, sample_offset: int = 0
) -> Tensor:
    r"""Returns images with uniform noise added to their levels, scaled to [-1, 1).

    .. math:: x = \frac{k + u}{128} - 1, \qquad u = \Phi(n)

    with keyed standard normals n and their distribution function :math:`\Phi`.

    Arguments:
        images: Levels, uint8, shape (B, *event).
        key: Seed and stream of the noise. Default: drawn from torch's generator.
        sample_offset: The global index of the first image.

    Returns:
        The images, float32, shape (B, *event).

    Raises:
        TypeError: If images are not a uint8 tensor.
        ValueError: If an argument is out of its range.
    """
    op = "dequantise"
    images = checked_tensor(op, "images", images)
    if images.dtype != torch.uint8:
        raise TypeError(
            f"{op}: expected images to be uint8 levels, got {images.dtype}; images that are "
            "continuous already need no noise"
        )
    if images.dim() < 1:
        raise ValueError(f"{op}: expected images of shape (B, *event), got shape ()")
    check_device(op, "images", images)
    key = NoiseKey.from_torch() if key is None else checked_key(op, key, images.device)
    offset = checked_sample_offset(op, sample_offset, images.shape[0])
    noise = {"purpose": "dequantise", "sample_offset": offset, "device": images.device}
    normals = normal(tuple(images.shape), key, **noise)
    uniforms = torch.special.ndtr(normals).clamp_(max=_MAX_NOISE)
    return (images + uniforms) / LEVELS_PER_UNIT - 1


def quantise(x: Tensor) -> Tensor:
    """Returns the levels, uint8, of images in [-1, 1); values outside go to the nearest level.

    The inverse of :func:`dequantise`, whatever the noise was.

    Arguments:
        x: Images, any floating dtype and shape.

    Raises:
        TypeError: If x is not a floating tensor.
        ValueError: If x has a NaN.
    """
    x = checked_tensor("quantise", "x", x)
    if not x.is_floating_point():
        raise TypeError(f"quantise: expected x to be floating, got {x.dtype}")
    if bool(x.isnan().any()):
        raise ValueError("quantise: expected numbers, got NaN; a diverged sample has no levels")
    levels = ((x.double() + 1) * LEVELS_PER_UNIT).floor()
    return levels.clamp(0, 2 * LEVELS_PER_UNIT - 1).to(torch.uint8)


def bits_per_dim(nats: Number, dim: int) -> Number:
    r"""Returns bits per dimension of 8-bit images from nats of their scaled, dequantised values.

    .. math:: \frac{\text{nats}}{d \ln 2} + 7

    Arguments:
        nats: Negative log-likelihood per image in the units of :func:`dequantise`, a number or a
            tensor.
        dim: The number of dimensions d of an image, at least 1.

    Returns:
        Bits per dimension, an upper bound for the 8-bit image; 8 is a uniform guess.

    Raises:
        TypeError: If `dim` is not an integer.
        ValueError: If `dim` is less than 1.
    """
    d = checked_count("bits_per_dim", "dim", dim, 1, 2**40)
    return nats / (d * math.log(2)) + math.log2(LEVELS_PER_UNIT)
