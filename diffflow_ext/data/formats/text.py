"""Tables in text: CSV and similar formats, and KEEL.

pandas reads plain rows of numbers. Other texts are read line by line, with errors that name the
line and the column.
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
CELLS = 1 << 20  # of a chunk that pandas reads
_STRAY = re.compile(rb"\0|\r(?!\r*\n|\r*\Z)")  # bytes that no line of text has
_ATTRIBUTE = re.compile(r"^\s*@attribute\s+('[^']*'|\"[^\"]*\"|[^\s{\[]+)", re.IGNORECASE)


@dataclass(frozen=True)
class _Layout:
    """The layout of a text.

    Attributes:
        source: The file, for messages.
        keel: Whether lines may be declarations (`@`) and comments (`%`).
        delimiter: The separator of columns.
        names: The columns' names, empty if the text has none.
        named_by: The line that determines the number of columns, for messages.
        start: The first byte of the rows.
        line: The number of lines above them.
        columns: The number of columns of each row.
        width: The number of columns without a label.
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
    """Returns the values, shape (n, d), and column names, perhaps none; see `read_table`.

    Values may be infinite or NaN. With `drop_label` the last column is left out.
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
    # float() accepts 1_000, which is an error in a file.
    return "_" not in cell


def _by_pandas(stream: BinaryIO, layout: _Layout) -> Values | None:
    """Returns the values, or None if the rows are not plain numbers or differ in length."""
    import pandas

    stream.seek(layout.start)
    # pandas ends a cell at a zero byte and ignores the rest.
    if any(b"\0" in block for block in iter(lambda: stream.read(1 << 20), b"")):
        return None
    stream.seek(layout.start)
    options: Any = {"sep": layout.delimiter, "header": None, "skipinitialspace": True}
    # The default conversion does not round to the nearest number.
    options |= {"engine": "c", "float_precision": "round_trip", "low_memory": False}
    options["chunksize"] = max(1, CELLS // layout.columns)
    try:
        with pandas.read_csv(stream, **options) as frames:
            parts = [_numbers(frame, layout) for frame in frames]
    except ValueError:  # Reading line by line gives a better error.
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
