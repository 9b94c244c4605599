"""The layout of a table in text: separators, names, and which lines and columns are no data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO

from .cells import cells_of, decoded, is_marked, is_number, number, split, without
from .columns import Selection
from .marks import FIRST_LINES, decimal_mark, points_of_thousands, separator
from .reading import Refused

BOM = b"\xef\xbb\xbf"
_ATTRIBUTE = re.compile(r"^\s*@attribute\s+('[^']*'|\"[^\"]*\"|[^\s{\[]+)", re.IGNORECASE)
_OUTPUTS = re.compile(r"^\s*@outputs?\s+(.+)", re.IGNORECASE)
_KEEL = re.compile(r"^@(relation|attribute|inputs?|outputs?|data)\b", re.IGNORECASE)
_EXCEL = re.compile(r"^\s*\"?sep=([^\r\n])\"?\s*$", re.IGNORECASE)
_WHOLE = re.compile(r"\d+")
_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d[\d.]*e[+-]?\d+)", re.IGNORECASE)
_UNNAMED = ("", "Unnamed: 0")  # the names under which pandas and R write an index


@dataclass(frozen=True)
class Layout:
    """The layout of a text.

    Attributes:
        source: The file, for messages.
        skipped: The first characters of lines that are no rows.
        delimiter: The separator of columns; `SPACES` for any number of spaces and tabs.
        decimal: The decimal point of columns of numbers, "." or ",".
        names: The columns' names, of all that the rows have.
        has_names: Whether the text itself has them.
        named_by: The line that determines the number of columns, for messages.
        start: The first byte of the rows.
        line: The number of lines above them.
        kept: The positions of the columns that are kept.
        trailing: The number of cells at the end of all rows in which nothing stands.
        index: How sure it is that the first column is an index, if it has different whole
            numbers: "" not at all, "nameless", or "headless" if the header has no place for it.
        texts: The positions of those of texts.
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
    texts: frozenset[int]
    all_wanted: bool
    notes: list[str]
    doubts: list[str]

    @property
    def cells(self) -> int:
        """The number of cells of a row."""
        return len(self.names) + self.trailing

    @property
    def numbers(self) -> list[int]:
        """The positions of kept columns of numbers."""
        return [i for i in self.kept if i not in self.texts]

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, list[str]]]:
        """Yields (line number, cells) of all rows."""
        lines = decoded(stream, self.start, self.source)
        # The mark of a comment may begin the text of a row.
        rows = (
            line if 0 in self.texts and is_marked(line, self.skipped) else
            without(line, self.skipped)
            for line in lines
        )  # fmt: skip
        return split(rows, self.delimiter, self.line, self.source)


@dataclass(frozen=True)
class _Head:
    """What stands above the first row."""

    start: int
    line: int
    delimiter: str
    names: list[str]
    outputs: list[str]
    comments: list[str]
    marked: list[_Marked]
    keel: bool


@dataclass(frozen=True)
class _Marked:
    """A line that begins as a comment but may be a row, and what stands above it."""

    text: str
    start: int
    line: int
    comments: int


def find_layout(stream: BinaryIO, file: Path, selection: Selection) -> Layout:
    """Returns the layout of a text, of which it reads the first lines, and all for some."""
    source, is_dat = str(file), ".dat" in [ending.lower() for ending in file.suffixes]
    skipped = "#@%" if is_dat else "#"
    head, delimiter, (line, first, second), after = _first_rows(stream, source, skipped)
    doubts = list[str]()
    start, above = head.start, head.line
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
        start=start, line=above, kept=[], trailing=trailing, index=index, texts=frozenset(),
        all_wanted=selection.wanted is not None,
        notes=_comment_notes(head, names, has_header), doubts=doubts,
    )  # fmt: skip
    return _with_kept(layout, head, selection)


def _first_rows(
    stream: BinaryIO, source: str, skipped: str
) -> tuple[_Head, str, tuple[int, list[str], list[str]], int]:
    """Returns what stands above the first row, the separator, that row and the next, and its end.

    The row is its number in the text and its cells.
    """
    head = _head(stream, source, skipped)
    delimiter = head.delimiter or separator(_first_lines(stream, head, source, skipped))
    lines = (without(line, skipped) for line in decoded(stream, head.start, source))
    rows = split(lines, delimiter, head.line, source)
    line, first = next(rows, (0, list[str]()))
    after, second = stream.tell(), next(rows, (0, list[str]()))[1]
    marked = _rows_above(head, delimiter, first, skipped)
    if marked:
        head, line = _below(head, marked[0]), marked[0].line + 1
        first, second, *_ = [*(cells_of(row.text, delimiter) for row in marked), first, second]
    if not first:
        raise _no_rows(source, head, skipped)
    return head, delimiter, (line, first, second), after


def with_decimal(stream: BinaryIO, layout: Layout) -> Layout:
    """Returns the layout with the decimal mark that the columns of numbers have."""

    def cells() -> Iterator[str]:
        return (row[i] for _, row in layout.rows(stream) for i in layout.numbers if i < len(row))

    if layout.delimiter == ";":
        first = (row for _, row in islice(layout.rows(stream), FIRST_LINES))
        some = (row[i] for row in first for i in layout.numbers if i < len(row))
        layout.doubts.extend(points_of_thousands(some))
    stream.seek(layout.start)
    has_commas = any(b"," in part for part in iter(lambda: stream.read(1 << 20), b""))
    if layout.delimiter == "," or not has_commas:
        return layout
    return replace(layout, decimal=decimal_mark(cells(), layout.source))


def _no_rows(source: str, head: _Head, skipped: str) -> Refused:
    found, mend = "is empty", "write the data again"
    if head.comments:
        found = f"has only lines that begin with {' or '.join(skipped)}, as comments do"
        mend = "delete that mark before rows"
    return Refused(f"read_table: expected rows of numbers, {source!r} {found}; {mend}")


def _head(stream: BinaryIO, source: str, skipped: str) -> _Head:
    start, above = len(BOM) if stream.read(len(BOM)) == BOM else 0, 0
    names, outputs, comments, marked, delimiter, keel = [], [], [], list[_Marked](), "", False
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
            if is_marked(line, skipped):
                marked.append(_Marked(line, start, above, len(comments)))
            comments.append(text.lstrip(skipped).strip())
        start, above = stream.tell(), above + 1
    return _Head(start, above, delimiter, names, outputs, comments, marked, keel)


def _first_lines(stream: BinaryIO, head: _Head, source: str, skipped: str) -> list[str]:
    """Returns rows; those that begin as comments may, if there are no others."""
    lines = (line for line in decoded(stream, head.start, source) if line.strip())
    found = list(islice((line for line in lines if without(line, skipped)), FIRST_LINES))
    if len(found) > 1:
        return found
    lines = (line for line in decoded(stream, head.start, source) if is_marked(line, skipped))
    return [*found, *islice(lines, FIRST_LINES)] or [row.text for row in head.marked]


def _rows_above(
    head: _Head, delimiter: str, first: Sequence[str], skipped: str
) -> Sequence[_Marked]:
    """Returns the lines above the first row that are like it, though they begin as comments.

    They have a text first, which the mark begins, and numbers where the first row has them; if
    there is no other row, some have no number behind the mark.
    """
    rows = [cells_of(row.text, delimiter) for row in head.marked]
    like = first or (rows[-1] if rows else [])
    numbers = [i for i, cell in enumerate(like) if is_number(cell, delimiter)]
    if not numbers or 0 in numbers:
        return []
    count = 0
    for cells in reversed(rows):
        if len(cells) != len(like) or not all(is_number(cells[i], delimiter) for i in numbers):
            break
        count += 1
    found = rows[len(rows) - count :]
    is_text = bool(first) or any(number(cells[0].lstrip(skipped)) is None for cells in found)
    return head.marked[len(rows) - count :] if is_text else []


def _below(head: _Head, row: _Marked) -> _Head:
    """Returns what stands above a row."""
    return replace(head, start=row.start, line=row.line, comments=head.comments[: row.comments])


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
    if not any(is_number(cell, delimiter) for cell in first):
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
