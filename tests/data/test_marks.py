"""Separators and decimal marks of texts whose cells have the other marks too."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from diffflow_ext.data import read_table
from diffflow_ext.data.formats.marks import separator

RNG = np.random.default_rng(0)
X = np.round(RNG.normal(size=(40, 2)), 4)
WORDS = {
    "bar": ["a|b", "c|d"], "semicolon": ["a;b", "c;d"], "both": ["a|b;c", "d|e;f"],
    "number and bar": ["3|b", "4|d"], "number and semicolon": ["3;b", "4;d"],
}  # fmt: skip
SEPARATORS = {"comma": ",", "semicolon": ";", "bar": "|", "tab": "\t", "space": " "}


def _text(words: list[str], mark: str, decimal: str, place: int, head: str = "") -> str:
    lines = []
    for i, row in enumerate(X.tolist()):
        cells = [f"{value!r}".replace(".", decimal) for value in row]
        cells.insert(place, words[i % 2])
        lines.append(mark.join(cells))
    return head + "\n".join(lines) + "\n"


#: Those that need no quotes.
CASES = [
    (name, mark, decimal)
    for name, mark, decimal in product(WORDS, SEPARATORS, ".,")
    if SEPARATORS[mark] != decimal and SEPARATORS[mark] not in "".join(WORDS[name])
]


@pytest.mark.parametrize(("name", "mark", "decimal"), CASES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_marks_in_cells_separate_nothing(
    tmp_path: Path, name: str, mark: str, decimal: str, place: int
) -> None:
    words, between = WORDS[name], SEPARATORS[mark]
    names = [f"c{i}" for i in range(3)]
    for head in ("", between.join(names) + "\n"):
        (tmp_path / "t.txt").write_text(_text(words, between, decimal, place, head))
        table = read_table(tmp_path / "t.txt")
        assert table.columns == (names if head else ["x1", "x2", "x3"])
        assert table.categories == {table.columns[place]: tuple(words)}
        assert np.array_equal(np.delete(table.values, place, axis=1), X)


@pytest.mark.parametrize(
    ("lines", "mark"),
    [
        (["1,5;2,5", "2,5;3,5"], ";"),
        (["1,5 2,5", "2,5 3,5"], " "),
        (["a;b;1,5", "c;d;2,5"], ";"),
        (["name,price", "Ann,1 500", "Bob,2 500"], ","),
        (["a|b,c", "x|y,1", "x,2", "x|y|z,3"], ","),
        (['"1;2",3', '"4;5",6'], ","),
        (["12 5, 3 4, 7", "13 6, 4 5, 8"], ","),
        (["a b\t1,5\t2", "c d\t2,5\t3"], "\t"),
        (["text alone", "other text"], ","),
        ([], ","),
    ],
)
def test_separators(lines: list[str], mark: str) -> None:
    assert separator(lines) == mark


def test_texts_do_not_decide_the_decimal_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for word in ("1,5", "1,234", "1.234"):
        lines = [f"{['red', 'green', word][i % 3]};{x};{y}" for i, (x, y) in enumerate(X)]
        path.write_text("a;b;c\n" + "\n".join(lines))
        table = read_table(path)
        assert np.array_equal(table.values[:, 1:], X)
        assert table.categories == {"a": (word, "green", "red")}
        assert table.doubts == ()
    # And where the texts are those that the user says.
    path.write_text("a;b\n" + "\n".join(f"{i % 3},5;{x}" for i, (x, _) in enumerate(X)))
    table = read_table(path, texts=["a"])
    assert np.array_equal(table.values[:, 1], X[:, 0])
    assert table.categories == {"a": ("0,5", "1,5", "2,5")}
