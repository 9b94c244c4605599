"""Texts of the same numbers as many programs write them: the same table, or a refusal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas
import pytest

from diffflow_ext.data import open_dataset, read_table

ROWS = np.round(np.random.default_rng(0).normal(size=(30, 3)), 5)
FRAME = pandas.DataFrame(ROWS, columns=["a", "b", "c"])


def _text(head: str = "a,b,c\n", separator: str = ",", end: str = "\n", decimal: str = ".") -> str:
    lines = (separator.join(f"{x!r}" for x in row).replace(".", decimal) for row in ROWS.tolist())
    return head + "".join(line + end for line in lines)


def _r_table(separator: str, corner: str) -> str:
    """What write.table and write.csv of R write."""
    head = corner + separator.join(['"a"', '"b"', '"c"']) + "\n"
    rows = (separator.join([f'"{i + 1}"', *map(str, row)]) for i, row in enumerate(ROWS.tolist()))
    return head + "\n".join(rows) + "\n"


def _savetxt(**options: str) -> str:
    stream = io.StringIO()
    np.savetxt(stream, ROWS, **options)  # pyright: ignore
    return stream.getvalue()


ABC, X = ["a", "b", "c"], ["x1", "x2", "x3"]
INDEX = ("the first column (an index without a name)",)
#: The text, the names of its columns, and what else it has.
READ: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "header of numbers": (pandas.DataFrame(ROWS).to_csv(index=False), ["0", "1", "2"], ()),
    "header of numbers, index": (pandas.DataFrame(ROWS).to_csv(), ["0", "1", "2"], INDEX),
    "index": (FRAME.to_csv(), ABC, INDEX),
    "index between tabs": (FRAME.to_csv(sep="\t"), ABC, INDEX),
    "index, saved again": (
        pandas.read_csv(io.StringIO(FRAME.to_csv())).to_csv(index=False),
        ABC,
        INDEX,
    ),
    "R csv": (_r_table(",", '"",'), ABC, INDEX),
    "R table": (_r_table(" ", ""), ABC, INDEX),
    "decimal commas": (_text("a;b;c\n", ";", decimal=","), ABC, ()),
    "decimal commas, no header": (_text("", ";", decimal=","), X, ()),
    "decimal commas, tabs": (_text("a\tb\tc\n", "\t", decimal=","), ABC, ()),
    "decimal commas, spaces": (_text("a b c\n", "  ", decimal=","), ABC, ()),
    "decimal commas, bars": (_text("a|b|c\n", "|", decimal=","), ABC, ()),
    "savetxt": (_savetxt(), X, ()),
    "savetxt with a header": (_savetxt(header="a b c"), ABC, ()),
    "savetxt with commas": (_savetxt(header="a,b,c", delimiter=","), ABC, ()),
    "savetxt with a remark": (_savetxt(header="measured today"), X, ("1 comment line",)),
    "comments": (
        "# by me\n#\n\n" + _text() + "# end\n",
        ABC,
        ("2 comment lines", "1 comment line among the rows"),
    ),
    "comments between": (
        _text().replace("\n", "\n# a,b,c\n", 4),
        ABC,
        ("4 comment lines among the rows",),
    ),
    "bars": (_text("a|b|c\n", "|"), ABC, ()),
    "names with other marks": (_text("p(a|b),y; z,c\n"), ["p(a|b)", "y; z", "c"], ()),
    "Excel's first line": ("sep=;\n" + _text("a;b;c\n", ";"), ABC, ()),
    "Excel's first line, tab": ("sep=\t\n" + _text("a\tb\tc\n", "\t"), ABC, ()),
    "commas at ends": (_text("a,b,c,\n", end=",\n"), ABC, ()),
    "commas at ends of rows": (_text(end=",\n"), ABC, ()),
    "empty columns at ends": (_text("a,b,c,,\n", end=",,\n"), ABC, ()),
    "a name like a comment": (_text("#,b,c\n"), ["#", "b", "c"], ()),
    "minus signs of a text": (_text().replace("-", "\u2212"), ABC, ()),
    "commas at ends, no header": (_text("", end=",\n"), X, ()),
    "mark of byte order": ("\ufeff" + _text(), ABC, ()),
    "uneven spaces": (_text("  a \t b\t c \n", " \t ", end="  \n"), ABC, ()),
    "quotes": (FRAME.to_csv(index=False, quoting=1), ABC, ()),
}


@pytest.mark.parametrize("case", READ)
def test_the_same_table(tmp_path: Path, case: str) -> None:
    text, columns, notes = READ[case]
    path = tmp_path / "t.txt"
    for encoding in ("utf-8", "utf-16"):
        path.write_text(text, encoding=encoding)
        table = read_table(path)
        # The numbers were rounded to what the text has; savetxt writes more digits.
        assert np.array_equal(table.values, ROWS), encoding
        assert table.columns == columns
        assert table.notes == notes


NUMBERS = "".join(f"{x},{y}\n" for x, y, _ in ROWS)
TENTHS = "".join(f"{i * i % 17 + 1},{i % 9 + 1}\n" for i in range(30))
#: The text, and what the message must have.
REFUSED = {
    "one column of decimal commas": (
        "".join(f"{x}\n".replace(".", ",") for x in ROWS[:, 0]),
        r"decimal commas.*write decimal points",
    ),
    "the same with a name": (
        "a\n" + "".join(f"{x}\n".replace(".", ",") for x in ROWS[:, 0]),
        "expected 1 columns as in the header, line 2 .* has 2; mend that line, or all: write deci",
    ),
    "three such columns": (_text("", decimal=","), "decimal commas"),
    "thousands": (
        "a;b\n" + "".join(f"{i + 1},234;{x}\n" for i, x in enumerate(ROWS[:, 0])),
        r"'1,234', whose comma may separate decimals or thousands; write points",
    ),
    "thousands in quotes": (
        "a,b\n" + '"1,234.5",1\n' * 30,
        r"column 1 \('a'\).*'1,234.5'; .*no thousands separators",
    ),
    "points for thousands": ("a;b\n" + "1.234,5;1\n" * 30, r"'1.234,5'; .*no thousands"),
    "no-break spaces in numbers": (
        "price volume\n" + "2\u00a0037 0.5\n37 1.5\n" * 15,
        r"line 2, column 1 \('price'\).*'2.xa0037'; the number has a space in it: write no",
    ),
    "narrow ones": ("a;b\n" + "2\u202f037,5;1,5\n" * 30, "the number has a space in it"),
    "narrow ones everywhere": ("a b\n" + "2\u202f037 1\u202f500\n" * 30, "has a space in it"),
    "years above an index": (
        ",2019,2020,2021\n" + "".join(f"{i},1.5,{i},2\n" for i in range(30)),
        r"line 1, column 1 .* is ''; in a header no name may be a number; if it is a row, fill",
    ),
    "comments alone": (
        "#1,2\n" * 30,
        "only lines that begin with #, as comments do; delete that mark",
    ),
    "rows like comments": (
        "id,a\n" + "#1,2\n" * 30,
        r"has 0; lines that begin with # and have as many numbers .* left out as comments \(30\)",
    ),
    "a word": ("a,b c\n" + NUMBERS + "1,x\n", r"'x'.*--drop-columns='b c' \(in Python"),
    "one row again and again": ("a,b\n" + "1,x\n" * 30, "a column that varies.*'a', 'b', which"),
    "dates": ("day,a\n" + "2020-01-02,1\n" * 30, r"column 1 \('day'\).*'2020-01-02'.*=day"),
    "row names": (_r_table(" ", "").replace('"1" ', '"car" '), r"\('x1'\).*'car'.*=x1"),
    "one name less": (_text("a b\n", " "), "expected 2 columns as in the header, .*have 3; name"),
    "missing": ("a,b\n" + NUMBERS + "1,NA\n", r"line 32, column 2 \('b'\).*'NA'; fill the gap"),
    "equal names": (_text("a,b,a\n"), "different names.*'a'; give each"),
    "commas at the end of some": (_text("", end=",\n") + "1,2,3,4\n", "expected 3 .*line 31"),
    "only a header": ("a,b\n", "at least 20 rows"),
    "a title": ("Measured\n\n" + _text(), "line 3 of .* has 3; .*if line 1 does not name the col"),
    "units": (
        "a,b\nm,s\n" + NUMBERS,
        r"line 2, column 1 .*'m'; delete the line if it names units",
    ),
    "both decimal marks": ("a;b\n" + "1.5;2,5\n" * 30, "'1.5'; write decimal points, .*all col"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_way_out(tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as info:
        open_dataset(tmp_path / "t.csv")
    assert ";" in str(info.value)


COUNTS = "".join(f"{i * i % 97},{i * 7 % 89},{i * i % 83}\n" for i in range(7, 47))
PRICES = "".join(f"{i % 7 + 1}.{i * i % 900 + 100};{i}\n" for i in range(30))
PLACES = range(2, 90)
#: The text, its columns and the number of its rows as they were read, and what is said.
DOUBTFUL: dict[str, tuple[str, list[str], int, str]] = {
    "places": ("0,1\n" + NUMBERS, ["0", "1"], 30, r"line 1 .0,1. was read as the names of colu"),
    "a place": ("0\n" + NUMBERS.replace(",", "\n"), X[:1], 61, "line 1 .0. was read as a row"),
    "places above some points": (
        "0,1\n2.5,3\n" + NUMBERS,
        X[:2],
        32,
        "line 1 .0,1. was read as a row",
    ),
    "whole numbers": ("400,410\n" + NUMBERS, X[:2], 31, "line 1 .400,410. was read as a row"),
    "wavelengths": (_text("400.5,410.5,420.5\n"), X, 31, "400.5,410.5,420.5. was read as a row"),
    "distances": (_text("-1.5,0.0,1.5\n"), X, 31, "-1.5,0.0,1.5. was read as a row; if not, name"),
    "powers": (_text("1e3,2e3,3e3\n"), X, 31, "1e3,2e3,3e3. was read as a row"),
    "decimal commas": (_text("2,5;3,0;3,5\n", ";", decimal=","), X, 31, "2,5,3,0,3,5. was read"),
    "years": ("2019,2020,2021\n" + COUNTS, X, 41, "2019,2020,2021. was read as a row"),
    "places above counts": ("0,1,2\n" + COUNTS, X, 41, "0,1,2. was read as a row; if not, name"),
    "no name": (",a\n" + NUMBERS, ["x1", "a"], 30, "first column has no name.*=x1"),
    "decimal commas or whole": (
        TENTHS,
        X[:2],
        30,
        "2 columns of whole numbers; if they are 1 with decimal commas",
    ),
    "points of thousands": (
        "a;b\n" + PRICES,
        ["a", "b"],
        30,
        r"such as 1\.100 were read with three decimals; .*thousands, write 1100; if not, write an",
    ),
    "a number in two": (
        "price\n" + "".join(f"{i * i + 2} {i + 100}\n" for i in range(30)),
        ["price"],
        30,
        "one cell more than the header, and the first was left out as an index; if it is a part",
    ),
    "a number in two, beside others": (
        "price a\n" + "".join(f"{i * i + 2} {i:03d} {i}.5\n" for i in range(30)),
        ["price", "a"],
        30,
        "one cell more than the header",
    ),
    "a title of two words": (
        "Spectrum 1b\n" + "".join(f"{400 + 5 * i} {-i}.5 {i}.25\n" for i in range(30)),
        ["Spectrum", "1b"],
        30,
        "if it is a column, name it; if the first line is a title, delete it",
    ),
    "rows like comments": (
        "a,b\n" + NUMBERS + "#1,0.5\n # 2,1\n# a,b\n",
        ["a", "b"],
        30,
        r"lines that begin with # .* left out as comments \(2\); if they are rows, delete that",
    ),
    "keys": (
        "id,a,b\n" + "".join(f"{2**60 + i * i},{i * i},1e{i}\n" for i in range(30)),
        ["id", "a", "b"],
        30,
        r"whole numbers beyond 2\^53 \(id\) were rounded to float64; subtract .*--drop-columns=id",
    ),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_what_may_be_meant_otherwise_is_said(tmp_path: Path, case: str) -> None:
    text, columns, rows, said = DOUBTFUL[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.warns(UserWarning, match=said):
        data = open_dataset(tmp_path / "t.csv", columns="continuous")
    assert data.columns == columns
    assert len(data.train) + len(data.valid) + len(data.test) == rows


#: Texts of which nothing is doubtful.
CLEAR = {
    # Edges of a graph or the like, without a leading zero, so that no comma is a decimal one.
    "whole numbers from 0, 1": "0,1\n" + "".join(f"{i * i % 97},{i % 23}\n" for i in PLACES),
    "small whole numbers": "3,4,5\n" + COUNTS,
    "tenths": "0.7,0.9,1.1\n" + "".join(f"{i % 23 / 10},{i / 10},{i % 7}.5\n" for i in PLACES),
    "equal numbers": "200.5,200.5,200.5\n" + _text(""),
    "three decimals": "a;b\n" + "".join(f"{i * i / 1000:.3f};{i}\n" for i in PLACES),
    "row names": "a\n" + "".join(f"{i} {i * i % 97}\n" for i in PLACES),
    "large numbers that are not whole": "a,b\n" + "".join(f"{i}e20,{i * i}\n" for i in PLACES),
}


@pytest.mark.parametrize("case", CLEAR)
def test_nothing_is_said_of_good_tables(tmp_path: Path, case: str) -> None:
    (tmp_path / "t.csv").write_text(CLEAR[case])
    assert read_table(tmp_path / "t.csv").doubts == ()


def test_rows_that_begin_as_comments_are_left_out_in_all_ways(tmp_path: Path) -> None:
    """Also where the marked column is not read, which pandas would take."""
    path = tmp_path / "t.csv"
    path.write_text("id,a,b\n#1,1.5,2\n" + "".join(f"k,{x},{y}\n" for x, y, _ in ROWS))
    table = read_table(path, drop_columns="id")
    assert np.array_equal(table.values, ROWS[:, :2])
    assert "left out as comments (1)" in table.doubts[0]


def test_columns_are_left_out_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,"b, or c",d\n' + "".join(f"{x},word,{y}\n" for x, y, _ in ROWS))
    for names in ('"b, or c"', ["b, or c"]):
        table = read_table(path, drop_columns=names)
        assert table.columns == ["a", "d"]
        assert np.array_equal(table.values, ROWS[:, :2])
        assert table.notes == ("b, or c (by drop_columns)",)
    assert open_dataset(path, drop_columns='a,"b, or c"').columns == ["d"]
    assert open_dataset(path).notes == ("b, or c (one value alone)",)
    # Commas in columns that are left out say nothing about the others.
    path.write_text("note;a;b\n" + "".join(f"1,5;{x};{y}\n" for x, y, _ in ROWS))
    assert np.array_equal(read_table(path, drop_columns="note").values, ROWS[:, :2])
    path.write_text('a,"b, or c",d\n' + "".join(f"{x},word,{y}\n" for x, y, _ in ROWS))
    with pytest.raises(ValueError, match=r"drop_columns of .*got 'e'; its columns are a, b, or c"):
        read_table(path, drop_columns="e")
    with pytest.raises(ValueError, match=r"a column that is not left out.*shorten drop_columns"):
        read_table(path, drop_columns=["a", "b, or c", "d"])
    with pytest.raises(ValueError, match="drop_columns for tables of one's own alone, 'moons'"):
        open_dataset("moons", drop_columns="x1")


def test_decimal_commas_are_read_to_the_last_bit(tmp_path: Path) -> None:
    """By pandas as Python reads the same numbers with points."""
    rng = np.random.default_rng(3)
    floats = rng.integers(0, 1 << 63, 200).view(np.float64)
    cells = [repr(x) for x in floats.tolist() if np.isfinite(x)] + ["1.2345678901234567890123"]
    (tmp_path / "t.csv").write_text(
        "a;b\n" + "".join(f"{c};1,5\n" for c in cells).replace(".", ",")
    )
    values = read_table(tmp_path / "t.csv", drop_columns="b").values[:, 0]
    assert np.array_equal(values, np.array([float(cell) for cell in cells]))
