"""Columns of runs as axes: values in the units of the data, also between data and noise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import open_dataset
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.training.evaluation.axes import (
    chosen,
    drawable,
    sample_axes,
    sample_values,
    state_axes,
    state_values,
)

RNG = np.random.default_rng(0)
N = 400
FRAME = pd.DataFrame({
    "plain": RNG.normal(5.0, 2.0, N),
    "price": np.exp(RNG.normal(3.0, 1.0, N)),
    "wild": 10.0 * RNG.standard_t(2, N),
    "share": 1.0 / (1.0 + np.exp(-RNG.normal(0.0, 1.0, N))),
    "count": RNG.poisson(3.0, N),
    "code": RNG.choice([1.5, 2.5, 9.0], N),
    "word": RNG.choice(["a", "b"], N),
    "gap": np.where(RNG.random(N) < 0.3, np.nan, RNG.normal(40.0, 9.0, N)),
})  # fmt: skip
KINDS = {
    "price": "positive", "wild": "heavy", "share": "bounded 0 1", "count": "integer",
    "code": "category", "plain": "continuous",
}  # fmt: skip
SCALES = ["linear", "log", "asinh", "linear", "linear", "linear", "linear", "linear"]
STATE_SCALES = ["linear", "log", "asinh", "logit", "linear", "normal", "normal", "linear"]


@pytest.fixture(scope="module")
def data() -> tuple[Encoding, torch.Tensor]:
    """The encoding of the table, and inputs of its first rows in their order."""
    dataset = open_dataset(FRAME, columns=KINDS, missing="mask")
    assert dataset.encoding is not None
    noise = torch.randn((len(dataset.train), dataset.encoding.dim),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    return dataset.encoding, dataset.encoding.inputs(dataset.train, noise)


def test_samples_have_the_values_of_the_table(data: tuple[Encoding, torch.Tensor]) -> None:
    encoding, x = data
    picks = chosen("op", encoding, None)
    axes, values = sample_axes(encoding, picks), sample_values(encoding, x, picks)
    assert [axis.name for axis in axes] == [*FRAME]
    assert [axis.scale for axis in axes] == SCALES
    assert [axis.gaps for axis in axes] == [False] * 7 + [True]
    assert [axis.step for axis in axes] == [0, 0, 0, 0, 1, 1, 1, 0]
    assert axes[5].labels == ("1.5", "2.5", "9")
    assert axes[6].labels == ("a", "b")
    numbers = FRAME.assign(
        code=FRAME.code.map({1.5: 0, 2.5: 1, 9.0: 2}), word=FRAME.word.map({"a": 0, "b": 1})
    ).to_numpy(np.float64)
    # Each row is one of the table.
    for row in values[:50]:
        near = np.isclose(numbers, row, rtol=1e-4, atol=1e-3, equal_nan=True).all(1)
        assert near.sum() == 1


def test_states_are_decoded_column_by_column(data: tuple[Encoding, torch.Tensor]) -> None:
    """Even places of an axis are even coordinates of the model, also far from the data."""
    encoding, x = data
    picks = [i for i, name in enumerate(FRAME) if name != "gap"]
    axes = state_axes(encoding, picks)
    assert [axis.scale for axis in axes] == STATE_SCALES[:-1]
    line = torch.linspace(-5.0, 5.0, 41, dtype=torch.float64)
    states = line[:, None, None].expand(41, 3, encoding.dim)
    values = state_values(encoding, states, picks)
    for axis, column in zip(axes, values.transpose(2, 0, 1), strict=True):
        places = axis.place(column)[:, 0]
        steps = np.diff(places)
        assert np.allclose(steps, steps[0], rtol=1e-3), axis.name
        assert steps[0] > 0.0
    # At the data they are its values; of whole numbers those with the noise within half a step.
    start = state_values(encoding, torch.stack([x, x]), picks)[0]
    decoded = encoding.decoded(x).numpy()[:, picks]
    assert np.allclose(start[:, :4], decoded[:, :4], rtol=1e-4)
    assert np.abs(start[:, 4] - decoded[:, 4]).max() <= 0.5 + 1e-3


def test_categories_lie_in_their_cells(data: tuple[Encoding, torch.Tensor]) -> None:
    encoding, x = data
    (axis,), values = state_axes(encoding, [5]), state_values(encoding, x[None], [5])[0, :, 0]
    cells = np.searchsorted(axis.edges, values)
    assert np.array_equal(cells, sample_values(encoding, x, [5])[:, 0])
    assert axis.labels == ("1.5", "2.5", "9")


def test_particles_with_a_gap_are_left_out(data: tuple[Encoding, torch.Tensor]) -> None:
    encoding, x = data
    states = torch.stack([x, torch.zeros_like(x)])
    known = ~np.isnan(sample_values(encoding, x, [7])[:, 0])
    assert 0.5 < known.mean() < 0.9
    values = state_values(encoding, states, [7, 0])
    assert values.shape == (2, known.sum(), 2)
    assert np.allclose(values[0, :, 1], sample_values(encoding, x, [0])[known, 0], rtol=1e-5)
    assert state_values(encoding, states, [0, 1]).shape == (2, len(x), 2)


def test_missing_words_are_a_category() -> None:
    frame = pd.DataFrame({"word": [*"ab", None] * 40, "code": [1.0, 2.0, math.nan] * 40})
    kinds = {"word": "category", "code": "category"}
    dataset = open_dataset(frame, columns=kinds, missing="mask")
    encoding = dataset.encoding
    assert encoding is not None
    axes = sample_axes(encoding, [0, 1])
    assert sorted(axes[0].labels) == ["a", "b", "missing"]
    assert axes[1].labels == ("1", "2", "missing")
    assert not any(axis.gaps for axis in axes)
    noise = torch.randn((len(dataset.train), encoding.dim))
    values = sample_values(encoding, encoding.inputs(dataset.train, noise), [0, 1])
    assert np.isfinite(values).all()
    assert {*np.unique(values)} == {0.0, 1.0, 2.0}


def test_columns_of_choice(data: tuple[Encoding, torch.Tensor]) -> None:
    encoding, _ = data
    assert chosen("op", encoding, None, 2) == [0, 1]
    assert chosen("op", encoding, "word, price") == [6, 1]
    assert chosen("op", encoding, ["gap", "plain"], 2) == [7, 0]
    for wrong, count in (("pric", None), ("word,word", None), ("word", 2), ("", None), ([], 2)):
        with pytest.raises(ValueError, match=r"^op: columns: expected .*names out of plain, pri"):
            chosen("op", encoding, wrong, count)


def test_what_is_too_large_for_a_number_is_left_out(data: tuple[Encoding, torch.Tensor]) -> None:
    """The decoding of a heavy column is a hyperbolic sine, which overflows."""
    encoding, x = data
    picks = [encoding.names.index(name) for name in ("wild", "gap")]
    axes, huge = sample_axes(encoding, picks), x.clone()
    huge[:5, picks[0]] = 1e6
    values = sample_values(encoding, huge, picks)
    kept = drawable(values, axes)
    assert len(kept) == len(values) - 5
    assert np.isnan(kept[:, 1]).sum() > 10
    assert not np.isinf(kept).any()
    states = torch.stack([x, huge])
    whole = state_values(encoding, torch.stack([x, x]), picks)
    found = state_values(encoding, states, picks)
    gone = int(np.isfinite(sample_values(encoding, x, picks)[:5]).all(axis=1).sum())
    assert found.shape[1] == whole.shape[1] - gone
    assert np.isfinite(found).all()


def test_pictures_of_two_columns_take_numbers_first() -> None:
    words = {"word": ["a", "b"] * 20, "x": RNG.normal(size=40), "code": ["c", "d"] * 20}
    one = open_dataset(pd.DataFrame(words)).encoding
    two = open_dataset(pd.DataFrame({**words, "y": RNG.normal(size=40)})).encoding
    assert one is not None
    assert two is not None
    assert chosen("op", one, None, 2) == [0, 1]
    assert chosen("op", two, None, 2) == [1, 3]
    assert chosen("op", two, None) == [0, 1, 2, 3]
