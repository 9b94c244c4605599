"""What runs are given as conditions: mappings, frames, arrays and classes, and their errors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import Table, open_dataset
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.training.evaluation.given import (
    condition_values,
    parse_given,
    stored_conditions,
    warn_of_far,
)

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
NAMED = Conditions(num_classes=3, classes=("cat", "dog", "2"))


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


def test_numbers_come_back_as_they_were_given() -> None:
    """What a run stores of 1/3 is another float64."""
    third = open_dataset(FRAME[["y", "price"]], condition="y").conditions
    assert third is not None
    rows = np.array([[1 / 3], [0.1]])
    assert torch.equal(condition_values(third, rows, 2), torch.from_numpy(rows))
    assert condition_values(third, {"y": "0.1"}, 2).tolist() == [[0.1], [0.1]]
    given = {"sold": True, "price": 310, "cut": "good"}
    assert condition_values(OWN, given, 2).tolist() == [[1.0, 310.0, 1.0]] * 2


@pytest.mark.parametrize("given", [{"price": 3000}, [[300], [3000]], [[2900], [3000]]])
def test_numbers_far_from_those_of_training_are_named(given: Any) -> None:
    given = given if isinstance(given, dict) else np.array(given)
    low, high = FRAME.price.min(), FRAME.price.max()
    more = " and 1 more such values" if 2900 in np.ravel(given) else ""
    message = f"^score: price=3000{more}: far outside of .*, from {low} to {high}, where"
    with pytest.warns(UserWarning, match=message):
        stored_conditions("score", NUMBERS, given, 2)


@pytest.mark.parametrize("kind", ["continuous", "heavy", "positive", "integer"])
def test_every_kind_of_number_has_a_range_of_training(kind: str) -> None:
    frame = FRAME[["y", "price"]]
    own = open_dataset(frame, condition="price", columns={"price": kind}).conditions
    assert own is not None
    assert own.columns[0].kind == kind
    assert frame.price.min() <= own.columns[0].low < own.columns[0].high <= frame.price.max()
    with pytest.warns(UserWarning, match="^score: price=5000: far outside of"):
        stored_conditions("score", own, {"price": 5000}, 1)


def test_spaces_at_the_ends_of_names_do_not_count() -> None:
    expected = stored_conditions("sample", NUMBERS, {"price": 310}, 2)
    found = stored_conditions("sample", NUMBERS, {" price ": 310}, 2)
    assert torch.equal(found, expected)  # pyright: ignore[reportArgumentType]
    assert condition_values(NUMBERS, {" price ": 310}, 2).tolist() == [[310.0]] * 2
    with pytest.raises(
        TypeError, match=r"^sample: price: expected one value in a mapping, .*, got"
    ):
        stored_conditions("sample", NUMBERS, {"price": [310, 320]}, 2)


def test_numbers_near_those_of_training_are_not() -> None:
    """Nor missing ones, and heavy tails are measured on their own scale."""
    rng = np.random.default_rng(4)
    heavy = np.exp(rng.normal(0.0, 2.0, 500))
    frame = pd.DataFrame({"y": rng.normal(size=500), "x": rng.normal(size=500), "income": heavy})
    conditions = open_dataset(frame, condition="x,income").conditions
    assert conditions is not None
    assert [column.kind for column in conditions.columns] == ["continuous", "heavy"]
    low, high, top = conditions.columns[0].low, conditions.columns[0].high, frame.income.max()
    rows = np.array([[high + 0.5, 1.5 * top], [low - 0.5, np.nan], [np.nan, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_far("impute", conditions.columns, rows)
    with pytest.warns(UserWarning, match="far outside of the values") as found:
        warn_of_far("impute", conditions.columns, np.array([[high + 5, -9 * top]]))
    assert [str(one.message).split("=")[0] for one in found] == ["impute: x", "impute: income"]


def test_classes_by_name() -> None:
    """A text is a name first, and a number only if no class is called so."""
    for given in ({"label": "dog"}, {"label": 1}, {"label": "1"}, parse_given("label=dog")):
        assert values(NAMED, given, 2) == [[1.0]] * 2
    assert values(NAMED, {"label": "2"}, 1) == [[2.0]]
    for array in (
        ["dog", "cat", "2"],
        np.array(["dog", "cat", "2"]),
        pd.Series(["dog", "cat", 2]),
    ):
        assert values(NAMED, array, 3) == [[1.0], [0.0], [2.0]]
    assert values(NAMED, [1, 0], 2) == [[1.0], [0.0]]
    # Folders that are called by numbers, of a run whose classes have no names.
    assert values(CLASSES, np.array(["4", "0"]), 2) == [[4.0], [0.0]]


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
        (
            OWN,
            GOOD | {"price": "high"},
            "a number for 'price' in given, got 'high'",
        ),
        (OWN, GOOD | {"price": float("nan")}, "got nan in row 0"),
        (OWN, GOOD | {"price": 2.5}, "steps of 1 from there, got 2.5"),
        (OWN, GOOD | {"sold": "maybe"}, "one of 'False', 'True', got 'maybe'"),
        (OWN, FRAME[:2], "given with 3 rows, one for each sample, got 2"),
        (OWN, FRAME[["cut", "price"]][:3], "which has no 'sold'"),
        (NUMBERS, np.zeros((3, 2)), r"sample: expected given of shape \(n, 1\)"),
        (NAMED, {"label": "cow"}, "classes of the run in given, cat, dog, 2, got cow, in row 0"),
        (NAMED, ["dog", "cow", "ant"], r"got ant, cow, in row 1 \(counted from 0\)"),
        (NAMED, ["1", "0", "2"], r"2, got 0, 1, in row 0 \(counted from 0\)"),
        (NAMED, {"label": "3"}, "classes from 0 to 2 in given, got 3 in row 0"),
        (NAMED, {"label": "nan"}, "classes from 0 to 2 in given, got nan in row 0"),
        (CLASSES, ["cat"] * 3, "in given, 0 to 4, got cat, in row 0"),
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
    with pytest.raises(
        TypeError,
        match=r"^sample: price: expected one value in .*, got \[1, 2\]",
    ):
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


def test_texts_of_classes_called_by_numbers_are_names() -> None:
    called = Conditions(num_classes=3, classes=("1", "2", "10"))
    assert stored_conditions("sample", called, {"label": "10"}, 1).tolist() == [2]  # pyright: ignore
    with pytest.raises(ValueError, match="expected classes of the run in given, 1, 2, 10, got 0"):
        stored_conditions("sample", called, {"label": "0"}, 1)
    with pytest.raises(ValueError, match="expected different names of classes, got a, b, a"):
        Conditions(num_classes=3, classes=("a", "b", "a"))


def test_texts_of_the_only_condition_may_be_a_list() -> None:
    conditions = open_dataset(FRAME[["y", "cut"]], condition="cut").conditions
    assert conditions is not None
    expected = stored_conditions("sample", conditions, FRAME[["cut"]], len(FRAME))
    for given in (FRAME.cut, [*FRAME.cut], FRAME.cut.to_numpy()):
        found = stored_conditions("sample", conditions, given, len(FRAME))
        assert torch.equal(found, expected)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"^sample: expected texts in cut, got 'good'; pass a map"):
        stored_conditions("sample", conditions, "good", 1)
    with pytest.raises(ValueError, match=r"^given='cut=a\\ny=2': expected one line of values"):
        parse_given("cut=a\ny=2")
