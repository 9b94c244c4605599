"""Where a number went wrong: in which weight or gradient, for which sample, at which step.

Run once, when training stops; nothing of it costs anything before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffflow_ext.training.recipes import Recipe

__all__ = ["diagnose"]

#: Names and numbers that a message lists of each kind.
LISTED = 3


def diagnose(recipe: Recipe[Any], x0: Tensor, rows: Tensor, step: int, offset: int) -> str:
    """Returns what is not finite, in words.

    Arguments:
        recipe: The model, with the gradients of the step.
        x0: The samples of the step.
        rows: Their rows in the training data.
        step: The step, counted from 0.
        offset: The global index of the first sample.
    """
    module = recipe.module
    weights = {name: p.detach() for name, p in module.named_parameters()}
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    bad_samples = torch.cat([torch.nonzero(~finite_rows(x0)).flatten()])
    found = [_tensors("weights", weights)]
    if not found[0]:
        with torch.no_grad():
            bad_samples = torch.nonzero(~recipe.each(x0, step, offset).isfinite()).flatten()
        found += [_tensors("gradients", gradients), _samples(bad_samples, rows, offset)]
        if len(bad_samples):
            found.append(recipe.where_not_finite(x0, step, offset, int(bad_samples[0])))
    return "; ".join(text for text in found if text) or "every sample's loss is finite by itself"


def finite_rows(x: Tensor) -> Tensor:
    """Returns for each row whether all its numbers are finite."""
    return x.reshape(len(x), -1).isfinite().all(1)


def _tensors(kind: str, tensors: dict[str, Tensor]) -> str:
    counts = {name: int((~value.isfinite()).sum()) for name, value in tensors.items()}
    bad = [f"{n} ({count} of {tensors[n].numel()})" for n, count in counts.items() if count]
    return f"{kind} that are not finite: {_listed(bad)}" if bad else ""


def _samples(bad: Tensor, rows: Tensor, offset: int) -> str:
    if not len(bad):
        return ""
    named = [f"{int(i) + offset} (row {int(rows[i])} of the training data)" for i in bad]
    return f"samples of the batch whose loss is not finite: {_listed(named)}"


def _listed(texts: list[str]) -> str:
    more = len(texts) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")
