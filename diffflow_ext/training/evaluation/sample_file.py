"""Samples as data frames and in files: .npy, or .csv with the names of columns in its first line.

Images are bytes of shape (n, H, W, C), in .npy or as `arr_0` in .npz.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from torch import Tensor

from diffflow_ext.data.column import Column
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import plain_name
from diffflow_ext.data.formats.frames import as_pandas, is_frame
from diffflow_ext.figures.panels import replacing

from .given import condition_values


def endings(encoding: Encoding | None) -> tuple[str, ...]:
    """Returns the endings of file names for samples; encoding None stands for images."""
    if encoding is None:
        return (".npz", ".npy")
    return (".csv",) if encoding.texts else (".npy", ".csv")


def check_target(
    path: str | Path, endings: Sequence[str], *, overwrite: bool, source: str | None = None
) -> None:
    """Checks, before any work, that a file may be written: ending, directory, absence.

    It may not be the file that is read, the `source`.
    """
    path = Path(path)
    if source is not None and path.exists() and os.path.exists(source) and path.samefile(source):
        raise ValueError(f"{path}: expected another file than DATA; rename it")
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path}: expected a file or nothing there; give another name")
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: is there already; give --overwrite to replace it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the directory {path.parent} is missing")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: can't write to the directory {path.parent}")


def to_frame(encoding: Encoding, values: Tensor, known: Tensor | None = None) -> Any:
    """Returns rows as a data frame of pandas, in the types of the data.

    Arguments:
        encoding: The columns.
        values: Rows in the units of the data, with indices of texts, shape (n, columns).
        known: Which of them were given, bool, of the same shape. A column has float64 where its
            type does not hold a number that was given.
    """
    import pandas

    numbers, columns = values.double().cpu().numpy(), dict[str, Any]()
    for i, column in enumerate(encoding.columns):
        typed, exact = _typed(column, numbers[:, i]), numbers[:, i]
        if known is not None and not column.is_text:
            given, plain = known[:, i].numpy(), typed.astype("float64").to_numpy()
            if not np.array_equal(plain[given], exact[given]):
                typed = pandas.Series(np.where(given, exact, plain))
        columns[column.name] = typed
    return pandas.DataFrame(columns)


def with_given(frame: Any, conditions: Conditions, given: Any) -> Any:
    """Returns a frame of samples, as `to_frame` does, with columns of what they are given.

    Arguments:
        frame: The samples, n rows.
        conditions: The conditions of a run of a table.
        given: What `stored_conditions` has taken for n samples. Columns of a frame keep their
            types, and the samples get its index.
    """
    if is_frame(given):
        own = as_pandas(given)
        places = [*map(plain_name, own.columns)]
        frame = frame.set_axis(own.index)
        for name in conditions.names:
            frame[name] = own.iloc[:, places.index(plain_name(name))]
        return frame
    values = condition_values(conditions, given, len(frame))
    own = to_frame(Encoding(conditions.columns), values)
    for i, column in enumerate(conditions.columns):
        exact, typed = values[:, i].numpy(), own[column.name]
        # Another number may be given than the type of those in training holds.
        is_same = column.is_text or np.array_equal(typed.astype("float64"), exact)
        frame[column.name] = typed if is_same else exact
    return frame


def _typed(column: Column, values: np.ndarray) -> Any:
    """Returns the values of a column in the type that they had, if it can hold them."""
    import pandas

    if column.is_text:
        texts = [str(column.values[int(index)]) or None for index in values]
        # Files have no types: their truth values become what pandas reads of them.
        if column.dtype in ("bool", "boolean") or (column.is_truth and not column.dtype):
            truth = [None if text is None else text.lower() == "true" for text in texts]
            kind = "boolean" if None in truth else column.dtype or "bool"
            return pandas.Series(truth, dtype=kind)
        known = [text for text in column.values if text != ""]
        return _as_category(column, texts, known)
    whole = is_whole(column)
    numbers = pandas.Series(values)
    if "int" in column.dtype.lower() or (whole and not column.dtype):
        kind = column.dtype or "int64"
        low, high = _range(kind)
        low = max(low, 1.0) if column.kind == "positive" else low
        numbers = numbers.round().clip(low, high)
        return numbers if numbers.isna().any() and kind[0] in "iu" else numbers.astype(kind)
    if column.dtype.endswith("category"):
        plain = [int(value) if whole else value for value in column.values]
        return _as_category(column, numbers.where(numbers.notna(), None), plain)
    return numbers.astype(column.dtype or "float64")


def _range(kind: str) -> tuple[float, float]:
    """Returns the smallest and largest float64 that a type of integers holds."""
    limits = np.iinfo(kind.lower().partition("[")[0])
    high = float(limits.max)
    return float(limits.min), high if int(high) <= limits.max else float(np.nextafter(high, 0.0))


def _as_category(column: Column, values: Any, known: list[Any]) -> Any:
    """Returns values as a categorical of pandas if they were one, else as texts."""
    import pandas

    if column.dtype.endswith("category"):
        ordered = column.dtype.startswith("ordered")
        return pandas.Categorical(values, known, ordered=ordered)
    kind = column.dtype if column.dtype.startswith("str") else "object"
    return pandas.Series(values, dtype=kind)


def is_whole(column: Column) -> bool:
    """Whether all values of a column of numbers are whole."""
    if column.kind == "category":
        return all(float(value).is_integer() for value in column.values)
    return column.kind == "integer" and column.step.is_integer() and column.low.is_integer()


def write_samples(path: str | Path, samples: Tensor, columns: Sequence[Column]) -> None:
    """Writes samples atomically: rows (n, d) of columns, or images (n, C, H, W) in bytes."""
    path = Path(path)
    values = _bytes(samples) if samples.ndim == 4 else _vectors(samples, columns)
    with replacing(path) as aside:
        if path.suffix.lower() == ".csv":
            with aside.open("x", encoding="utf-8", newline="") as file:
                _write_csv(file, values, columns)
        else:
            with aside.open("xb") as binary:
                _write_numpy(binary, values, path.suffix.lower())


def _bytes(images: Tensor) -> np.ndarray:
    return images.movedim(1, -1).contiguous().cpu().numpy()


def _vectors(samples: Tensor, columns: Sequence[Column]) -> np.ndarray:
    values = samples.double().cpu().numpy()
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(
            f"write_samples: expected samples of shape (n, {len(columns)}), got {values.shape}"
        )
    return values


def _write_numpy(file: BinaryIO, values: np.ndarray, ending: str) -> None:
    if ending == ".npz":
        np.savez(file, values)
    else:
        np.save(file, values, allow_pickle=False)


def _write_csv(file: TextIO, values: np.ndarray, columns: Sequence[Column]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    spelt = [_spelling(column) for column in columns]
    for row in values.tolist():
        writer.writerow([spell(value) for spell, value in zip(spelt, row, strict=True)])


def _spelling(column: Column) -> Callable[[float], str]:
    """Returns how values of a column are written; a missing one is an empty cell."""
    if column.is_text:
        return lambda value: str(column.values[int(value)])
    if is_whole(column):
        return lambda value: "" if math.isnan(value) else str(int(value))
    return lambda value: "" if math.isnan(value) else repr(value)
