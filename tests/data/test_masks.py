"""Masks: their shapes, how often each of them is drawn, and what a context holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffflow_ext.data import open_dataset
from diffflow_ext.data.column import Column
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.masks import HALVES, Masks, hidden_half

N, H, W = 40_000, 5, 4
IMAGES = Masks((3, H, W))


def uniforms(masks: Masks, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, masks.uniforms, generator=generator, dtype=torch.float64)


def within(share: float, expected: float, n: int = N) -> bool:
    """Within four and a half standard errors of a share of n."""
    return abs(share - expected) <= 4.5 * (expected * (1 - expected) / n) ** 0.5


def test_kinds_of_masks_of_images() -> None:
    u = uniforms(IMAGES)
    hidden = ~IMAGES.drawn(u)[:, 0]
    assert hidden.shape == (N, H, W)
    halves, rectangles = u[:, 0] < 1 / 3, (u[:, 0] >= 1 / 3) & (u[:, 0] < 2 / 3)
    pixels = ~(halves | rectangles)
    assert all(within(float(kind.double().mean()), 1 / 3) for kind in (halves, rectangles, pixels))
    for name in HALVES:
        same = (hidden[halves] == hidden_half(name, H, W)).flatten(1).all(1)
        assert within(float(same.double().mean()), 0.25, int(halves.sum()))
    part = hidden[rectangles]
    rows, columns = part.any(2), part.any(1)
    assert torch.equal(part, rows[:, :, None] & columns[:, None, :])
    for along, size in ((rows, H), (columns, W)):
        lengths = along.sum(1)
        # One piece: it begins once.
        starts = along[:, :1].long().sum(1) + (along[:, 1:] & ~along[:, :-1]).sum(1)
        assert (starts == 1).all()
        for length in range(1, size + 1):
            mine = lengths == length
            assert within(float(mine.double().mean()), 1 / size, len(part))
            first = along[mine].long().argmax(1)
            for place in range(size - length + 1):
                share = float((first == place).double().mean())
                assert within(share, 1 / (size - length + 1), int(mine.sum()))
    # With a uniform rate every number of hidden pixels is as likely, and so is any pixel.
    counts = hidden[pixels].flatten(1).sum(1)
    for count in (0, 7, H * W):
        share = float((counts == count).double().mean())
        assert within(share, 1 / (H * W + 1), int(pixels.sum()))
    each = hidden[pixels].double().mean(0)
    assert all(within(float(share), 0.5, int(pixels.sum())) for share in each.flatten())


def test_halves_are_the_two_parts_of_an_image() -> None:
    for one, other in (HALVES[:2], HALVES[2:]):
        assert torch.equal(hidden_half(one, 5, 4), ~hidden_half(other, 5, 4))
    assert hidden_half("top", 5, 4).tolist() == [[True] * 4] * 2 + [[False] * 4] * 3
    assert hidden_half("right", 2, 4).tolist() == [[False, False, True, True]] * 2


def test_columns_are_hidden_with_both_of_their_coordinates() -> None:
    gap = {"missing": True, "shares": (0.5, 0.5)}
    columns = (Column("a", "continuous"), Column("b", "continuous", **gap))
    masks = Masks.of((3,), Encoding(columns))
    assert masks.owners == (0, 1, 1)
    a, b, b_known = masks.drawn(uniforms(masks)).T
    for column in (a, b):
        assert within(float(column.double().mean()), 0.5)
    # The rate is one of both: with a uniform one, both are seen in a third of the rows.
    assert within(float((a & b).double().mean()), 1 / 3)
    assert b_known[b].all()
    assert within(float(b_known[~b].double().mean()), 0.5, int((~b).sum()))


def test_contexts_hold_the_seen_part_and_the_mask() -> None:
    x = torch.randn(6, 3, H, W)
    mask = IMAGES.drawn(uniforms(IMAGES, 6))
    context = IMAGES.context(x, mask)
    assert context.shape == (6, *IMAGES.context_shape) == (6, 4, H, W)
    assert torch.equal(context[:, :3], x * mask)
    assert torch.equal(context[:, 3:], mask.float())
    x[~mask.expand_as(x)] = torch.nan
    assert torch.equal(IMAGES.context(x, mask), context)
    assert not IMAGES.none(2, x).any()


def test_records() -> None:
    conditions = Conditions(masks=Masks((4,), (0, 1, 2, 1)))
    assert Conditions.from_meta(conditions.to_meta()) == conditions
    assert conditions.names == ("masks",)
    assert conditions.context_dim == 8
    with pytest.raises(ValueError, match="expected columns, classes or masks"):
        Conditions(num_classes=3, masks=IMAGES)


def test_data_sets_with_masks() -> None:
    plain, data = (open_dataset("moons", num_points=50, condition=c) for c in ("", "masks"))
    assert data.conditions == Conditions(masks=Masks((2,), (0, 1)))
    assert data.given_of("train") is None
    assert data.fingerprint == plain.fingerprint
    rows = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8)
    images = open_dataset(rows, condition="masks", limit=5)
    assert images.conditions == Conditions(masks=Masks((1, 6, 6)))
    with pytest.raises(ValueError, match="expected condition='label' for images"):
        open_dataset(rows, condition="half")


def test_a_column_of_that_name_is_refused() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": torch.randn(50).numpy(), "masks": torch.randn(50).numpy()})
    with pytest.raises(ValueError, match=r"^open_dataset: expected no column 'masks' .*; rename"):
        open_dataset(frame, condition="masks")
