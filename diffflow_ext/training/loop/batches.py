"""Batches of training steps: rows and images as inputs of a model, images mirrored at random.

Every batch is a pure function of (seed, step), so resuming needs no saved state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffflow_ext.data import batch_indices
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.functional.core import copied_to
from diffflow_ext.functional.noise import NoiseKey, normal

from ..config.fields import Config
from ..store.inputs import model_inputs

# Larger data stay in host memory, and only batches are copied to the device.
MAX_RESIDENT_BYTES = 2 * 2**30


class Batches:
    """The training data in memory, and the batch of each step.

    Arguments:
        config: The configuration, resolved for these data.
        data: Rows as a data set has them, float32, or images, uint8.
        device: The device of the batches.
        part: The indices of each batch that this process computes; all by default.
        encoding: The encoding of rows; None for images, and for rows that are inputs.
    """

    def __init__(
        self,
        config: Config,
        data: Tensor,
        device: torch.device,
        part: range | None = None,
        encoding: Encoding | None = None,
    ) -> None:
        resident = data.numel() * data.element_size() <= MAX_RESIDENT_BYTES
        self.config, self.device, self.encoding = config, device, encoding
        self.part = range(config.optimiser.batch_size) if part is None else part
        self.data = data.to(device) if resident else data

    def __call__(self, step: int) -> Tensor:
        """Returns this process's part of the batch of a step, float32, shape (B, *event)."""
        rows = copied_to(self.rows(step), self.data.device)
        return self.inputs(copied_to(self.data[rows], self.device), step)

    def inputs(self, rows: Tensor, step: int) -> Tensor:
        """Returns rows of the data as inputs of the model, with the noise of a step."""
        if self.encoding is None and rows.dtype != torch.uint8:
            return rows
        key, start = NoiseKey(self.config.run.seed, stream=step), self.part.start
        if self.config.data.flip == "on":
            rows = mirrored(rows, key, sample_offset=start)
        return model_inputs(self.encoding, rows, key, start)

    def rows(self, step: int) -> Tensor:
        """Returns the indices of the rows in this process's part of a batch."""
        config = self.config
        rows = batch_indices(len(self.data), config.optimiser.batch_size, config.run.seed, step)
        return rows[self.part.start : self.part.stop]


def mirrored(images: Tensor, key: NoiseKey, *, sample_offset: int = 0) -> Tensor:
    """Returns images (B, C, H, W), each mirrored left to right with probability 1/2."""
    draws = normal(
        (len(images), 1, 1, 1), key, purpose="data", sample_offset=sample_offset,
        device=images.device,
    )  # fmt: skip
    return torch.where(draws > 0, images.flip(-1), images)
