"""Lines and cells of tables in text."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

SPACES = " "  # any number of them, or of tabs; other white space may be part of a number
#: Cells of a column of numbers in which nothing stands.
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-", ".")
#: Cells of a column of texts in which nothing stands: what pandas takes for such.
MISSING_TEXTS = ("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
_STRAY = re.compile(rb"\0|\r(?!\r*\n|\r*\Z)")  # bytes that no line of text has
#: Numbers with signs, separators or a unit, dates and times: no words that name a category.
_NUMERIC = re.compile(
    r"[-+<>≤≥~(]{0,2}\s?[$€£¥]?\s?[.,]?\d[\d.,:/'\sTZ+-]{0,60}([eE][-+]?\d{1,4})?\s?[)%°µ\w]{0,4}"
)
_CODE = re.compile(r"0\d+")
_DECIMAL = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


def decoded(stream: BinaryIO, start: int, source: str) -> Iterator[str]:
    """Yields the lines from byte `start` on; the stream's position is after the last one."""
    stream.seek(start)
    while line := stream.readline():
        stray = _STRAY.search(line)
        position = stray.start() if stray else -1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            text, position = "", error.start
        if position >= 0:
            raise ValueError(
                f"read_table: expected lines of UTF-8 text, {source!r} is none at place "
                f"{stream.tell() - len(line) + position}; save it as UTF-8 with one kind of line "
                "ends, or give it its right file ending"
            )
        yield text


def without(line: str, skipped: str) -> str:
    """Returns the line, empty if it is no row."""
    return "" if line.lstrip().startswith(tuple(skipped)) else line


def split(
    lines: Iterable[str], delimiter: str, above: int, source: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, cells) of the lines that are not blank."""
    if delimiter == SPACES:
        lines = (SPACES.join(words(line)) for line in lines)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield above + reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(
            f"read_table: expected rows of numbers, line {above + reader.line_num} of {source!r} "
            f"cannot be split ({error}); separate the columns by comma, semicolon or tab"
        ) from None


def is_marked(line: str, skipped: str) -> bool:
    """Says whether a line begins as comments do but may be a row, whose first text does so.

    A space is behind the mark of most comments.
    """
    text = line.strip()
    return text[:1] in (*skipped,) and text[1:2] not in ("", *skipped) and not text[1].isspace()


def cells_of(line: str, delimiter: str) -> list[str]:
    """Returns the cells of one line; none if it cannot be split."""
    try:
        return next((cells for _, cells in split([line], delimiter, 0, "")), [])
    except ValueError:
        return []


def words(line: str) -> list[str]:
    """Returns what spaces and tabs separate."""
    return [word for word in re.split(r"[ \t\r\n]+", line) if word]


def number(cell: str, decimal: str = ".") -> float | None:
    """Returns the number in a cell, None if it has none."""
    if decimal == ",":
        cell = cell.replace(".", "x").replace(",", ".")
    cell = cell.replace("\N{MINUS SIGN}", "-")
    try:
        # float() accepts 1_000, which is an error in a file.
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def is_word(cell: str) -> bool:
    """Says whether a cell has a word: neither nothing nor a number, with a unit or not."""
    return cell.lower() not in MISSING and not _NUMERIC.fullmatch(cell) and number(cell) is None


def is_number(cell: str, delimiter: str) -> bool:
    """Says whether a cell is a number; where commas do not separate, they may be decimal."""
    return number(cell) is not None or (delimiter != "," and is_decimal(cell))


def is_decimal(cell: str) -> bool:
    """Says whether a cell is a number with a decimal comma."""
    return bool(_DECIMAL.fullmatch(cell))


def is_code(text: str) -> bool:
    """Says whether a text is a whole number with leading zeros, such as 007."""
    return bool(_CODE.fullmatch(text))


def is_truth(texts: Iterable[str]) -> bool:
    """Says whether texts are truth values, perhaps missing ones, of any case of letters."""
    found = {text.lower() for text in texts} - {""}
    return bool(found) and found <= {"true", "false"}
