"""What a model is conditioned on: contexts, values and records of conditions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import Dataset, open_dataset, split_images
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.dataset import given_labels, limit_training

N = 400
RNG = np.random.default_rng(3)
FRAME = pd.DataFrame(
    {
        "y": RNG.normal(size=N),
        "cut": RNG.choice(["fair", "good", "ideal"], N),
        "size": RNG.choice([1.0, 2.5], N),
        "price": RNG.poisson(300, N),
        "z": RNG.normal(4.0, 2.0, N),
        "income": np.exp(RNG.normal(0.0, 2.0, N)),
    }
)
NAMES = ("price", "cut", "income", "size", "z")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset(FRAME, condition=NAMES)


def rows_of(data: Dataset, role: str) -> pd.DataFrame:
    """Returns the rows of a split, found by the column that is data."""
    assert data.encoding is not None
    values = data.encoding.decoded(getattr(data, role))[:, 0].numpy()
    order = np.abs(values[:, None] - FRAME.y.to_numpy()).argmin(1)
    return FRAME.iloc[order].reset_index(drop=True)


def test_contexts_are_numbers_and_one_hot_vectors(data: Dataset) -> None:
    """The formula, from the table alone: rows of conditions stay with their rows of data."""
    conditions, stored = data.conditions, data.given_of("test")
    assert conditions is not None
    assert stored is not None
    assert data.columns == ["y"]
    assert conditions.names == NAMES
    train, rows = rows_of(data, "train"), rows_of(data, "test")
    c = conditions.context(stored).double().numpy()
    assert c.shape == (len(rows), conditions.context_dim) == (N // 10, 1 + 3 + 1 + 2 + 1 + 1)

    def standard(values: Any, known: Any) -> Any:
        return (values - known.mean()) / known.std(ddof=0)

    column = conditions.columns[2]
    asinh = [np.arcsinh((t.income - column.center) / column.spread) for t in (rows, train)]
    expected = np.stack(
        [
            standard(rows.price, train.price),
            *(rows.cut == text for text in ("fair", "good", "ideal")),
            standard(*asinh),
            *(rows["size"] == value for value in (1.0, 2.5)),
            standard(rows.z, train.z),
            np.ones(len(rows)),
        ],
        axis=1,
    ).astype(float)
    assert np.allclose(c, expected, atol=1e-5)


def test_the_mean_of_numbers_is_not_no_context(data: Dataset) -> None:
    numbers = open_dataset(FRAME[["y", "z"]], condition="z")
    assert numbers.conditions is not None
    mean = numbers.conditions.context(torch.zeros(1, 1))
    none = numbers.conditions.without(mean, torch.tensor([True]))
    assert mean.tolist() == [[0.0, 1.0]]
    assert none.tolist() == [[0.0, 0.0]]


def test_values_are_those_of_the_table(data: Dataset) -> None:
    conditions, stored = data.conditions, data.given_of("valid")
    assert conditions is not None
    assert stored is not None
    values, rows = conditions.values(stored).numpy(), rows_of(data, "valid")
    texts = np.array(["fair", "good", "ideal"])[values[:, 1].astype(int)]
    assert (texts == rows.cut).all()
    for i, name in ((0, "price"), (2, "income"), (3, "size"), (4, "z")):
        assert np.allclose(values[:, i], rows[name], rtol=1e-5, atol=1e-5)


def test_records(data: Dataset) -> None:
    assert data.conditions is not None
    named = Conditions(num_classes=2, classes=("cat", "dog"))
    assert named.describe() == "label (0 = cat, 1 = dog)"
    many = Conditions(num_classes=40, classes=tuple(map(str, range(40))))
    assert many.describe().endswith("31 = 31 and 8 more)")
    assert "classes" not in Conditions(num_classes=7).to_meta()
    for conditions in (data.conditions, Conditions(num_classes=7), named):
        meta = json.loads(json.dumps(conditions.to_meta()))
        assert Conditions.from_meta(meta) == conditions
    assert "cut (one of 'fair', 'good', 'ideal')" in data.conditions.describe()
    assert "z (a number, from -1.364 to 11.77 in training)" in data.conditions.describe()
    assert Conditions(num_classes=7).describe() == "label (0 to 6)"
    with pytest.raises(ValueError, match="expected 3 names of classes, got 1"):
        Conditions.from_meta({"num_classes": 3, "classes": ["cat"]})
    for bad in ({"num_classes": 0}, {"num_classes": -1}):
        with pytest.raises(ValueError, match="expected columns, classes or masks"):
            Conditions.from_meta(bad)


def test_fingerprints_have_the_conditions(data: Dataset) -> None:
    other = FRAME.assign(z=FRAME.z.to_numpy()[::-1].copy())
    plain = open_dataset(FRAME[["y"]])
    assert open_dataset(other, condition=NAMES).fingerprint != data.fingerprint
    assert open_dataset(other[["y"]]).fingerprint == plain.fingerprint != data.fingerprint
    assert torch.equal(plain.train, data.train)


def images() -> Dataset:
    """Returns images whose pixels are their label."""
    labels = torch.arange(60) % 3
    pixels = labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return split_images({"train": pixels, "train_labels": labels}, name="x")


def test_labels_stay_with_their_images() -> None:
    for data in (given_labels(images()), limit_training(given_labels(images()), 20)):
        assert data.conditions == Conditions(num_classes=3)
        for role in ("train", "valid", "test"):
            labels = data.given_of(role)
            assert labels is not None
            assert torch.equal(data.conditions.context(labels), labels)
            assert torch.equal(getattr(data, role)[:, 0, 0, 0].long(), labels)
        context = data.conditions.without(torch.tensor([0, 2]), torch.tensor([True, False]))
        assert context.tolist() == [3, 2]
    assert given_labels(images()).fingerprint != images().fingerprint


@pytest.mark.parametrize(
    ("condition", "frame", "message"),
    [
        ("cat", FRAME, "among the columns of 'rows' that are used, y, cut, .* got 'cat'"),
        ("one", FRAME.assign(one=1.0), r"got 'one'; left out are one \(one value alone\)"),
        (",".join(FRAME.columns), FRAME, "a column of 'rows' beside condition"),
        (
            "label",
            np.zeros((40, 1, 4, 4), np.uint8),
            "images with labels .*none are read of 'images'",
        ),
        (
            "cut",
            np.zeros((40, 1, 4, 4), np.uint8),
            "expected condition='label' for images",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_conditions_that_cannot_be(condition: str, frame: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(frame, condition=condition)


def test_missing_numbers_and_sets_that_take_none() -> None:
    gaps = FRAME.assign(z=FRAME.z.where(FRAME.z > 2.0))
    with pytest.raises(ValueError, match="no missing numbers in a condition, the column 'z'"):
        open_dataset(gaps, condition="z", missing="mask")
    with pytest.raises(ValueError, match="condition='label' for the set 'moons', got 'x1'"):
        open_dataset("moons", condition="x1")
    # A missing text is a value of its own.
    texts = open_dataset(FRAME.assign(cut=FRAME.cut.where(FRAME.cut != "fair")), condition="cut")
    assert texts.conditions is not None
    assert texts.conditions.context_dim == 4
