"""Contexts: which are taken, and which rows belong to which samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffflow_ext.functional.contexts import (
    checked_context,
    learned_tensors,
    leaves_of,
    repeated,
    rows_for,
    tensors_of,
)

X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("context", "error", "text"),
    [
        ([1, 2, 3, 4], TypeError, "context as a tensor of shape (4, ...) or a mapping of names"),
        ({}, TypeError, "or a mapping of names to such tensors, got {}"),
        ({"a": 3}, TypeError, "expected context['a'] to be a tensor, got int"),
        (torch.zeros(3, 2), ValueError, "context of shape (4, ...), one row for each sample, got"),
        (torch.zeros(()), ValueError, "one row for each sample, got ()"),
        ({"a": torch.zeros(4), "b": torch.zeros(8)}, ValueError, "context['b'] of shape (4, ...)"),
        (torch.zeros(4).double(), TypeError, "in the dtype of the samples (float32), got float64"),
        (torch.zeros(4, device="meta"), ValueError, "device of the samples (cpu), got meta"),
        (
            torch.tensor([0.0, 1, 2, torch.nan]),
            ValueError,
            "finite context, got nan at index (3,)",
        ),
    ],
)
def test_what_is_no_context_of_these_samples(context: Any, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        checked_context("op", context, X)
    assert str(caught.value).startswith("op: expected")
    assert text in str(caught.value)


def test_contexts_are_handed_on_as_they_are() -> None:
    assert checked_context("op", None, X) is None
    c = torch.randn(4, 2, requires_grad=True)
    labels = torch.arange(4)
    assert checked_context("op", c, X) is c
    both = checked_context("op", {"c": c, "labels": labels}, X)
    assert isinstance(both, dict)
    assert both["c"] is c
    assert both["labels"] is labels
    assert [t is c for t in learned_tensors(both)] == [True]
    assert tensors_of(None) == []


def test_leaves_have_no_graph_and_the_same_memory() -> None:
    c = torch.randn(4, 2, requires_grad=True).exp()
    leaf = leaves_of({"c": c, "labels": torch.arange(4)})
    assert leaf["c"].is_leaf
    assert leaf["c"].requires_grad
    assert leaf["c"].data_ptr() == c.data_ptr()
    assert not leaf["labels"].requires_grad


def test_rows_of_one_or_several_states() -> None:
    c = torch.arange(4)
    assert rows_for(c, X) is c
    states = rows_for({"c": c}, torch.zeros(12, 3))
    assert isinstance(states, dict)
    assert states["c"].tolist() == [0, 1, 2, 3] * 3
    assert rows_for(torch.zeros(0, 2), torch.zeros(0, 3)).shape == (0, 2)  # pyright: ignore
    for rows in (2, 6, 0):
        if rows:
            with pytest.raises(ValueError, match="one or several states of 4 samples"):
                rows_for(c, torch.zeros(rows, 3))
    assert repeated(c, slice(1, 3), 3).tolist() == [1, 1, 1, 2, 2, 2]
    assert repeated(None, slice(1, 3), 3) is None
