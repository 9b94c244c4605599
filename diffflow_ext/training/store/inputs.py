"""From rows as a data set has them to inputs of a model, and from densities to those of rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffflow_ext.data.encoding import Encoding
from diffflow_ext.functional.noise import NoiseKey, normal
from diffflow_ext.likelihood.images import LEVELS_PER_UNIT, dequantise


def model_inputs(
    encoding: Encoding | None, rows: Tensor, key: NoiseKey, sample_offset: int = 0
) -> Tensor:
    """Returns inputs of a model, float32: images dequantised, rows as their encoding says.

    Arguments:
        encoding: The encoding of rows; None for images.
        rows: Rows as a data set has them, or images in bytes.
        key: The seed and stream of the noise, if there is any.
        sample_offset: The global index of the first row.
    """
    if encoding is None:
        return dequantise(rows, key, sample_offset=sample_offset)
    if not encoding.is_random:
        return rows
    noise = normal(
        (len(rows), encoding.dim), key, purpose="dequantise", sample_offset=sample_offset,
        device=rows.device,
    )  # fmt: skip
    return encoding.inputs(rows, noise)


def log_weight(encoding: Encoding | None, rows: Tensor, x: Tensor) -> Tensor:
    """Returns what is added to log-densities of inputs x to get those of rows, float64, (n,).

    Of images in bytes -d log 128: see `likelihood.images`.
    """
    if encoding is None:
        dim = math.prod(rows.shape[1:])
        return torch.full((len(rows),), -dim * math.log(LEVELS_PER_UNIT), dtype=torch.float64)
    return encoding.log_weight(rows, x)
