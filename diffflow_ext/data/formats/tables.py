"""Tables of numbers from files: NumPy arrays, CSV and KEEL text.

A file is read once, hashed, and turned into float64 columns, or refused with an error that says
what was expected, what came and how to mend it. Nothing in a file is ever executed, and sizes
that a header claims are checked against the bytes that are there before memory is taken.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrays import RawArray, parse_npy, parse_npz
from .reading import Refused, read_file

__all__ = ["Table", "read_table"]


Values = NDArray[np.float64]


MIN_ROWS = 10


TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers.

    Attributes:
        values: Finite float64 values, shape (n, d), no column constant.
        columns: The d column names.
        source: Where the table came from, for messages and records.
        sha256: The hash of the file's bytes, in hexadecimal.
    """

    values: Values
    columns: list[str]
    source: str
    sha256: str


def read_table(
    path: str | os.PathLike[str], *, key: str | None = None, drop_label: bool = False
) -> Table:
    """Reads a table of numbers from a file.

    Arguments:
        path: A `.npy` or `.npz` array with shape (n, d), or text with one row a line (`.csv`,
            `.tsv`, `.txt`; comma, semicolon or tab; a header is found by itself), or KEEL
            `.dat` (`@` lines, then CSV with the class label last).
        key: The array's name in an `.npz` that holds several.
        drop_label: Whether the last column is a label to leave out (text files only).

    Returns:
        The table, with n >= 10 and d >= 1.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the array holds objects, text, complex numbers or records.
        ValueError: If the file cannot be read as a finite table that can be standardised.
    """
    file = Path(path)
    data = read_file("read_table", file)
    suffix = file.suffix.lower()
    if suffix == ".npy":
        values, columns = _array_values(parse_npy("read_table", data, str(file))), None
    elif suffix == ".npz":
        choose = partial(_choose_array, source=str(file), key=key)
        values, columns = _array_values(parse_npz("read_table", data, str(file), choose)), None
    elif suffix in TEXT_SUFFIXES:
        values, columns = _read_text(data, str(file), drop_label)
    else:
        raise ValueError(
            f"read_table: expected a file ending in .npy, .npz, {', '.join(TEXT_SUFFIXES)}; "
            f"got {file.name!r}; convert it, or rename it if it is one of these"
        )
    columns = columns or [f"x{i + 1}" for i in range(values.shape[1])]
    _check_values(values, columns, str(file))
    return Table(values, columns, str(file), hashlib.sha256(data).hexdigest())


def _no_rows(source: str) -> ValueError:
    return ValueError(
        f"read_table: expected rows of numbers, {source!r} is empty; write the data again"
    )


def _array_values(array: RawArray) -> Values:
    _check_dtype(array.dtype, array.source)
    _check_shape(array.shape, array.source)
    _check_rows(array.shape[0], array.source)
    # A wide float beyond the range of float64 becomes inf here and is named by _check_values.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array.values(), np.float64)


def _choose_array(keys: list[str], source: str, key: str | None) -> str:
    if key is not None and key in keys:
        return key
    if key is None and len(keys) == 1:
        return keys[0]
    wanted = "one array" if key is None else f"an array named {key!r}"
    mend = f"give key=, one of {keys}" if keys else "save one with numpy.savez"
    raise Refused(f"read_table: expected {wanted} in {source!r}, found {keys}; {mend}")


# What an array of another kind holds, and how to mend it.
_REFUSED = {
    "V": ("records", "stack its fields into one array with shape (n, d)"),
    "c": ("complex numbers", "save real and imaginary parts as separate columns"),
    "O": ("Python objects", "save array.astype(float) instead"),
    "b": ("truth values", "leave such columns out: they have no density"),
}


def _check_dtype(dtype: np.dtype, source: str) -> None:
    if dtype.kind in "fiu":
        return
    other = ("text, dates or bytes", "save the numeric columns alone")
    kind, mend = _REFUSED.get(dtype.kind, other)
    raise TypeError(
        f"read_table: expected an array of real numbers, {source!r} holds {kind} ({dtype}); {mend}"
    )


def _check_shape(shape: tuple[int, ...], source: str) -> None:
    if len(shape) == 2 and min(shape) >= 0 and shape[1] > 0:
        return
    mend = "flatten each row with array.reshape(len(array), -1)"
    if len(shape) < 3:
        mend = "use array.reshape(-1, 1) for one column, or array.reshape(n, d)"
    raise ValueError(
        f"read_table: expected an array with shape (n, d), {source!r} has shape {shape}; {mend}"
    )


def _read_text(data: bytes, source: str, drop_label: bool) -> tuple[Values, list[str] | None]:
    lines = io.StringIO(_decode(data, source), newline=None).readlines()
    names: list[str] | None = None
    if source.lower().endswith(".dat"):
        names, lines = _keel_header(lines)
    rows = list(_split(lines, source))
    if not rows:
        raise _no_rows(source)
    if names is None and not any(_is_number(cell) for cell in rows[0][1]):
        # One row of text alone may be data as well as a header: either way no row is left.
        names = [cell or f"x{i + 1}" for i, cell in enumerate(rows.pop(0)[1])]
    width = _check_widths(rows, names, source) - int(drop_label)
    if width < 1:
        raise ValueError(
            f"read_table: expected a column besides the label, {source!r} has only one column; "
            "read it with drop_label=False"
        )
    _check_rows(len(rows), source)
    values = [_numbers(line, cells[:width], names, source) for line, cells in rows]
    return np.array(values, np.float64), names[:width] if names else None


def _decode(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
        wrong = text.find("\0")
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong >= 0:
        raise ValueError(
            f"read_table: expected UTF-8 text, {source!r} is none at place {wrong}; save it as "
            "UTF-8, or give it its right file ending"
        )
    return text


def _keel_header(lines: list[str]) -> tuple[list[str] | None, list[str]]:
    """Names of the attributes; the lines with header lines blanked, so that numbers stay true."""
    declared = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|[^\s{\[]+)", re.IGNORECASE)
    matches = [declared.match(line.strip()) for line in lines]
    names = [match.group(1).strip("'\"") for match in matches if match]
    return names or None, ["" if line.lstrip().startswith(("@", "%")) else line for line in lines]


def _split(lines: list[str], source: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, cells) of the lines that are not blank."""
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in "\t;," if mark in first), ",")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(
            f"read_table: expected rows of numbers, line {reader.line_num} of {source!r} cannot "
            f"be split ({error}); separate the columns by comma, semicolon or tab"
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    # float() takes 1_000 for a number; in a file this is a slip.
    return "_" not in cell


def _check_widths(rows: list[tuple[int, list[str]]], names: list[str] | None, source: str) -> int:
    width = len(names) if names else len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            said_by = "the header" if names else f"line {rows[0][0]}"
            raise ValueError(
                f"read_table: expected {width} columns as in {said_by}, line {line} of "
                f"{source!r} has {len(cells)}; mend or delete that line"
            )
    return width


def _numbers(line: int, cells: list[str], names: list[str] | None, source: str) -> list[float]:
    if all(map(_is_number, cells)):
        return [float(cell) for cell in cells]
    at = next(i for i, cell in enumerate(cells) if not _is_number(cell))
    name = names[at] if names else f"x{at + 1}"
    text = cells[at] if len(cells[at]) <= 40 else cells[at][:37] + "..."
    raise ValueError(
        f"read_table: expected a number, line {line}, column {at + 1} ({name!r}) of {source!r} "
        f"is {text!r}; {_cell_hint(cells[at], line)}"
    )


def _cell_hint(cell: str, line: int) -> str:
    if not cell:
        return "fill the gap, or delete the row"
    if "," in cell:
        return "write decimal points, not commas"
    if line == 1:
        return "in a header no name may be a number; drop_label=True leaves out a last text column"
    return "delete the row or the column; drop_label=True leaves out a last column of labels"


def _check_rows(count: int, source: str) -> None:
    if count < MIN_ROWS:
        raise ValueError(
            f"read_table: expected at least {MIN_ROWS} rows, {source!r} has {count}; "
            "collect more: a density cannot be learned from so few"
        )


def _check_values(values: Values, columns: list[str], source: str) -> None:
    _check_rows(len(values), source)
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"read_table: expected finite numbers, row {row} (counted from 0), column "
            f"{columns[column]!r} of {source!r} is {values[row, column]}, and "
            f"{int((~finite).sum()) - 1} more; delete or fill those rows"
        )
    constant = np.flatnonzero(values.min(axis=0) == values.max(axis=0))
    if len(constant):
        named = ", ".join(repr(columns[i]) for i in constant[:8])
        raise ValueError(
            f"read_table: expected columns that vary, {source!r} has constant ones ({named}), "
            "which cannot be standardised and have no density; leave them out"
        )
