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
from diffflow_ext.data.masks import Masks
from diffflow_ext.functional.core import copied_to
from diffflow_ext.functional.noise import NoiseKey, normal

from ..config.fields import Config

#: The noise of dropped contexts, and that of masks; step 0 of the same purpose mirrors images.
DROPOUT_STEP, MASKS_STEP = 1, 2


class Contexts(Protocol):
    """The contexts of numbered samples."""

    def of(self, step: int, offset: int, count: int, x0: Tensor | None = None) -> Tensor:
        """Returns the contexts of samples offset to offset + count - 1 of a step, (count, ...).

        In training x0 are these samples.
        """
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

    def of(self, step: int, offset: int, count: int, x0: Tensor | None = None) -> Tensor:
        """Returns the contexts of a part of the batch of a step."""
        seed, size = self.config.run.seed, self.config.optimiser.batch_size
        rows = batch_indices(len(self.stored), size, seed, step)[offset : offset + count]
        context = self.conditions.context(self.stored[rows])
        dropped = _dropped(self.config, step, offset, len(rows))
        return copied_to(self.conditions.without(context, dropped), self.device)


class MaskContexts:
    """The seen parts of training batches under random masks, some of which hide all.

    Arguments:
        config: The configuration, resolved for these data.
        masks: The masks of the data.
    """

    def __init__(self, config: Config, masks: Masks) -> None:
        self.config, self.masks = config, masks

    def of(self, step: int, offset: int, count: int, x0: Tensor | None = None) -> Tensor:
        """Returns the contexts of samples x0, shape (count, *event), of a step."""
        assert x0 is not None
        uniforms = _uniforms(self.config, self.masks.uniforms, MASKS_STEP, step, offset, count)
        hidden = _dropped(self.config, step, offset, count)
        mask = self.masks.drawn(uniforms)
        mask &= ~hidden.reshape(-1, *(1,) * (mask.dim() - 1))
        return self.masks.context(x0, copied_to(mask, x0.device))


def _dropped(config: Config, step: int, offset: int, count: int) -> Tensor:
    """Returns which samples of a step are trained without their context, shape (count,)."""
    share = config.optimiser.label_dropout
    return _uniforms(config, 1, DROPOUT_STEP, step, offset, count)[:, 0] < share


def _uniforms(
    config: Config, numbers: int, purpose_step: int, step: int, offset: int, count: int
) -> Tensor:
    """Returns uniforms of each sample of a training step, shape (count, numbers)."""
    key = NoiseKey(config.run.seed, stream=step)
    draws = normal((count, numbers), key, purpose="data", step=purpose_step, sample_offset=offset)
    return torch.special.ndtr(draws.double())


class GivenContexts:
    """The contexts of given rows, the same in each step.

    Arguments:
        conditions: What the model is conditioned on.
        stored: Classes, int64 of shape (n,), rows as the conditions store them, or contexts of
            masks.
        device: The device of the contexts.
        times: How many samples in a row each row is for.
    """

    def __init__(
        self, conditions: Conditions, stored: Tensor, device: torch.device, times: int = 1
    ) -> None:
        self.conditions, self.stored, self.device = conditions, stored, device
        self.times = times

    def of(self, step: int, offset: int, count: int, x0: Tensor | None = None) -> Tensor:
        """Returns the contexts of samples offset to offset + count - 1."""
        end = min(offset + count, len(self.stored) * self.times)
        rows = torch.arange(offset, end) // self.times
        return copied_to(self.conditions.context(self.stored[rows]), self.device)
