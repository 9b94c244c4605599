"""Which columns of a text are texts, and whether the first line of such a text has names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from .cells import MISSING, is_code, is_marked, is_truth, is_word, number
from .columns import ALL, Categories, Selection, Values
from .layout import Layout

FIRST_ROWS = 10_000  # that show which columns are texts, and more
ENOUGH = 100  # if a column has fewer cells with something in these


def text_columns(stream: BinaryIO, layout: Layout, selection: Selection) -> frozenset[int]:
    """Returns the positions of columns of texts: those of which most cells are no numbers.

    Whole numbers of which some have leading zeros are codes, which are texts too, unless the
    column is said to have numbers.
    """
    asked = {i for i in layout.kept if layout.names[i] in selection.texts}
    numbers = {i for i in layout.kept if {layout.names[i], ALL} & selection.numbers} - asked
    known = selection.wanted is not None
    unsure = [i for i in layout.kept if i not in asked and not (known and i in numbers)]
    columns = {i: _Cells() for i in layout.kept if i not in asked}
    for count, cells in enumerate(_first_rows(stream, layout)):
        if count >= FIRST_ROWS and all(columns[i].present >= ENOUGH for i in unsure):
            break
        for i, column in columns.items():
            column.add(cells[i].strip(), layout.skipped)
    found = {i for i in unsure if columns[i].are_words}
    codes = {i for i in unsure if columns[i].are_codes} - numbers
    # What a model takes for 0 and 1 may be written as false and true.
    truth = {i for i in numbers if columns[i].are_truth}
    return frozenset(asked | found | codes | truth)


@dataclass
class _Cells:
    """How many cells of a column have something, a word, a truth value, and so on."""

    present: int = 0
    words: int = 0
    truth: int = 0
    whole: int = 0
    codes: int = 0

    def add(self, cell: str, skipped: str) -> None:
        if cell.lower() in MISSING:
            return
        self.present += 1
        if cell.isdecimal():
            self.whole += 1
            self.codes += is_code(cell)
        elif is_word(cell):
            # Of a number behind the mark of a comment it is not sure that it is a text.
            marked = is_marked(cell, skipped) and number(cell.lstrip(skipped)) is not None
            self.words += not marked
            self.truth += is_truth([cell])

    @property
    def are_words(self) -> bool:
        return 2 * self.words > self.present

    @property
    def are_codes(self) -> bool:
        return 0 < self.codes <= self.whole == self.present

    @property
    def are_truth(self) -> bool:
        return 0 < self.truth == self.present


def _first_rows(stream: BinaryIO, layout: Layout) -> Iterator[list[str]]:
    """Yields the cells of rows, among them those that begin as comments may."""
    with_marks = replace(layout, texts=frozenset({0}))
    for _, cells in with_marks.rows(stream):
        if len(cells) >= len(layout.names):
            yield cells


def lonely_first_row(values: Values, layout: Layout, categories: Categories) -> list[str]:
    """Returns a doubt if the texts of the first row stand in no other, as names do."""
    columns = [i for i, name in enumerate(_names(layout)) if name in categories]
    if layout.has_names or len(values) < 3 or not columns:
        return []
    if any((values[1:, i] == values[0, i]).any() for i in columns):
        return []
    first = ", ".join(repr(categories[_names(layout)[i]][int(values[0, i])]) for i in columns)
    return [
        f"the first line was read as a row, though its texts ({first}) stand in no other; if it "
        "names the columns, write names that are no numbers"
    ]


def _names(layout: Layout) -> list[str]:
    return [layout.names[i] for i in layout.kept]
