"""Contexts of batches: whose they are, and which of them stand for none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffflow_ext.data import batch_indices
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.masks import Masks
from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.loop.batches import Batches
from diffflow_ext.training.recipes.contexts import BatchContexts, GivenContexts, MaskContexts

CPU = torch.device("cpu")
N, SIZE = 50, 32
LABELS = Conditions(num_classes=N)


def config(**values: Any) -> Any:
    made = configure(data="x", batch_size=SIZE, seed=4, condition="label", flip="on", **values)
    return resolve(made, is_image=True)


def contexts(**values: Any) -> BatchContexts:
    return BatchContexts(config(**values), LABELS, torch.arange(N), CPU)


@pytest.mark.parametrize("step", [0, 3])
def test_contexts_are_those_of_the_rows(step: int) -> None:
    """Rows of images hold their number, so the batch itself says whose context is right."""
    made = config(label_dropout=0.0)
    images = torch.arange(N, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    whole = BatchContexts(made, LABELS, torch.arange(N), CPU)
    assert torch.equal(whole.of(step, 0, SIZE), batch_indices(N, SIZE, 4, step))
    for part in (range(10), range(10, 23), range(23, SIZE)):
        batch = Batches(made, images, CPU, part)(step)
        numbers = ((batch[:, 0, 0, 0] + 1) * 128).floor().long()
        assert torch.equal(whole.of(step, part.start, len(part)), numbers)


def test_dropped_contexts_do_not_depend_on_the_parts() -> None:
    own = contexts(label_dropout=0.5)
    parts = [own.of(7, 0, 5), own.of(7, 5, 1), own.of(7, 6, SIZE - 6)]
    assert torch.equal(torch.cat(parts), own.of(7, 0, SIZE))


def test_the_share_of_dropped_contexts() -> None:
    def dropped(share: float, step: int) -> Tensor:
        return contexts(label_dropout=share).of(step, 0, SIZE) == N

    share = torch.cat([dropped(0.1, step) for step in range(300)]).double().mean()
    # 9,600 draws: within four standard errors.
    assert abs(float(share) - 0.1) < 4 * (0.09 / 9600) ** 0.5
    assert not any(dropped(0.0, step).any() for step in range(20))
    # Others in each step.
    assert not torch.equal(dropped(0.5, 0), dropped(0.5, 1))


def test_vectors_are_dropped_as_a_whole() -> None:
    made = configure(data="x", batch_size=SIZE, seed=4, condition="a,b", label_dropout=0.5)
    conditions = Conditions(Encoding.linear(["a", "b"], [0.0] * 2, [1.0] * 2))
    stored = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    own = BatchContexts(resolve(made, is_image=False), conditions, stored, CPU).of(0, 0, SIZE)
    none = own[:, -1] == 0
    assert 5 < int(none.sum()) < 27
    assert (own[none] == 0).all()
    assert torch.equal(own[~none][:, :2], stored[batch_indices(N, SIZE, 4, 0)][~none])


def test_given_contexts_are_rows() -> None:
    given = GivenContexts(LABELS, torch.arange(9), CPU)
    assert given.of(5, 3, 4).tolist() == [3, 4, 5, 6]


# --- masks --------------------------------------------------------------------------------------

MASKS = Masks((1, 4, 4))
IMAGES = torch.rand(SIZE, 1, 4, 4) + 1


def masked(**values: Any) -> MaskContexts:
    made = configure(data="x", batch_size=SIZE, seed=4, condition="masks", **values)
    return MaskContexts(resolve(made, is_image=True), MASKS)


def test_masks_do_not_depend_on_the_parts_of_a_batch() -> None:
    whole = masked().of(7, 0, SIZE, IMAGES)
    parts = [masked().of(7, i, n, IMAGES[i : i + n]) for i, n in ((0, 5), (5, 1), (6, SIZE - 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole[:, :1], IMAGES * whole[:, 1:])
    assert not torch.equal(masked().of(8, 0, SIZE, IMAGES), whole)
    # Other samples in a batch have other masks.
    assert len(whole[:, 1].unique(dim=0)) > SIZE / 2


def test_the_share_of_samples_of_which_all_is_hidden() -> None:
    def hidden(share: float) -> float:
        own = masked(label_dropout=share)
        masks = torch.cat([own.of(step, 0, SIZE, IMAGES)[:, 1] for step in range(300)])
        return float((masks == 0).all(2).all(1).double().mean())

    # Besides those of which all is hidden on purpose, one rectangle in 16 is the image, and of the
    # pixels one number of 17.
    chance = (1 / 16 + 1 / 17) / 3
    for share in (0.0, 0.1):
        expected = share + (1 - share) * chance
        assert abs(hidden(share) - expected) < 4.5 * (expected * (1 - expected) / 9600) ** 0.5


def test_given_contexts_of_several_samples_in_a_row() -> None:
    given = GivenContexts(LABELS, torch.arange(9), CPU, times=3)
    assert given.of(5, 4, 6).tolist() == [1, 1, 2, 2, 2, 3]
