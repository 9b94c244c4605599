"""Rows with known columns, from tables: found by name, or by order where there are no names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffflow_ext.data import read_rows, read_table


def test_rows_are_found_by_the_names_of_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,b,note,a\n7,1,x,2\n8,3,y,4\n")
    rows = read_rows(tmp_path / "t.csv", ["a", "b"])
    assert rows.columns == ["a", "b"]
    assert rows.values.tolist() == [[2.0, 1.0], [4.0, 3.0]]


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.csv"])
def test_rows_of_a_frame_are_found_by_the_names_of_columns(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"b": [1.5], "text": ["x"], "a": [2.0]})
    write = {"t.csv": frame.to_csv, "t.parquet": frame.to_parquet, "t.feather": frame.to_feather}
    write[name](tmp_path / name)
    assert read_rows(tmp_path / name, ["a", "b"]).values.tolist() == [[2.0, 1.5]]


@pytest.mark.parametrize("name", ["t.csv", "t.npy"])
def test_columns_without_names_are_taken_in_their_order(tmp_path: Path, name: str) -> None:
    values = np.array([[1.5, 2.5], [3.5, 4.5]])
    np.save(tmp_path / name, values) if name == "t.npy" else np.savetxt(
        tmp_path / name, values, delimiter=","
    )
    rows = read_rows(tmp_path / name, ["height", "weight"])
    assert rows.columns == ["height", "weight"]
    assert np.array_equal(rows.values, values)
    with pytest.raises(ValueError, match=r"the 3 columns a, b, c in .* names none and has 2"):
        read_rows(tmp_path / name, ["a", "b", "c"])


@pytest.mark.parametrize("name", ["t.csv", "t.npy"])
def test_an_index_is_no_column(tmp_path: Path, name: str) -> None:
    """Columns x1 and x2 of a run are not the first two of three without names."""
    values = np.array([[0, 1.5, 2.5], [1, 3.5, 4.5]])
    np.save(tmp_path / name, values) if name == "t.npy" else np.savetxt(
        tmp_path / name, values, delimiter=","
    )
    with pytest.raises(ValueError, match=r"the 2 columns x1, x2 in .* names none and has 3"):
        read_rows(tmp_path / name, ["x1", "x2"])
    rows = read_rows(tmp_path / name, ["x2", "x3"], drop_columns="x1")
    assert np.array_equal(rows.values, values[:, 1:])


def test_an_index_without_a_name_is_not_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",x2,x3\n0,1.5,2.5\n1,3.5,4.5\n")
    with pytest.raises(ValueError, match=r"the column 'x1' in .* numbers the rows, as an index"):
        read_rows(tmp_path / "t.csv", ["x1", "x2", "x3"])
    (tmp_path / "t.csv").write_text(",x1,x2\n0,1.5,2.5\n1,3.5,4.5\n")
    assert read_rows(tmp_path / "t.csv", ["x1", "x2"]).values.tolist() == [[1.5, 2.5], [3.5, 4.5]]


def test_a_column_without_a_name_that_is_no_index_is_read(tmp_path: Path) -> None:
    """As training reads it, with a warning."""
    (tmp_path / "t.csv").write_text(",b\n0.25,1.5\n0.75,3.5\n")
    assert read_rows(tmp_path / "t.csv", ["x1", "b"]).values.tolist() == [[0.25, 1.5], [0.75, 3.5]]


def test_equal_names_of_other_columns_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("c,a,c\n1,2,3\n")
    assert read_rows(tmp_path / "t.csv", ["a"]).values.tolist() == [[2.0]]


def test_an_output_of_a_keel_file_may_be_asked_for(tmp_path: Path) -> None:
    head = "@relation t\n@attribute a real\n@attribute b real\n@inputs a\n@outputs b\n@data\n"
    (tmp_path / "t.dat").write_text(head + "1.5, 2.5\n")
    assert read_rows(tmp_path / "t.dat", ["b", "a"]).values.tolist() == [[2.5, 1.5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,c\n1,2\n", r"expected the columns a, b in .*, which has no 'b'; its columns are a, c"),
        ("a,b\n", "rows of numbers|at least one row"),
        ("a,b\n1,x\n", r"line 2, column 2 \('b'\)"),
        ("a,b\n1,\n", r"line 2, column 2 \('b'\)"),
        ("a,b\n1,inf\n", r"expected finite numbers, row 0 .*, column 'b'"),
        ("a,b,b\n1,2,3\n", "different names"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / "t.csv", ["a", "b"])


def test_an_array_without_rows_has_none(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.empty((0, 2), np.int64))
    with pytest.raises(ValueError, match="expected at least one row"):
        read_rows(tmp_path / "t.npy", ["a", "b"])
    with pytest.raises(ValueError, match="expected at least 20 rows"):
        read_table(tmp_path / "t.npy")
