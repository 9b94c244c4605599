"""The layout of a table in text: separators, names, and which lines and columns are no data."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO

from .columns import Selection
from .reading import Refused

BOM = b"\xef\xbb\xbf"
SPACES = " "  # any number of them, or of tabs; other white space may be part of a number
_STRAY = re.compile(rb"\0|\r(?!\r*\n|\r*\Z)")  # bytes that no line of text has
_ATTRIBUTE = re.compile(r"^\s*@attribute\s+('[^']*'|\"[^\"]*\"|[^\s{\[]+)", re.IGNORECASE)
_OUTPUTS = re.compile(r"^\s*@outputs?\s+(.+)", re.IGNORECASE)
_KEEL = re.compile(r"^@(relation|attribute|inputs?|outputs?|data)\b", re.IGNORECASE)
_EXCEL = re.compile(r"^\s*\"?sep=([^\r\n])\"?\s*$", re.IGNORECASE)
_DECIMAL = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_WHOLE = re.compile(r"\d+")
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_FIRST_ROWS = 100  # that show how numbers are written
_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d[\d.]*e[+-]?\d+)", re.IGNORECASE)
#: Cells in which nothing stands.
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-", ".")
#: Cells of a column of texts in which nothing stands: what pandas takes for such.
MISSING_TEXTS = ("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
#: Numbers with signs, separators or a unit, dates and times: no words that name a category.
_NUMERIC = re.compile(
    r"[-+<>≤≥~(]*\s*[$€£¥]?\s*[\d.,:/'\sTZ-]*\d[\d.,:/'\sTZ-]*([eE][-+]?\d+)?\s*[)%°µ\w]{0,4}"
)
_UNNAMED = ("", "Unnamed: 0")  # the names under which pandas and R write an index


@dataclass(frozen=True)
class Layout:
    """The layout of a text.

    Attributes:
        source: The file, for messages.
        skipped: The first characters of lines that are no rows.
        delimiter: The separator of columns; `SPACES` for any number of spaces and tabs.
        decimal: The decimal point, "." or ",".
        names: The columns' names, of all that the rows have.
        has_names: Whether the text itself has them.
        named_by: The line that determines the number of columns, for messages.
        start: The first byte of the rows.
        line: The number of lines above them.
        kept: The positions of the columns that are kept.
        trailing: The number of cells at the end of all rows in which nothing stands.
        index: How sure it is that the first column is an index, if it has different whole
            numbers: "" not at all, "nameless", or "headless" if the header has no place for it.
        all_wanted: Whether all columns that are kept were asked for by name.
        notes: What was passed over.
        doubts: What may have been meant otherwise.
    """

    source: str
    skipped: str
    delimiter: str
    decimal: str
    names: list[str]
    has_names: bool
    named_by: str
    start: int
    line: int
    kept: list[int]
    trailing: int
    index: str
    all_wanted: bool
    notes: list[str]
    doubts: list[str]

    @property
    def cells(self) -> int:
        """The number of cells of a row."""
        return len(self.names) + self.trailing


@dataclass(frozen=True)
class _Head:
    """What stands above the first row."""

    start: int
    line: int
    delimiter: str
    names: list[str]
    outputs: list[str]
    comments: list[str]
    keel: bool


def find_layout(stream: BinaryIO, file: Path, selection: Selection) -> Layout:
    """Returns the layout of a text, of which it reads the first lines, and all for some."""
    source, is_dat = str(file), ".dat" in [ending.lower() for ending in file.suffixes]
    skipped = "#@%" if is_dat else "#"
    head = _head(stream, source, skipped)
    delimiter = head.delimiter or _delimiter(_first_lines(stream, head.start, source, skipped))
    lines = (without(line, skipped) for line in decoded(stream, head.start, source))
    rows = split(lines, delimiter, head.line, source)
    line, first = next(rows, (0, []))
    if not first:
        raise _no_rows(source, head, skipped)
    start, above, after, doubts = head.start, head.line, stream.tell(), list[str]()
    second = next(rows, (0, list[str]()))[1]
    names, named_by = head.names or _names_in_comment(head, delimiter, first), f"line {line}"
    has_header = not head.names and _is_header(first, second, delimiter, line, doubts)
    if has_header:
        names, start, above = first, after, line
    row, following = (second, []) if has_header else (first, second)
    trailing, index = _ends(names, row, following, delimiter)
    if head.names or (has_header and index != "headless"):
        named_by = "the header"
    cells = len(row) - trailing if trailing or not names else len(names)
    layout = Layout(
        source=source, skipped=skipped, delimiter=delimiter, decimal=".",
        names=_complete(names[:cells], cells, index), has_names=bool(names), named_by=named_by,
        start=start, line=above, kept=[], trailing=trailing, index=index,
        all_wanted=selection.wanted is not None,
        notes=_comment_notes(head, names, has_header), doubts=doubts,
    )  # fmt: skip
    layout = _with_kept(layout, head, selection)
    layout.doubts.extend(_points_of_thousands(stream, layout))
    return replace(layout, decimal=_decimal(stream, layout))


def _no_rows(source: str, head: _Head, skipped: str) -> Refused:
    found, mend = "is empty", "write the data again"
    if head.comments:
        found = f"has only lines that begin with {' or '.join(skipped)}, as comments do"
        mend = "delete that mark before rows"
    return Refused(f"read_table: expected rows of numbers, {source!r} {found}; {mend}")


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


def _head(stream: BinaryIO, source: str, skipped: str) -> _Head:
    start, above = len(BOM) if stream.read(len(BOM)) == BOM else 0, 0
    names, outputs, comments, delimiter, keel = [], [], [], "", False
    for line in decoded(stream, start, source):
        text = line.strip()
        excel = _EXCEL.match(line)
        if excel and not delimiter:
            delimiter = excel[1]
        elif text and not text.startswith(tuple(skipped)):
            break
        elif _KEEL.match(text):
            keel = True
            names += [match[1].strip("'\"") for match in _ATTRIBUTE.finditer(line)]
            for match in _OUTPUTS.finditer(line):
                outputs += [name.strip().strip("'\"") for name in match[1].split(",")]
        elif text:
            comments.append(text.lstrip(skipped).strip())
        start, above = stream.tell(), above + 1
    return _Head(start, above, delimiter, names, outputs, comments, keel)


def _first_lines(stream: BinaryIO, start: int, source: str, skipped: str) -> list[str]:
    lines = (without(line, skipped).strip() for line in decoded(stream, start, source))
    return list(islice((line for line in lines if line), 2))


def _delimiter(lines: list[str]) -> str:
    """Returns the separator of the first two lines, of which the first may be a header."""
    if not lines:
        return ","
    marks = [mark for mark in "\t;|," if all(mark in line for line in lines)]
    numbers = [_is_number(word.strip('"'), SPACES) for word in words(lines[-1])]
    # Numbers with decimal commas may be between spaces, and beside words if there are no commas.
    if len(numbers) > 1 and (all(numbers) if marks == [","] else any(numbers) and not marks):
        return SPACES
    return (marks or [mark for mark in "\t;," if mark in lines[0]] or [","])[0]


def _is_number(cell: str, delimiter: str) -> bool:
    """Whether a cell is a number; where commas do not separate, they may be decimal."""
    return number(cell) is not None or (delimiter != "," and bool(_DECIMAL.fullmatch(cell)))


def _names_in_comment(head: _Head, delimiter: str, row: list[str]) -> list[str]:
    """Returns the cells of the comment above the rows, if they can be names of their columns."""
    comment = head.comments[-1:]
    for _, cells in split(comment, delimiter, 0, ""):
        # The mark of a comment may itself be the first name.
        names = [cells[0] or "#", *cells[1:]]
        if len(names) == len(row) and all(names) and all(number(name) is None for name in names):
            return names
    return []


def _is_header(
    first: list[str], second: list[str], delimiter: str, line: int, doubts: list[str]
) -> bool:
    """Whether the first row has names; a doubt is added to the list."""
    places = [str(i) for i in range(len(first))]
    if not any(_is_number(cell, delimiter) for cell in first):
        return True
    if len(first) > 1 and first == ["", *places[:-1]]:
        return True  # pandas names columns so that have no name.
    points = [bool(_POINT.fullmatch(cell)) for cell in second]
    # It is a row too, if the numbers 0, 1, 2 ... are its data.
    is_header = first == places and len(first) > 1 and all(points)
    whole = len(first) > 1 and all(map(_WHOLE.fullmatch, first)) and all(points)
    if (first == places and any(points)) or whole or _is_scale(first, second, delimiter):
        read, mend = ("a row", "name the columns in it")
        if is_header:
            read, mend = ("the names of columns", "write 0.0 in place of 0")
        doubts.append(f"line {line} ({','.join(first[:4])}) was read as {read}; if not, {mend}")
    return is_header


def _is_scale(first: list[str], second: list[str], delimiter: str) -> bool:
    """Whether the first row has different, equally spaced numbers, as years in a header have.

    Three numbers of one or two digits are so by chance in up to one row of twenty, therefore they
    must also be 0, 1, 2 or 1, 2, 3 or, if they are not whole, begin with 0 or one step or have
    other decimals than the second row.
    """
    if delimiter != ",":
        first = [cell.replace(",", ".") for cell in first]
        second = [cell.replace(",", ".") for cell in second]
    numbers = [value for value in map(number, first) if value is not None]
    if not 3 <= len(numbers) == len(first):
        return False
    step, decimals = numbers[1] - numbers[0], max(map(_decimals, first))
    even = (abs(b - a - step) <= 1e-6 * abs(step) for a, b in pairwise(numbers))
    if step == 0.0 or not all(even):
        return False
    if len(numbers) > 3 or max(map(abs, numbers)) * 10.0**decimals >= 100.0:
        return True
    if decimals == 0:
        return step == 1.0 and numbers[0] in (0.0, 1.0)
    return numbers[0] in (0.0, step, -step) or decimals != max(map(_decimals, second), default=0)


def _decimals(cell: str) -> int:
    return min(len(cell.partition(".")[2].rstrip("0")), 99)


def _ends(
    names: list[str], row: list[str], following: list[str], delimiter: str
) -> tuple[int, str]:
    """Returns `Layout.trailing` and `Layout.index`."""
    more = len(row) - len(names) if names else 0
    empty = min(map(_empty_ends, (row, following) if following else (row,)))
    # A column with a name is one, also if its first cells are empty.
    trailing = min(empty, len(row) - 1, _empty_ends(names) + max(more, 0) if names else empty)
    if trailing > 0:
        has_more = names and names[0] in _UNNAMED and len(row) > trailing + 1
        return trailing, "nameless" if has_more else ""
    # R writes no name above its row names. A comma may be a decimal one.
    if more == 1 and names and delimiter != ",":
        return 0, "headless"
    return 0, "nameless" if len(names) > 1 and names[0] in _UNNAMED else ""


def _empty_ends(cells: list[str]) -> int:
    """Returns the number of empty cells behind the last one that is not."""
    return next((i for i, cell in enumerate(reversed(cells)) if cell), len(cells))


def _complete(names: list[str], cells: int, index: str) -> list[str]:
    names = ["", *names] if index == "headless" else names
    return [name or f"x{i + 1}" for i, name in enumerate(names or [""] * cells)]


def _decimal(stream: BinaryIO, layout: Layout) -> str:
    """Returns the decimal point of the kept columns.

    Numbers with commas that may be thousands are refused.
    """
    stream.seek(layout.start)
    if layout.delimiter == "," or not any(
        b"," in part for part in iter(lambda: stream.read(1 << 20), b"")
    ):
        return "."
    thousands = ""
    lines = (
        without(line, layout.skipped) for line in decoded(stream, layout.start, layout.source)
    )
    for _, cells in split(lines, layout.delimiter, layout.line, layout.source):
        for text in (cells[i] for i in layout.kept if i < len(cells)):
            if _THOUSANDS.fullmatch(text):
                thousands = thousands or text
            elif _DECIMAL.fullmatch(text):
                return ","
    if thousands:
        raise Refused(
            f"read_table: expected numbers such as 1234.5, {layout.source!r} has {thousands!r}, "
            "whose comma may separate decimals or thousands; write points for decimals, and no "
            "thousands separators"
        )
    return "."


def _points_of_thousands(stream: BinaryIO, layout: Layout) -> list[str]:
    """Returns a doubt if all points may separate thousands, as where commas are decimal."""
    if layout.delimiter != ";":
        return []
    lines = (
        without(line, layout.skipped) for line in decoded(stream, layout.start, layout.source)
    )
    rows = islice(split(lines, ";", layout.line, layout.source), _FIRST_ROWS)
    cells = [row[i] for _, row in rows for i in layout.kept if i < len(row) and "." in row[i]]
    if not cells or not all(map(_GROUPS.fullmatch, cells)):
        return []
    text = cells[0]
    return [
        f"numbers such as {text} were read with three decimals; if the point separates thousands, "
        f"write {text.replace('.', '')}; if not, write another number of decimals"
    ]


def _comment_notes(head: _Head, names: list[str], has_header: bool) -> list[str]:
    # The last one may have the names.
    count = len(head.comments) - bool(names and not has_header and not head.names)
    return [f"{count} comment line{'s' * (count > 1)}"] if count else []


def _with_kept(layout: Layout, head: _Head, selection: Selection) -> Layout:
    """Returns the layout with the selected columns, without the output of a KEEL file."""
    names, notes = layout.names, list(layout.notes)
    if head.keel and len(names) > 1 and selection.wanted is None:
        outputs = [name for name in head.outputs if name in names] or names[-1:]
        outputs = [name for name in outputs if name not in selection.dropped]
        notes += [f"{name} (output of a KEEL file)" for name in outputs]
        selection = selection.without(outputs)
    if layout.index and selection.wanted and names[0] in names[1:]:
        names = ["", *names[1:]]  # The name that the first column was given is that of another.
    kept = selection.positions(names, layout.source, named=layout.has_names)
    return replace(layout, kept=kept, notes=notes)
