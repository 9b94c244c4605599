"""What runs are given as conditions: mappings, frames, arrays and classes, and their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import Table, open_dataset
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.training.evaluation.given import parse_given, stored_conditions

RNG = np.random.default_rng(3)
FRAME = pd.DataFrame(
    {
        "y": RNG.normal(size=200),
        "cut": RNG.choice(["fair", "good"], 200),
        "price": RNG.poisson(300, 200),
        "sold": RNG.uniform(size=200) < 0.5,
    }
)
DATA = open_dataset(FRAME, condition="cut,price,sold")
assert DATA.conditions is not None
OWN = DATA.conditions
NUMBERS = open_dataset(FRAME[["y", "price"]], condition="price").conditions
CLASSES = Conditions(num_classes=5)


def values(conditions: Any, given: Any, count: int) -> list[list[float]]:
    stored = stored_conditions("sample", conditions, given, count)
    assert stored is not None
    return conditions.values(stored).round(decimals=3).tolist()


@pytest.mark.parametrize("text", [True, False], ids=["as of the program", "as of Python"])
def test_one_value_for_all(text: bool) -> None:
    given: Any = {"sold": True, "price": 310, "cut": "good"}
    if text:
        given = parse_given('cut=good, price=310, "sold=True"')
    assert values(OWN, given, 3) == [[1.0, 310.0, 1.0]] * 3
    assert values(CLASSES, parse_given("label=4") if text else {"label": 4}, 2) == [[4.0]] * 2


def test_a_row_for_each_sample() -> None:
    part = FRAME[["sold", "cut", "price"]][:20].assign(other="x")
    expected = np.stack([part.cut == "good", part.price, part.sold], 1).astype(float)
    assert values(OWN, part, 20) == expected.tolist()
    table = Table(expected, ["cut", "price", "sold"], "t", categories={"cut": ("fair", "good")})
    assert values(NUMBERS, table, 20) == expected[:, 1:2].tolist()
    for array in (expected[:, 1:2], torch.tensor(expected[:, 1:2])):
        assert values(NUMBERS, array, 20) == expected[:, 1:2].tolist()
    for classes in ([0, 4], np.array([0, 4]), torch.tensor([0, 4]), pd.Series([0, 4])):
        assert values(CLASSES, classes, 2) == [[0.0], [4.0]]


def test_runs_without_conditions() -> None:
    assert stored_conditions("sample", None, None, 3) is None
    with pytest.raises(ValueError, match=r"^sample: expected no given, because the run has no"):
        stored_conditions("sample", None, {"label": 3}, 3)


GOOD = {"cut": "good", "price": 310, "sold": False}


@pytest.mark.parametrize(
    ("conditions", "given", "message"),
    [
        (
            OWN,
            None,
            r"run is conditioned on cut \(one of 'fair', 'good'\), price \(a number.*--giv",
        ),
        (CLASSES, None, r"is conditioned on label \(0 to 4\); pass given={'label': \.\.\.}"),
        (OWN, {"cut": "good"}, "with cut, price, sold, got one that has no 'price', 'sold'"),
        (OWN, GOOD | {"clarity": 3}, "got one that has 'clarity'"),
        (
            OWN,
            GOOD | {"cut": "great"},
            "one of 'fair', 'good', got 'great' in row 0.*'cut' of 'gi",
        ),
        (OWN, GOOD | {"price": "high"}, "a number for 'price' in given, got 'high'"),
        (OWN, GOOD | {"price": float("nan")}, "got nan in row 0"),
        (OWN, GOOD | {"price": 2.5}, "steps of 1 from there, got 2.5"),
        (OWN, GOOD | {"sold": "maybe"}, "one of 'False', 'True', got 'maybe'"),
        (OWN, FRAME[:2], "given with 3 rows, one for each sample, got 2"),
        (OWN, FRAME[["cut", "price"]][:3], "which has no 'sold'"),
        (NUMBERS, np.zeros((3, 2)), r"sample: expected given of shape \(n, 1\)"),
        (CLASSES, {"label": 5}, "classes from 0 to 4 in given, got 5 in row 0"),
        (CLASSES, {"label": 1.5}, "got 1.5 in row 0"),
        (CLASSES, [0, 1, -1], "got -1 in row 2"),
        (CLASSES, [0, 1], "given with 3 rows"),
        (CLASSES, [[0, 1]], r"classes of shape \(n,\), got int64 of shape \(1, 2\)"),
        (CLASSES, {"cut": 3}, "with label, got one that has no 'label'"),
    ],
)
def test_what_is_refused(conditions: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stored_conditions("sample", conditions, given, 3)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"a number for 'price' in given, got \[1, 2\]"):
        stored_conditions("sample", OWN, GOOD | {"price": [1, 2]}, 3)
    with pytest.raises(TypeError, match="sample: expected texts in cut, got numbers alone"):
        stored_conditions("sample", OWN, np.zeros((3, 3)), 3)


@pytest.mark.parametrize("text", ["cut", "", "cut=a,cut=b", "cut=a,,price=3"])
def test_texts_of_another_form(text: str) -> None:
    if text == "":
        assert parse_given(text) == {}
        return
    with pytest.raises(ValueError, match=f"^given='{text}': expected one value for each name"):
        parse_given(text)
