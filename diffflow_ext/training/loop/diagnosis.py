"""Finds the weight, sample, step or gradient that is not finite, after a step has failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..recipes.base import Recipe

#: The largest number of names in a message.
LISTED = 3


def diagnose(
    recipe: Recipe[Any, Any], x0: Tensor, rows: Tensor, step: int, offset: int, seed: int = 0
) -> str:
    """Returns a description of what is not finite; "" if everything is.

    Arguments:
        recipe: The model, with the weights before the step.
        x0: The samples of the step.
        rows: Their rows in the training data.
        step: The step, counted from 0.
        offset: The global index of the first sample.
        seed: The seed of torch's generator in this step, for networks with dropout.
    """
    weights = _tensors("weights", dict(recipe.module.named_parameters()))
    if weights:
        return weights
    torch.manual_seed(seed)
    with torch.no_grad():
        bad = torch.nonzero(~recipe.sample_losses(x0, step, offset).isfinite()).flatten().tolist()
    if not bad:
        torch.manual_seed(seed)
        return _tensors("gradients", _gradients(recipe, x0, step, offset))
    if len(bad) == len(x0) > 1:
        text = f"not finite is the loss of all {len(x0)} samples: the weights have gone astray"
    else:
        text = _samples(bad, rows, offset)
    reason = recipe.where_not_finite(x0[bad[0] : bad[0] + 1], step, offset + bad[0])
    return f"{text}; of the first of them, {reason}" if reason else text


def _samples(bad: list[int], rows: Tensor, offset: int) -> str:
    named = [f"{i + offset} (row {int(rows[i])} of the training data)" for i in bad]
    return f"not finite is the loss of samples {_listed(named)} of the batch"


def _gradients(recipe: Recipe[Any, Any], x0: Tensor, step: int, offset: int) -> dict[str, Tensor]:
    """Returns the gradients by name, before clipping, which makes all of them not finite."""
    names = {id(p): name for name, p in recipe.module.named_parameters()}
    gradients = {}
    # New objectives, because a sharded module has other parameters while they are gathered.
    for objective, gathered in zip(recipe.objectives, recipe.make_objectives(), strict=True):
        loss = objective.loss(x0, step, offset)
        grads = torch.autograd.grad(loss, list(gathered.parameters), allow_unused=True)
        for p, grad in zip(gathered.parameters, grads, strict=True):
            if grad is not None:
                gradients[names[id(p)]] = grad
    return gradients


def _tensors(kind: str, tensors: Mapping[str, Tensor]) -> str:
    counts = {name: int((~value.isfinite()).sum()) for name, value in tensors.items()}
    bad = [
        f"{n} ({count} of {tensors[n].numel()} numbers)" for n, count in counts.items() if count
    ]
    return f"not finite are the {kind} {_listed(bad)}" if bad else ""


def _listed(texts: list[str]) -> str:
    more = len(texts) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")
