"""Tables in text: CSV and similar formats, and KEEL.

pandas reads plain rows of numbers. Other texts are read line by line, with errors that name the
line and the column.
"""

from __future__ import annotations

import io
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .archives import read_zip
from .cells import (
    MISSING,
    MISSING_TEXTS,
    SPACES,
    cells_of,
    decoded,
    is_marked,
    number,
    split,
    without,
)
from .columns import (
    EXACT,
    MASK,
    Categories,
    Selection,
    Values,
    beyond_float,
    how_to_leave_out,
    in_order,
    rounding_doubts,
)
from .layout import Layout, find_layout, with_decimal
from .reading import Refused, check_size, open_file, read_bytes, unpack, unpacked_limit
from .words import lonely_first_row, text_columns

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zip")
CELLS = 1 << 20  # of a chunk that pandas reads
_COMMAS = re.compile(r"[-+\d.' ]*,[-+\d.,eE' ]*")
_SPACED = re.compile(r"[-+\d.,'\s]+")
_DIGITS = re.compile(r"[-+]?\d+")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(file: Path, selection: Selection) -> tuple[Values, Layout, Categories]:
    """Returns the values, shape (n, d), the layout with the names of the d columns, and texts.

    Values may be infinite, or NaN where there is none. Those of a column of texts are indices into
    its different texts, which are in order.
    """
    opened = _opener(file)
    with opened() as stream:
        layout = find_layout(stream, file, selection)
    with opened() as stream:
        layout = replace(layout, texts=text_columns(stream, layout, selection))
        layout = with_decimal(stream, layout)
    values, categories = None, dict[str, tuple[str, ...]]()
    if not layout.texts:
        with opened() as stream:
            values = _by_pandas(stream, layout)
    if values is None:
        with opened() as stream:
            values, categories = _by_line(stream, layout, gaps=selection.gaps)
    with opened() as stream:
        _check_commas(stream, values, layout)
    if selection.wanted is None:
        values, layout = _without_index(values, layout)
    else:
        _refuse_index(values, layout)
    layout.doubts.extend(lonely_first_row(values, layout, categories))
    with opened() as stream:
        layout.doubts.extend(_rounded(stream, values, layout))
    return values, layout, categories


def _opener(file: Path) -> Callable[[], BinaryIO]:
    """Returns a function that opens the text: unpacked, in UTF-8, with usual line ends."""
    source, size = str(file), file.stat().st_size
    check_size("read_table", source, size)
    with open_file("read_table", file) as stream:
        first = stream.readline().rstrip(b"\r\n")
    is_packed = file.suffix.lower() in PACKED_SUFFIXES or first[:2] == b"\x1f\x8b"
    if not is_packed and b"\r" not in first and not first.startswith(_UTF16):
        return lambda: open_file("read_table", file)
    data = read_bytes("read_table", file)
    data = _unpacked(file, data) if is_packed else data
    if data.startswith(_UTF16):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError as error:
            raise Refused(
                f"read_table: expected UTF-16 text, {source!r} is none ({error}); save it as UTF-8"
            ) from error
    if b"\r" in data.partition(b"\n")[0].rstrip(b"\r"):
        data = data.replace(b"\r", b"\n")
    return lambda: io.BytesIO(data)


def _unpacked(file: Path, data: bytes) -> bytes:
    source = str(file)
    if file.suffix.lower() == ".zip":
        members = list(read_zip("read_table", file, _is_table, unpacked_limit(len(data))))
        if len(members) != 1:
            raise Refused(
                f"read_table: expected one table in the archive {source!r}, found {len(members)}; "
                "pack it alone"
            )
        return members[0][1]
    kind = {".bz2": "bzip2", ".xz": "xz"}.get(file.suffix.lower(), "gzip")
    return unpack("read_table", data, source, kind)


def _is_table(name: str) -> bool:
    return name.lower().endswith(TEXT_SUFFIXES) and not name.startswith("__MACOSX")


def exact_numbers() -> dict[str, str]:
    """Returns the options by which pandas rounds to nearest; from 3.1 on it always does."""
    import pandas

    version = tuple(int(part) for part in pandas.__version__.split(".")[:2])
    return {} if version >= (3, 1) else {"float_precision": "round_trip"}


def _by_pandas(stream: BinaryIO, layout: Layout) -> Values | None:
    """Returns the values, or None if the rows are not plain numbers or differ in length."""
    import pandas

    stream.seek(layout.start)
    # pandas ends a cell at a zero byte and ignores the rest, and takes comments for rows.
    stray = b"\0" + layout.skipped.encode()
    if any(byte in block for block in iter(lambda: stream.read(1 << 20), b"") for byte in stray):
        return None
    stream.seek(layout.start)
    separator = r"\s+" if layout.delimiter == SPACES else layout.delimiter
    options: Any = {"sep": separator, "header": None, "skipinitialspace": True}
    options |= {"engine": "c", "low_memory": False, **exact_numbers()}
    options |= {"decimal": layout.decimal, "chunksize": max(1, CELLS // layout.cells)}
    try:
        with pandas.read_csv(stream, **options) as frames:
            parts = [_numbers(frame, layout) for frame in frames]
    except ValueError:  # Reading line by line gives a better error.
        return None
    return np.concatenate(parts)


def _numbers(frame: Any, layout: Layout) -> Values:
    if frame.shape[1] != layout.cells:
        raise ValueError("a row has another length")
    whole = frame.iloc[:, : len(layout.names)]
    numbers = frame.iloc[:, layout.kept]
    kinds = {dtype.kind for dtype in numbers.dtypes}
    more = not bool(frame.iloc[:, len(layout.names) :].isna().all(axis=None))
    # pandas fills rows that are too short with NaN.
    if more or not kinds <= set("fiu") or bool(whole.isna().any(axis=None)):
        raise ValueError("a cell is no number")
    return np.ascontiguousarray(numbers, np.float64)


def _by_line(stream: BinaryIO, layout: Layout, *, gaps: bool) -> tuple[Values, Categories]:
    comments = Counter[str]()
    known = {i: dict[str, int]() for i in layout.kept if i in layout.texts}
    lines = _uncommented(decoded(stream, layout.start, layout.source), layout, comments)
    values, width = array("d"), len(layout.names)
    for line, cells in split(lines, layout.delimiter, layout.line, layout.source):
        if len(cells) == layout.cells and not any(cells[width:]):
            del cells[width:]
        if len(cells) != width:
            raise ValueError(_other_length(len(cells), line, layout, is_first=not values))
        for i in layout.kept:
            if i in known:
                text = "" if cells[i].strip() in MISSING_TEXTS else cells[i].strip()
                values.append(known[i].setdefault(text, len(known[i])))
                continue
            value = _number(cells[i], layout, gaps=gaps)
            if value is None:
                is_first = len(values) < len(layout.kept)
                raise ValueError(_no_number(cells[i], line, i, layout, is_first=is_first))
            values.append(value)
    layout.notes.extend(_comments(comments, layout))
    rows, categories = np.array(values).reshape(-1, len(layout.kept)), dict[str, tuple[str, ...]]()
    for i, own in known.items():
        position = layout.kept.index(i)
        rows[:, position], categories[layout.names[i]] = in_order(rows[:, position], [*own])
    return rows, categories


def _number(cell: str, layout: Layout, *, gaps: bool) -> float | None:
    """Returns the number in a cell, NaN if it may be missing and is; None if there is none."""
    value = number(cell, layout.decimal)
    return math.nan if value is None and gaps and cell.strip().lower() in MISSING else value


def _comments(comments: Counter[str], layout: Layout) -> list[str]:
    """Returns a note of comments among the rows; a doubt is added to the layout."""
    notes = list[str]()
    if count := comments["comment"]:
        notes.append(f"{count} comment line{'s' * (count > 1)} among the rows")
    if count := comments["row"]:
        layout.doubts.append(
            f"lines that begin with {' or '.join(layout.skipped)} and have as many numbers as the "
            f"rows were left out as comments ({count}); if they are rows, delete that mark"
        )
    return notes


def _uncommented(lines: Iterable[str], layout: Layout, comments: Counter[str]) -> Iterator[str]:
    """Yields lines, comments as empty ones, and counts these: "comment", or "row" if like one.

    What has a text first, which the mark begins, and numbers where the rows have them is a row.
    """
    has_text = 0 in layout.texts
    for line in lines:
        row = without(line, layout.skipped)
        if not row and line.strip():
            text = line.strip() if has_text else line.strip().lstrip(layout.skipped)
            cells = cells_of(text, layout.delimiter)
            is_row = len(cells) == layout.cells and all(
                number(cells[i], layout.decimal) is not None for i in layout.numbers
            )
            if is_row and has_text and layout.numbers and is_marked(line, layout.skipped):
                row = line
            else:
                comments["row" if is_row else "comment"] += 1
        yield row


def _other_length(count: int, line: int, layout: Layout, *, is_first: bool) -> str:
    width = len(layout.names)
    hint = "mend or delete that line"
    if layout.delimiter == "," and layout.has_names and is_first:
        hint = (
            f"mend that line, or all: write decimal points, not commas; and if line {layout.line} "
            "does not name the columns, delete it"
        )
    elif layout.delimiter == "," and count == 2 * width:
        hint = "write decimal points, not commas, or separate the columns by semicolons"
    return (
        f"read_table: expected {width} columns as in {layout.named_by}, line {line} of "
        f"{layout.source!r} has {count}; {hint}"
    )


def _no_number(cell: str, line: int, i: int, layout: Layout, *, is_first: bool) -> str:
    shown = cell if len(cell) <= 40 else cell[:37] + "..."
    # A run needs its columns.
    name = layout.names[i]
    mends = [] if layout.all_wanted else [how_to_leave_out([name])]
    if not layout.all_wanted and not is_first:
        mends.append(f"say that it is a category (--columns={name}=category)")
    if cell.lower() in MISSING:
        mends = [] if layout.all_wanted else [MASK, *mends]
        hint = ", or ".join(["fill the gap or delete the row", *mends])
    else:
        hint = ", or ".join(["mend or delete the row", *mends])
    if len(cell.split()) > 1 and _SPACED.fullmatch(cell):
        hint = "the number has a space in it: write no thousands separators"
    elif _COMMAS.fullmatch(cell):
        hint = "write decimal points, not commas, and no thousands separators"
    elif layout.decimal == "," and number(cell) is not None:
        hint = "write decimal points, not commas, in all columns"
    elif layout.has_names and is_first and cell.lower() not in MISSING:
        hint = f"delete the line if it names units, or {hint}"
    elif is_first and not layout.has_names:
        hint = "in a header no name may be a number; if it is a row, " + hint
    return (
        f"read_table: expected a number, line {line}, column {i + 1} ({layout.names[i]!r}) of "
        f"{layout.source!r} is {shown!r}; {hint}"
    )


def _check_commas(stream: BinaryIO, values: Values, layout: Layout) -> None:
    """Refuses pairs of columns that are surely single numbers with decimal commas.

    A whole number is never written as -0, nor with a leading zero. Pairs of which the second has
    always the same number of digits are doubtful.
    """
    n, width = values.shape
    if layout.delimiter != "," or layout.has_names or n == 0 or width % 2 or layout.trailing:
        return
    if width != len(layout.names) or not (values == np.rint(values)).all():
        return
    unsure, lengths = {*range(0, width, 2)}, [set[int]() for _ in range(width)]
    for line, cells in layout.rows(stream):
        for i in sorted(unsure):
            whole, digits = cells[i : i + 2]
            if not (whole.lstrip("+-").isdigit() and digits.isdigit()):
                return
            lengths[i].add(len(digits))
            if whole == "-0" or (len(digits) > 1 and digits[0] == "0"):
                unsure.discard(i)
        if not unsure:
            raise Refused(
                f"read_table: expected columns between commas, line {line} of {layout.source!r} "
                f"reads like numbers with decimal commas ({','.join(cells[:2])!r}); write decimal "
                "points, or name the columns in a first line if they are whole numbers"
            )
    if all(len(lengths[i]) == 1 for i in range(0, width, 2)):
        layout.doubts.append(
            f"the file was read as {width} columns of whole numbers; if they are {width // 2} "
            "with decimal commas, write points; if not, name the columns in a first line"
        )


def _rounded(stream: BinaryIO, values: Values, layout: Layout) -> list[str]:
    """Returns a doubt of columns with whole numbers that float64 does not hold."""
    large = beyond_float(values) if len(values) else []
    columns = [layout.kept[i] for i in large if layout.kept[i] not in layout.texts]
    if not columns:
        return []
    found = set[int]()
    for _, cells in layout.rows(stream):
        for i in columns:
            value = number(cells[i], layout.decimal) or 0.0
            if abs(value) >= EXACT and _DIGITS.fullmatch(cells[i]):
                found.add(i)
    return rounding_doubts([layout.names[i] for i in sorted(found)])


def _refuse_index(values: Values, layout: Layout) -> None:
    """Refuses an index that would be read as the column whose name it was given."""
    if not layout.index or 0 not in layout.kept:
        return
    if _numbers_rows(values[:, layout.kept.index(0)]):
        raise Refused(
            f"read_table: expected the column {layout.names[0]!r} in {layout.source!r}, whose "
            "first column has no name and numbers the rows, as an index does; name the columns"
        )


def _numbers_rows(column: Values) -> bool:
    """Whether a column has different whole numbers, as an index has."""
    return bool((column == np.rint(column)).all()) and len(np.unique(column)) == len(column)


def _without_index(values: Values, layout: Layout) -> tuple[Values, Layout]:
    """Leaves a first column out that is the index of pandas or the row names of R."""
    if not layout.index or 0 not in layout.kept:
        return values, layout
    column, width = values[:, 0], len(layout.names)
    if _numbers_rows(column) and len(layout.kept) > 1:
        layout.notes.append("the first column (an index without a name)")
        is_count = bool((np.diff(column) == 1.0).all())
        if layout.index == "headless" and not is_count:
            layout.doubts.append(
                "the rows have one cell more than the header, and the first was left out as an "
                "index; if it is a part of the number behind it, delete the space between them; "
                "if it is a column, name it; if the first line is a title, delete it"
            )
        layout.kept.remove(0)
        return np.ascontiguousarray(values[:, 1:]), layout
    if layout.index == "headless":
        raise ValueError(
            f"read_table: expected {width - 1} columns as in the header, the rows of "
            f"{layout.source!r} have {width}; name the first column"
        )
    name = layout.names[0]
    layout.doubts.append(
        f"the first column has no name, as an index has none, and was read as {name}; name it, or "
        f"{how_to_leave_out([name])}"
    )
    return values, layout
