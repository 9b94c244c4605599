"""The separator of columns, and the decimal mark of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .cells import SPACES, is_decimal, is_number, split, words
from .reading import Refused

FIRST_LINES = 100  # that show what separates columns, and how numbers are written
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")


def separator(lines: Sequence[str]) -> str:
    """Returns the separator of the first lines of a text, of which the first may be a header.

    Of several marks in both of the first two lines it is the one that makes rows of one length,
    the most numbers, and leaves the fewest of the other marks in other cells.
    """
    if not lines:
        return ","
    marks = [mark for mark in "\t;|," if all(mark in line for line in lines[:2])]
    rows = lines[1:] or lines
    if "\t" not in marks and _has_spaces_between(rows[0]):
        marks.append(SPACES)
    if len(marks) < 2:
        return (marks or [mark for mark in "\t;," if mark in lines[0]] or [","])[0]
    return max(marks, key=lambda mark: _fit(rows, mark, marks))


def _has_spaces_between(row: str) -> bool:
    """Whether spaces separate numbers, perhaps with decimal commas, from each other or words."""
    cells = [word.strip('"') for word in words(row)]
    numbers = [cell for cell in cells if is_number(cell, SPACES)]
    return len(cells) > 1 and bool(numbers) and all(c in numbers for c in cells if "," in c)


def _fit(lines: Sequence[str], mark: str, marks: Sequence[str]) -> tuple[bool, int, int]:
    """Returns how well a mark separates the columns of lines; a larger value is better."""
    others = [other for other in marks if other != mark]
    try:
        rows = [cells for _, cells in split(lines, mark, 0, "")]
    except ValueError:
        return False, 0, 0
    cells = [cell for row in rows for cell in row]
    rest = [cell for cell in cells if not is_number(cell, mark)]
    mixed = sum(other in cell for cell in rest for other in others)
    return len({*map(len, rows)}) == 1, len(cells) - len(rest), -mixed


def decimal_mark(cells: Iterable[str], source: str) -> str:
    """Returns the decimal mark of the cells of columns of numbers, between which no commas are.

    Numbers with commas that may be thousands are refused.
    """
    thousands = ""
    for text in cells:
        if _THOUSANDS.fullmatch(text):
            thousands = thousands or text
        elif is_decimal(text):
            return ","
    if thousands:
        raise Refused(
            f"read_table: expected numbers such as 1234.5, {source!r} has {thousands!r}, "
            "whose comma may separate decimals or thousands; write points for decimals, and no "
            "thousands separators"
        )
    return "."


def points_of_thousands(cells: Iterable[str]) -> list[str]:
    """Returns a doubt if all points may separate thousands, as where commas are decimal.

    The cells are those of the first rows, between semicolons.
    """
    found = [cell for cell in cells if "." in cell]
    if not found or not all(map(_GROUPS.fullmatch, found)):
        return []
    text = found[0]
    return [
        f"numbers such as {text} were read with three decimals; if the point separates thousands, "
        f"write {text.replace('.', '')}; if not, write another number of decimals"
    ]
