"""Parquet and Feather files, as pandas writes them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from diffflow_ext.data import read_table
from diffflow_ext.data.formats import reading

ROWS = np.random.default_rng(0).normal(size=(30, 3))
FRAME = pandas.DataFrame(ROWS, columns=["a", "b", "c"])


@pytest.fixture(autouse=True)
def pyarrow() -> None:
    pytest.importorskip("pyarrow", reason="reads Parquet and Feather")


def _written(frame: pandas.DataFrame, path: Path) -> Path:
    (frame.to_feather if path.suffix in (".feather", ".arrow") else frame.to_parquet)(path)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.pq", "t.feather", "T.ARROW"])
def test_frames(tmp_path: Path, name: str) -> None:
    path = _written(FRAME, tmp_path / name.lower()).rename(tmp_path / name)
    table = read_table(path)
    assert np.array_equal(table.values, ROWS)
    assert table.values.flags.c_contiguous
    assert (table.columns, table.notes) == (["a", "b", "c"], ())
    assert read_table(path, drop_columns="b").columns == ["a", "c"]


def test_columns_without_numbers_are_named(tmp_path: Path) -> None:
    times = pandas.Timestamp("2020-01-01")
    more = {"t": times, "s": [f"{i}.5" for i in range(30)], "i": range(30)}
    path = _written(FRAME.assign(**more), tmp_path / "t.parquet")
    with pytest.raises(TypeError, match=r"has t \(.*\), s .*; .*=t,s \(in Python"):
        read_table(path)
    table = read_table(path, drop_columns="t,s")
    assert table.columns == ["a", "b", "c", "i"]
    assert np.array_equal(table.values, np.c_[ROWS, np.arange(30)])


def test_texts_and_truth_values_are_categories(tmp_path: Path) -> None:
    more = {"w": ["z", "a", None] * 10, "f": FRAME.a > 0}
    more["o"] = pandas.Categorical(
        ["mid", "low", "high"] * 10, ["low", "mid", "high"], ordered=True
    )
    table = read_table(_written(FRAME.assign(**more), tmp_path / "t.parquet"))
    assert table.categories == {
        "w": ("", "a", "z"), "f": ("False", "True"), "o": ("low", "mid", "high"),
    }  # fmt: skip
    assert table.values[:3, 3].tolist() == [2.0, 1.0, 0.0]
    assert table.values[:, 4].tolist() == (FRAME.a > 0).tolist()
    assert table.values[:3, 5].tolist() == [1.0, 0.0, 2.0]
    assert {name: table.dtypes[name] for name in "afo"} == {
        "a": "float64", "f": "bool", "o": "ordered category",
    }  # fmt: skip


def test_indices_are_left_out_and_missing_values_are_named(tmp_path: Path) -> None:
    table = read_table(_written(FRAME.set_index("a"), tmp_path / "t.parquet"))
    assert (table.columns, table.notes) == (["b", "c"], ("the index a",))
    whole = pandas.array([None, *range(29)], dtype="Int64")
    with pytest.raises(ValueError, match=r"row 0 \(counted from 0\), column 'i'.* is nan; delete"):
        read_table(_written(FRAME.assign(i=whole), tmp_path / "t.parquet"))


def test_equal_names_are_named(tmp_path: Path) -> None:
    """pandas writes none, other programs do."""
    pyarrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    parquet.write_table(pyarrow.table([ROWS[:, 0]] * 3, names=list("aba")), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"different names, .* called 'a'; give each a name"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_whole_numbers_that_are_rounded_are_said(tmp_path: Path, name: str) -> None:
    whole = 2**60 + 1001 * np.arange(30)
    frame = FRAME.assign(i=whole, j=pandas.array(whole, dtype="Int64"), f=1e20 * ROWS[:, 0])
    path = _written(frame, tmp_path / name)
    (doubt,) = read_table(path).doubts
    assert "beyond 2^53 (i, j) were rounded" in doubt
    assert read_table(path, drop_columns="i,j").doubts == ()


def test_files_that_are_none_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("t.parquet", "t.feather"):
        (tmp_path / name).write_bytes(b"PAR1 or so")
        with pytest.raises(
            ValueError, match=r"expected a table in a Parquet or Feather file, .*:"
        ):
            read_table(tmp_path / name)
    path = _written(pandas.DataFrame({"a": np.zeros(100_000)}), tmp_path / "t.parquet")
    monkeypatch.setattr(reading, "MAX_BYTES", 500_000)
    assert path.stat().st_size < 500_000
    with pytest.raises(ValueError, match=r"at most 500,000 bytes.*has 800,000"):
        read_table(path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written(FRAME, tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"the package pyarrow, which reads Parquet.*\[data\]"):
        read_table(path)
