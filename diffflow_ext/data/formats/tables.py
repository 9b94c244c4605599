"""Tables of numbers from files: NumPy arrays, CSV and KEEL text.

Nothing in a file is ever executed, and sizes stated in a header are compared with the bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import load_array
from .reading import Refused, check_file
from .text import TEXT_SUFFIXES, read_text

Values = NDArray[np.float64]
MIN_ROWS = 10


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers.

    Attributes:
        values: Finite float64 values, shape (n, d), no column constant.
        columns: The d column names.
        source: The origin of the table, for messages and records.
    """

    values: Values
    columns: list[str]
    source: str


def read_table(
    path: str | os.PathLike[str], *, key: str | None = None, drop_label: bool = False
) -> Table:
    """Reads a table of numbers from a file.

    Arguments:
        path: A `.npy` or `.npz` array with shape (n, d), or text with one row a line (`.csv`,
            `.tsv`, `.txt`; comma, semicolon or tab, or spaces if the first line is numbers; a
            header is recognised), or KEEL `.dat` (`@` lines, then CSV with the class label
            last). Text may be gzipped (`.csv.gz`).
        key: The array's name in an `.npz` file with several.
        drop_label: Whether the last column is a label to leave out (text files only).

    Returns:
        The table, with n >= 10 and d >= 1.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the array holds text, truth values, complex numbers or records.
        ValueError: If the file cannot be read as a finite table that can be standardised.
    """
    file = Path(path)
    check_file("read_table", file)
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if file.suffix.lower() in (".npy", ".npz"):
        choose = partial(_choose_array, source=str(file), key=key)
        loaded = load_array("read_table", file, choose)
        values, columns = _array_values(loaded, str(file)), None
    elif suffix in TEXT_SUFFIXES:
        values, columns = read_text(file, drop_label)
    else:
        raise ValueError(
            f"read_table: expected a file ending in .npy, .npz, {', '.join(TEXT_SUFFIXES)}; "
            f"got {file.name!r}; convert it, or rename it if it is one of these"
        )
    columns = columns or [f"x{i + 1}" for i in range(values.shape[1])]
    _check_values(values, columns, str(file))
    return Table(values, columns, str(file))


def _array_values(loaded: NDArray[Any], source: str) -> Values:
    _check_dtype(loaded.dtype, source)
    _check_shape(loaded.shape, source)
    _check_rows(len(loaded), source)
    # A wide float beyond the range of float64 becomes inf, which _check_values refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(loaded, np.float64, order="C")


def _choose_array(keys: list[str], source: str, key: str | None) -> str:
    if key is not None and key in keys:
        return key
    if key is None and len(keys) == 1:
        return keys[0]
    wanted = "one array" if key is None else f"an array named {key!r}"
    mend = f"give key=, one of {keys}" if keys else "save one with numpy.savez"
    raise Refused(f"read_table: expected {wanted} in {source!r}, found {keys}; {mend}")


# Kinds of arrays that are refused, and how to mend them.
_REFUSED = {
    "V": ("records", "stack its fields into one array with shape (n, d)"),
    "c": ("complex numbers", "save real and imaginary parts as separate columns"),
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
