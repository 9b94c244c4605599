"""Contexts of samples: those of training batches, and those of given rows.

Losses, samplers and likelihoods ask for the context of samples by their global indices. In
training it is, as the batch itself, a pure function of (seed, step).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from diffflow_ext.data import batch_indices
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.functional.core import copied_to
from diffflow_ext.functional.noise import NoiseKey, normal

from ..config.fields import Config

#: The noise of dropped contexts; step 0 of the same purpose mirrors images.
DROPOUT_STEP = 1


class Contexts(Protocol):
    """The contexts of numbered samples."""

    def of(self, step: int, offset: int, count: int) -> Tensor:
        """Returns the contexts of samples offset to offset + count - 1 of a step, (count, ...)."""
        ...


class BatchContexts:
    """The contexts of training batches, some of them replaced by that which stands for none.

    Arguments:
        config: The configuration, resolved for these data.
        conditions: What the model is conditioned on.
        stored: The conditions of all training rows, as `Dataset.given` has them.
        device: The device of the contexts.
    """

    def __init__(
        self, config: Config, conditions: Conditions, stored: Tensor, device: torch.device
    ) -> None:
        self.config, self.conditions = config, conditions
        self.stored, self.device = stored, device

    def of(self, step: int, offset: int, count: int) -> Tensor:
        """Returns the contexts of a part of the batch of a step."""
        seed, size = self.config.run.seed, self.config.optimiser.batch_size
        rows = batch_indices(len(self.stored), size, seed, step)[offset : offset + count]
        context = self.conditions.context(self.stored[rows])
        key = NoiseKey(seed, stream=step)
        draws = normal(
            (len(rows), 1), key, purpose="data", step=DROPOUT_STEP, sample_offset=offset
        )
        share = self.config.optimiser.label_dropout
        dropped = torch.special.ndtr(draws[:, 0].double()) < share
        return copied_to(self.conditions.without(context, dropped), self.device)


class GivenContexts:
    """The contexts of given rows, the same in each step.

    Arguments:
        conditions: What the model is conditioned on.
        stored: Classes, int64 of shape (n,), or rows as the conditions store them.
        device: The device of the contexts.
    """

    def __init__(self, conditions: Conditions, stored: Tensor, device: torch.device) -> None:
        self.conditions, self.stored, self.device = conditions, stored, device

    def of(self, step: int, offset: int, count: int) -> Tensor:
        """Returns the contexts of rows offset to offset + count - 1."""
        part = self.stored[offset : offset + count]
        return copied_to(self.conditions.context(part), self.device)
