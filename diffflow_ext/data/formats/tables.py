"""Tables of numbers from files: NumPy arrays, text, Parquet and Feather.

Nothing in a file is ever executed, and sizes stated in a header are compared with the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from .arrays import find_arrays, load_array
from .columns import (
    MASK,
    Selection,
    Table,
    Values,
    beyond_float,
    listed,
    parse_names,
    rounding_doubts,
)
from .frames import FRAME_SUFFIXES, frame_values, is_frame, read_frame
from .reading import Refused, check_file
from .text import PACKED_SUFFIXES, TEXT_SUFFIXES, read_text

MIN_ROWS = 20  # two of them for the test, which a standard error needs


def read_table(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    drop_columns: str | Sequence[str] = (),
    texts: Collection[str] = (),
    numbers: Collection[str] = (),
    gaps: bool = False,
) -> Table:
    """Reads a table of numbers and texts from a file.

    Arguments:
        path: A `.npy` or `.npz` array with shape (n, d); or text with one row a line (`.csv`,
            `.tsv`, `.txt`, `.dat`, and packed, such as `.csv.gz`, `.bz2`, `.xz` or `.zip`); or
            `.parquet` or `.feather`, which need pyarrow. Text has columns between commas,
            semicolons, tabs, bars or spaces, decimal points, or commas where they do not
            separate columns, and perhaps a header. Lines that begin with `#` are no rows, nor is
            an index without a name a column. `.dat` may be KEEL (`@` lines), whose outputs are
            left out.
        key: The array's name in an `.npz` file with several.
        drop_columns: The names of columns to leave out, or a text with commas between them.
            Columns without names are called x1, x2 and so on.
        texts: The names of columns whose values are texts even where they look like numbers. Of
            text, a column is one of texts if most of its cells are words, or all are whole
            numbers of which some have leading zeros, such as 007.
        numbers: The names of columns whose values are numbers also with leading zeros; "*" for
            all that are not words.
        gaps: Whether numbers may be missing; they are NaN then. A missing text is "".

    Returns:
        The table, with n >= 20 and d >= 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pyarrow is missing and the file needs it.
        TypeError: If an array holds text, truth values, complex numbers or records, or a column
            of a frame dates or objects.
        ValueError: If the file cannot be read as a table of finite numbers and texts.
    """
    dropped = parse_names(drop_columns)
    known = frozenset(texts), frozenset(numbers)
    selection = Selection(tuple(dropped), None, *known, gaps)
    return _checked(_read(Path(path), key, selection), dropped, gaps=gaps)


def table_of(
    rows: Any,
    *,
    drop_columns: str | Sequence[str] = (),
    texts: Collection[str] = (),
    numbers: Collection[str] = (),
    gaps: bool = False,
    name: str = "rows",
) -> Table:
    """Returns a table of rows in memory.

    Arguments:
        rows: An array or a tensor of shape (n, d), whose columns are called x1, x2 and so on, or a
            data frame.
        drop_columns: As for :func:`read_table`, whose errors these are too.
        texts: Likewise.
        numbers: Likewise.
        gaps: Likewise.
        name: The table's source, for messages and records.
    """
    dropped = parse_names(drop_columns)
    known = frozenset(texts), frozenset(numbers)
    selection = Selection(tuple(dropped), None, *known, gaps)
    return _checked(select(rows, selection, name), dropped, gaps=gaps)


def select(rows: Any, selection: Selection, name: str) -> Table:
    """Returns the selected columns of a data frame, an array or a tensor, of any values."""
    if is_frame(rows):
        return frame_values(rows, selection, name)
    return _selected(array_of(rows), selection, name)


def array_of(rows: Any) -> NDArray[Any]:
    """Returns an array, a tensor, lists or a dataset of torch as an array.

    bfloat16, which NumPy lacks, becomes float32; of a dataset whose items are tuples, such as rows
    with their labels, the first parts are taken.

    Raises:
        TypeError: If it can't be one.
    """
    try:
        if isinstance(rows, TorchDataset):
            items = (rows[i] for i in range(len(rows)))  # pyright: ignore[reportArgumentType]
            return np.stack([np.asarray(i[0] if isinstance(i, tuple) else i) for i in items])
        if isinstance(rows, Tensor):
            rows = rows.detach().cpu()
            return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
        if isinstance(rows, np.ma.MaskedArray):
            return np.ma.filled(rows.astype(np.float64), np.nan)
        return np.asarray(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"read_table: expected rows that make an array, got a {type(rows).__name__} "
            f"({error}); give an array, a dense tensor, rows of one length, or a data frame"
        ) from error


def _checked(table: Table, dropped: Sequence[str], *, gaps: bool) -> Table:
    """Returns a table that can be split, with a note of what was dropped."""
    _check_rows(len(table.values), table.source, table.doubts)
    check_values(table, gaps=gaps)
    notes = (*table.notes, f"{listed(dropped)} (by drop_columns)") if dropped else table.notes
    return replace(table, notes=notes)


def read_rows(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    *,
    key: str | None = None,
    drop_columns: str | Sequence[str] = (),
    texts: Collection[str] = (),
    gaps: bool = False,
) -> Table:
    """Reads rows with known columns from a file of the formats of :func:`read_table`.

    Arguments:
        path: The file. Its columns are found by their names, in any order, and others are not
            read; if it names none it has the known ones in their order.
        columns: Their names.
        key: The array's name in an `.npz` file with several.
        drop_columns: Columns that a file without names may have beside the known ones, by the
            names x1, x2 and so on.
        texts: The names of those of texts; all others have numbers.
        gaps: Whether numbers may be missing.

    Returns:
        The rows, at least one, with the columns in the order of `columns`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pyarrow is missing and the file needs it.
        TypeError: If an array or column holds text, truth values, complex numbers or records.
        ValueError: If a column is missing, a value is not finite, or the file cannot be read.
    """
    known, dropped = frozenset(texts), tuple(parse_names(drop_columns))
    selection = Selection(dropped, tuple(columns), known, frozenset(columns) - known, gaps)
    table = _read(Path(path), key, selection)
    if not len(table.values):
        raise ValueError(
            f"read_table: expected at least one row, {table.source!r} has none; write the rows"
        )
    check_values(table, gaps=gaps)
    names = zip(table.columns, columns, strict=True)
    renamed = {new: table.categories[old] for old, new in names if old in table.categories}
    return replace(table, columns=list(columns), categories=renamed)


def _read(file: Path, key: str | None, selection: Selection) -> Table:
    """Returns the selected columns, of any rows."""
    check_file("read_table", file)
    name = file.name.lower()
    packing = next((ending for ending in PACKED_SUFFIXES if name.endswith(ending)), "")
    if key is not None and not name.endswith(".npz"):
        raise ValueError(
            f"read_table: expected key for .npz files alone, got {key!r}; leave it out"
        )
    if name.endswith((".npy", ".npz")):
        return _read_array(file, key, selection)
    if name.endswith(FRAME_SUFFIXES):
        return read_frame(file, selection)
    if name.removesuffix(packing).endswith(TEXT_SUFFIXES):
        values, layout, categories = read_text(file, selection)
        columns = [layout.names[i] for i in layout.kept]
        notes, doubts = tuple(layout.notes), tuple(layout.doubts)
        return Table(values, columns, str(file), notes, doubts, categories)
    endings = ", ".join((".npy", ".npz", *TEXT_SUFFIXES, *FRAME_SUFFIXES))
    raise ValueError(
        f"read_table: expected a file ending in {endings}; "
        f"got {file.name!r}; convert it, or rename it if it is one of these"
    )


def _read_array(file: Path, key: str | None, selection: Selection) -> Table:
    found = find_arrays("read_table", file, key)
    if len(found.names) > 1:
        raise Refused(
            f"read_table: expected one array in {str(file)!r}, found "
            f"{[*found.names.values()]}; a table is split by a fixed rule: join them, or name one "
            f"with --key={found.names['train']} (in Python key={found.names['train']!r})"
        )
    loaded = load_array("read_table", file, found.names["train"])
    table = _selected(loaded, selection, str(file))
    notes = (f"the arrays {listed(found.left_out)}",) if found.left_out else ()
    return replace(table, notes=notes)


def _selected(array: NDArray[Any], selection: Selection, source: str) -> Table:
    """Returns the selected columns of an array."""
    values = _array_values(array, source)
    names = [f"x{i + 1}" for i in range(values.shape[1])]
    kept = selection.positions(names, source, named=False)
    if kept != [*range(len(names))]:
        values = np.ascontiguousarray(values[:, kept])
    names = [names[i] for i in kept]
    large = beyond_float(values) if len(values) and array.dtype.kind in "iu" else []
    doubts = tuple(rounding_doubts([names[i] for i in large]))
    return Table(
        values, names, source, doubts=doubts, dtypes=dict.fromkeys(names, str(array.dtype))
    )


def _array_values(loaded: NDArray[Any], source: str) -> Values:
    _check_dtype(loaded.dtype, source)
    _check_shape(loaded.shape, source)
    # A wide float beyond the range of float64 becomes inf, which check_values refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(loaded, np.float64, order="C")


# Kinds of arrays that are refused, and how to mend them.
_REFUSED = {
    "V": ("records", "stack its fields into one array with shape (n, d)"),
    "c": ("complex numbers", "save real and imaginary parts as separate columns"),
    "b": ("truth values", "save them as numbers 0 and 1"),
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


def _check_rows(count: int, source: str, doubts: Sequence[str] = ()) -> None:
    """Refuses tables of too few rows; doubts may say where others are."""
    if count < MIN_ROWS:
        mend = "collect more: a tenth is for the test, and a density cannot be learned from so few"
        raise ValueError(
            f"read_table: expected at least {MIN_ROWS} rows, {source!r} has {count}; "
            f"{'; '.join([*doubts, mend])}"
        )


def check_values(table: Table, *, gaps: bool) -> None:
    """Refuses numbers that are infinite, or missing unless they may be."""
    values = table.values
    wrong = np.isinf(values) if gaps else ~np.isfinite(values)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        others = int(wrong.sum()) - 1
        more = f", and so are {others} more" if others else ""
        mask = f", or {MASK}" if np.isnan(values[row, column]) else ""
        raise ValueError(
            f"read_table: expected finite numbers, row {row} (counted from 0), column "
            f"{table.columns[column]!r} of {table.source!r} is {values[row, column]}{more}; "
            f"delete or fill such rows{mask}"
        )
