"""Which columns of a text are texts, and rows whose text begins as a comment does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from diffflow_ext.data import open_dataset, read_rows, read_table
from diffflow_ext.data.formats import words

RNG = np.random.default_rng(1)
X = np.round(RNG.normal(size=60), 4)
COLOURS = ["#ff0000", "#00ff00", "#000000"]


def _lines(texts: list[str], between: str = ",") -> list[str]:
    return [f"{texts[i % len(texts)]}{between}{x!r}" for i, x in enumerate(X.tolist())]


def test_texts_that_begin_after_many_blanks_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "FIRST_ROWS", 10)
    lines = [f"{x!r},{'' if i < 30 else 'ab'[i % 2]}" for i, x in enumerate(X.tolist())]
    (tmp_path / "t.csv").write_text("x,late\n" + "\n".join(lines))
    table = read_table(tmp_path / "t.csv")
    assert table.categories == {"late": ("", "a", "b")}
    assert table.values[:, 0].tolist() == X.tolist()


@pytest.mark.parametrize("between", [",", ";", " "])
@pytest.mark.parametrize("texts", [COLOURS, [*COLOURS, "blue"], ["blue", *COLOURS]])
@pytest.mark.parametrize("above", ["", "# measured by me today\n", "#\n# colour of x\n\n"])
@pytest.mark.parametrize("head", [False, True])
def test_first_rows_that_begin_with_a_mark_are_rows(
    tmp_path: Path, between: str, texts: list[str], above: str, head: bool
) -> None:
    lines = [f"colour{between}x"] * head + _lines(texts, between)
    (tmp_path / "t.csv").write_text(above + "\n".join(lines))
    table = read_table(tmp_path / "t.csv")
    names = ["colour", "x"] if head else ["x1", "x2"]
    assert (table.columns, table.categories) == (names, {names[0]: tuple(sorted(texts))})
    assert table.values[:, 1].tolist() == X.tolist()
    assert table.doubts == ()


def test_names_and_remarks_behind_a_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for first in ("#colour,x\n", "# colour,x\n", "#see,x,y\n#colour,x\n"):
        path.write_text(first + "\n".join(_lines(["red", "blue"])))
        table = read_table(path)
        assert (table.columns, len(table.values)) == (["colour", "x"], len(X))
    path.write_text("a,b\n" + "".join(f"{x},{y}\n" for x, y in zip(X, X[::-1], strict=True)))
    with path.open("a") as stream:
        stream.write("#1,2\n")
    assert "left out as comments (1)" in read_table(path).doubts[0]
    path.write_text("\n".join(_lines(["#1", "#2"])))
    with pytest.raises(ValueError, match="only lines that begin with #, as comments do"):
        read_table(path)


CODES = ["007", "012", "120"]


def test_codes_with_leading_zeros_are_texts_in_files_and_frames(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("code,x\n" + "\n".join(_lines(CODES)))
    frame = pandas.read_csv(path, dtype={"code": str})
    for source in (path, frame):
        data = open_dataset(source)
        assert data.encoding is not None
        assert data.encoding.columns[0].values == tuple(CODES)
    for columns in ("code=integer", "integer"):
        data = open_dataset(path, columns=columns, drop_columns="x" * (columns == "integer"))
        assert data.encoding is not None
        column = data.encoding.columns[0]
        assert (column.kind, column.low, column.high) == ("integer", 7.0, 120.0)
    assert read_rows(path, ["code"]).values[:3, 0].tolist() == [7.0, 12.0, 120.0]
    # Not all whole, signs, and zeros alone are numbers.
    for texts in (["00.5", "01.5", "2"], ["-07", "12", "1"], ["0", "10", "1"]):
        path.write_text("code,x\n" + "\n".join(_lines(texts)))
        assert read_table(path).categories == {}


def test_codes_that_are_left_out_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,x\n" + "".join(f"{i * 7:05d},{x}\n" for i, x in enumerate(X))
    )
    data = open_dataset(tmp_path / "t.csv")
    assert data.columns == ["x"]
    said = "another text in most rows, codes such as 00000; numbers if --columns says so"
    assert data.notes == (f"id ({said})",)
