"""Kinds of columns, and warnings of those that have no density."""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffflow_ext.data import open_dataset
from diffflow_ext.data.formats.columns import (
    column_doubts,
    column_kinds,
    how_to_leave_out,
    listed,
    parse_names,
)

RNG = np.random.default_rng(0)
N = 300
X = RNG.normal(size=(N, 2))
NORMAL, OTHER = X.T
#: Columns beside two normal ones, the kind of each, and a part of the warning, if there is one.
COLUMNS = {
    "number": (RNG.normal(size=N), "number", ""),
    "round": (np.round(2.0 * RNG.normal(size=N)) / 2.0, "few", "few values"),
    "whole": (RNG.permutation(N) * 7, "whole", ""),
    "two": (RNG.integers(0, 2, N), "two", r"with two values \(x3\).*likelihood means nothing"),
    "two numbers": (np.where(NORMAL > 1.0, 0.1, np.pi), "two", "two values"),
    "few": (RNG.integers(0, 10, N), "few", "few values, each many times"),
    "rows from 0": (np.arange(N), "rows", "that count the rows .x3.: probably an index"),
    "rows from 1": (np.arange(1, N + 1), "rows", "that count the rows"),
    "copy": (NORMAL, "copy", r"copies of others.*--drop-columns=x3 .in Python drop_columns='x3'"),
    "other unit": (1e-9 * NORMAL - 4e-8, "copy", "copies"),
    "other sign": (-NORMAL, "copy", "copies"),
    "sum": (NORMAL + 1e3 * OTHER, "linear", "weighted sums"),
    "nearly a copy": (NORMAL + 1e-3 * RNG.normal(size=N), "number", ""),
    "far": (
        np.r_[RNG.normal(size=N - 1), 1e15],
        "number",
        r"far from all others .*\(1e\+15 in 1 row of x3\).*; if they mark missing values",
    ),
    "beyond float32": (np.r_[RNG.normal(size=N - 1), -1e39], "number", r"-1e\+39 in 1 row of x3"),
    "several far": (
        np.r_[RNG.normal(size=N - 2), 1e15, -1e15],
        "number",
        r"column x3 lie within 0.001 .* 1e\+15",
    ),
    "heavy tails": (RNG.standard_cauchy(N), "number", ""),
    "large": (1e300 * RNG.normal(size=N), "number", None),
}


for fill in (-9999.0, -999.25, 9.96921e36, 1.70141e38):
    for rows in (1, 20):
        COLUMNS[f"{fill} in {rows}"] = (
            np.r_[np.full(rows, fill), RNG.normal(20.0, 3.0, N - rows)],
            "number",
            re.escape(f"({fill:.6g} in {rows} row{'s' * (rows > 1)} of x3)"),
        )


@pytest.mark.parametrize("name", COLUMNS)
def test_kinds_and_warnings(tmp_path: Path, name: str) -> None:
    column, kind, said = COLUMNS[name]
    values = np.column_stack([X, column.astype(float)])
    assert column_kinds(values) == ["number", "number", kind]
    if said is None:  # Squares overflow; the split refuses such data.
        return
    np.save(tmp_path / "t.npy", values)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        open_dataset(tmp_path / "t.npy", columns="continuous")
    assert len(seen) == (said != "")
    if said:
        with pytest.warns(UserWarning, match=said):
            open_dataset(tmp_path / "t.npy", columns="continuous")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_dataset(tmp_path / "t.npy", drop_columns="x3").columns == ["x1", "x2"]


def test_long_and_sorted_tables_have_the_same_kinds() -> None:
    """A sample of the rows excludes a kind, all rows confirm it."""
    n = 50_000
    late = np.zeros(n)
    late[-1] = 1.0
    rare = np.zeros(n)
    rare[1:200] = np.arange(199)
    values = np.column_stack([np.sort(RNG.normal(size=n)), late, rare, np.arange(n)])
    assert column_kinds(values) == ["number", "two", "whole", "rows"]
    one_hot = np.eye(3)[RNG.integers(0, 3, n)]
    assert column_kinds(one_hot)[:2] == ["two", "two"]


def test_wide_tables_have_one_warning_of_a_kind(tmp_path: Path) -> None:
    digits = RNG.integers(0, 17, (N, 30)).astype(float)
    np.save(tmp_path / "t.npy", digits)
    with pytest.warns(UserWarning, match=r"few values.*x1, .*x8 and 22 more") as seen:
        open_dataset(tmp_path / "t.npy", columns="continuous")
    assert len(seen) == 1


@pytest.mark.parametrize("n", [40, 300, 20_000])
def test_tails_and_whole_numbers_are_not_far(n: int) -> None:
    rng, shape = np.random.default_rng(n), (n, 50)
    for values in (
        rng.normal(size=shape),
        rng.uniform(size=shape),
        rng.lognormal(0.0, 2.0, shape),
        rng.standard_cauchy(shape),
        rng.poisson(1.0, shape).astype(float),
        np.rint(rng.standard_cauchy(shape)),
        np.where(rng.uniform(size=shape) < 0.8, 1.0, rng.uniform(0.0, 0.01, shape)),
    ):
        doubts = column_doubts(values, [""] * 50, ["number"] * 50)
        assert not any("far from all others" in text for text in doubts)


def test_far_values_of_all_columns_are_one_warning() -> None:
    values = RNG.normal(size=(N, 3))
    values[:7, 0], values[3, 2] = -99.0, 999.9
    (text,) = column_doubts(values, list("abc"), ["number"] * 3)
    assert "(-99 in 7 rows of a, 999.9 in 1 row of c)" in text


def test_names_are_read_as_they_are_written() -> None:
    names = ["a", "b, or c", 'the "d"', "e f"]
    hint = how_to_leave_out(names)
    flag, _, python = hint.partition(" (in Python drop_columns=")
    (word,) = [word for word in shlex.split(flag) if word.startswith("--drop-columns=")]
    for text in (word.partition("=")[2], ast.literal_eval(python.removesuffix(")")), names):
        assert parse_names(text) == names
    assert parse_names("a, b") == ["a", "b"]
    assert parse_names("") == []
    assert listed(list("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"
