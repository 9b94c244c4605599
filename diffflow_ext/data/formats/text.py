"""Tables in text: CSV and its relatives, and KEEL.

pandas reads what is plain rows of numbers. All else goes line by line, which names the line and
the column that are no number, or takes what only Python takes for one.
"""

from __future__ import annotations

import csv
import io
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .reading import check_size, gunzip

Values = NDArray[np.float64]
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
_BOM = b"\xef\xbb\xbf"
CELLS = 1 << 20  # that pandas holds at a time
_STRAY = re.compile(rb"\0|\r(?!\r*\n|\r*\Z)")  # bytes that belong into no line of text
_ATTRIBUTE = re.compile(r"^\s*@attribute\s+('[^']*'|\"[^\"]*\"|[^\s{\[]+)", re.IGNORECASE)


@dataclass(frozen=True)
class _Layout:
    """How the rows of a text are to be read.

    Attributes:
        source: The file, for messages.
        keel: Whether lines may be declarations (`@`) and comments (`%`).
        delimiter: What separates the columns.
        names: The columns' names, none where the text has none.
        named_by: What says how many columns there are, for messages.
        start: The first byte of the rows.
        line: The number of lines above them.
        columns: How many columns each row has.
        width: How many of them count.
    """

    source: str
    keel: bool
    delimiter: str
    names: list[str]
    named_by: str
    start: int
    line: int
    columns: int
    width: int


def read_text(file: Path, drop_label: bool) -> tuple[Values, list[str]]:
    """Reads a table in text, which may be gzipped.

    Arguments:
        file: The file; see `read_table`.
        drop_label: Whether the last column is left out, whatever it holds.

    Returns:
        The values, shape (n, d), which may be infinite or NaN; the columns' names, none where the
        text has none.

    Raises:
        ValueError: If the file has no rows, or one with another number of columns or other things
            than numbers.
    """
    with _open(file) as stream:
        layout = _layout(stream, file, drop_label)
    with _open(file) as stream:
        values = _by_pandas(stream, layout)
    if values is None:
        with _open(file) as stream:
            values = _by_line(stream, layout)
    return values, layout.names


def _open(file: Path) -> BinaryIO:
    check_size("read_table", str(file), file.stat().st_size)
    stream = file.open("rb")
    first = stream.readline().rstrip(b"\r\n")
    stream.seek(0)
    packed = first[:2] == b"\x1f\x8b"
    if not packed and b"\r" not in first:
        return stream
    with stream:
        data = stream.read()
    if packed:
        return io.BytesIO(gunzip("read_table", data, str(file)))
    return io.BytesIO(data.replace(b"\r", b"\n"))


def _layout(stream: BinaryIO, file: Path, drop_label: bool) -> _Layout:
    source, keel = str(file), file.name.lower().removesuffix(".gz").endswith(".dat")
    start, above, names = len(_BOM) if stream.read(len(_BOM)) == _BOM else 0, 0, []
    lines = _decoded(stream, start, source)
    for line in lines:
        if not _is_blank(line, keel):
            break
        names += [match[1].strip("'\"") for match in _ATTRIBUTE.finditer(line)]
        start, above = stream.tell(), above + 1
    else:
        line = ""
    delimiter = _delimiter(line)
    rows = _split(chain([line], lines), delimiter, above, source)
    number, cells = next(rows, (0, []))
    if not cells:
        raise ValueError(
            f"read_table: expected rows of numbers, {source!r} is empty; write the data again"
        )
    columns, named_by = len(names or cells), "the header" if names else f"line {number}"
    if not names and not any(map(_is_number, cells)):
        # One row of text alone may be data as well as a header: either way no row is left.
        names = [cell or f"x{i + 1}" for i, cell in enumerate(cells)]
        start, above, named_by = stream.tell(), number, "the header"
    width = columns - int(drop_label)
    if width < 1:
        raise ValueError(
            f"read_table: expected a column besides the label, {source!r} has only one column; "
            "read it with drop_label=False"
        )
    return _Layout(source, keel, delimiter, names[:width], named_by, start, above, columns, width)


def _decoded(stream: BinaryIO, start: int, source: str) -> Iterator[str]:
    """Yields the lines from byte `start` on; the stream stands behind the last one."""
    stream.seek(start)
    while line := stream.readline():
        stray = _STRAY.search(line)
        place = stray.start() if stray else -1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            text, place = "", error.start
        if place >= 0:
            raise ValueError(
                f"read_table: expected lines of UTF-8 text, {source!r} is none at place "
                f"{stream.tell() - len(line) + place}; save it as UTF-8 with one kind of line "
                "ends, or give it its right file ending"
            )
        yield text


def _is_blank(line: str, keel: bool) -> bool:
    return not line.strip() or (keel and line.lstrip().startswith(("@", "%")))


def _delimiter(line: str) -> str:
    cells = line.split()
    otherwise = " " if len(cells) > 1 and all(map(_is_number, cells)) else ","
    return next((mark for mark in "\t;," if mark in line), otherwise)


def _split(
    lines: Iterable[str], delimiter: str, above: int, source: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, cells) of the lines that are not blank."""
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


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    # float() takes 1_000 for a number; in a file this is a slip.
    return "_" not in cell


def _by_pandas(stream: BinaryIO, layout: _Layout) -> Values | None:
    """The values, or None where the rows are not plain numbers, as many in each."""
    import pandas

    stream.seek(layout.start)
    # Zero bytes end a cell for pandas, and what follows would be lost.
    if any(b"\0" in block for block in iter(lambda: stream.read(1 << 20), b"")):
        return None
    stream.seek(layout.start)
    options: Any = {"sep": layout.delimiter, "header": None, "skipinitialspace": True}
    # The fast conversion would not round to the nearest number.
    options |= {"engine": "c", "float_precision": "round_trip", "low_memory": False}
    options["chunksize"] = max(1, CELLS // layout.columns)
    try:
        with pandas.read_csv(stream, **options) as frames:
            parts = [_numbers(frame, layout) for frame in frames]
    except ValueError:  # Reading line by line shows what was wrong.
        return None
    return np.concatenate(parts)


def _numbers(frame: Any, layout: _Layout) -> Values:
    numbers = frame.iloc[:, : layout.width]
    kinds = {dtype.kind for dtype in numbers.dtypes}
    gaps = frame.shape[1] != layout.columns or bool(frame.isna().any(axis=None))
    if gaps or not kinds <= set("fiu"):
        raise ValueError("a cell is no number")
    return np.ascontiguousarray(numbers, np.float64)


def _by_line(stream: BinaryIO, layout: _Layout) -> Values:
    lines = _decoded(stream, layout.start, layout.source)
    lines = ("" if _is_blank(line, layout.keel) else line for line in lines)
    values = array("d")
    for line, cells in _split(lines, layout.delimiter, layout.line, layout.source):
        if len(cells) != layout.columns:
            raise ValueError(
                f"read_table: expected {layout.columns} columns as in {layout.named_by}, line "
                f"{line} of {layout.source!r} has {len(cells)}; mend or delete that line"
            )
        for i, cell in enumerate(cells[: layout.width]):
            if not _is_number(cell):
                raise ValueError(_no_number(cell, line, i, layout))
            values.append(float(cell))
    return np.array(values).reshape(-1, layout.width)


def _no_number(cell: str, line: int, i: int, layout: _Layout) -> str:
    name = layout.names[i] if layout.names else f"x{i + 1}"
    shown = cell if len(cell) <= 40 else cell[:37] + "..."
    hint = "delete the row or the column; drop_label=True leaves out a last column of labels"
    if not cell:
        hint = "fill the gap, or delete the row"
    elif "," in cell:
        hint = "write decimal points, not commas"
    elif line == 1:
        hint = "in a header no name may be a number; drop_label=True leaves out a last text column"
    return (
        f"read_table: expected a number, line {line}, column {i + 1} ({name!r}) of "
        f"{layout.source!r} is {shown!r}; {hint}"
    )
