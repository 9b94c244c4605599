"""Data frames, and tables in Parquet and Feather (Arrow) files, read by pandas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cells import is_code, is_word
from .columns import (
    Selection,
    Table,
    Values,
    beyond_float,
    how_to_leave_out,
    in_order,
    listed,
    plain_name,
    rounding_doubts,
)
from .reading import Refused, check_size, optional_package

FRAME_SUFFIXES = (".parquet", ".pq", ".feather", ".arrow")


def read_frame(file: Path, selection: Selection) -> Table:
    """Returns the selected columns; a TypeError names one of neither numbers nor texts."""
    return frame_values(_load(file), selection, str(file))


def is_frame(rows: object) -> bool:
    """Returns whether rows in memory are a data frame, of pandas or with columns as it has."""
    return hasattr(rows, "columns") and hasattr(rows, "__getitem__")


def frame_values(frame: Any, selection: Selection, source: str) -> Table:
    """Returns the selected columns of a data frame, as `read_frame` does."""
    frame = as_pandas(frame)
    names = [plain_name(name) for name in frame.columns]
    kept = selection.positions([*map(str, frame.columns)], source)
    frame, names = frame.iloc[:, kept], [names[i] for i in kept]
    parts, categories, wrong = _coded_columns(frame, names, selection)
    if wrong:
        found = [word.rpartition(" (")[0] for word in wrong]
        way_out = "" if selection.wanted is not None else f", or {how_to_leave_out(found)}"
        raise TypeError(
            f"read_table: expected columns of numbers or texts, {source!r} has {listed(wrong)}; "
            f"cast decimals and numbers in text to double, dates to numbers{way_out}"
        )
    notes = ()
    if type(frame.index).__name__ != "RangeIndex":
        notes = (f"the index {listed([str(name) for name in frame.index.names])}",)
    values = np.stack(parts, axis=1)
    large = beyond_float(values) if len(values) else []
    rounded = [names[i] for i in large if _is_whole(frame.dtypes.iloc[i])]
    dtypes = {name: _type_name(kind) for name, kind in zip(names, frame.dtypes, strict=True)}
    doubts = tuple(rounding_doubts(rounded))
    return Table(values, names, source, notes, doubts, categories, dtypes)


def _coded_columns(
    frame: Any, names: Sequence[str], selection: Selection
) -> tuple[list[Values], dict[str, tuple[str, ...]], list[str]]:
    """Returns the values of columns, the texts of some, and which have neither."""
    parts, categories, wrong = list[Values](), dict[str, tuple[str, ...]](), list[str]()
    for i, name in enumerate(names):
        column = frame.iloc[:, i]
        # What was read as texts from a file may be numbers in a frame.
        as_texts = selection.wanted is not None and name in selection.texts
        column = _plain(column)
        if _is_number(column.dtype) and not as_texts:
            parts.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
        elif as_texts or (_is_texts(column) and (name in selection.texts or _has_words(column))):
            codes, categories[name] = _coded(column)
            parts.append(codes)
        else:
            wrong.append(f"{name} ({column.dtype})")
    return parts, categories, wrong


def as_pandas(frame: Any) -> Any:
    """Returns a frame as one of pandas."""
    import pandas

    if isinstance(frame, pandas.DataFrame):
        return frame
    if hasattr(frame, "__dataframe__"):
        return pandas.api.interchange.from_dataframe(frame)
    return pandas.DataFrame({name: np.asarray(frame[name]) for name in frame.columns})


def _is_texts(column: Any) -> bool:
    """Whether a column of a frame has texts, truth values or categories, perhaps missing ones."""
    import pandas

    types = pandas.api.types
    kind = column.dtype
    if types.is_bool_dtype(kind) or isinstance(kind, pandas.CategoricalDtype):
        return True
    if not (types.is_object_dtype(kind) or types.is_string_dtype(kind)):
        return False
    return types.infer_dtype(column, skipna=True) in ("string", "boolean", "empty")


def _plain(column: Any) -> Any:
    """Returns categories of numbers as these numbers."""
    import pandas

    if isinstance(column.dtype, pandas.CategoricalDtype):
        kind = column.dtype.categories.dtype
        if _is_number(kind):
            return column.astype("float64")
    return column


def _type_name(kind: Any) -> str:
    return ("ordered " if getattr(kind, "ordered", False) else "") + str(kind)


def _has_words(column: Any) -> bool:
    """Whether most texts of a column are words or codes: not numbers in the form of texts."""
    if column.dtype.name not in ("object", "string", "str"):
        return True
    texts = [str(value) for value in column.dropna()]
    are_codes = any(map(is_code, texts)) and all(text.isdigit() for text in texts)
    return not texts or are_codes or 2 * sum(map(is_word, texts)) > len(texts)


def _coded(column: Any) -> tuple[Values, tuple[str, ...]]:
    """Returns the indices of a column's texts, and these; a missing one is an empty text."""
    texts = column.astype(object)
    texts = texts.where(texts.notna(), "").map(str)
    codes, known = texts.factorize()
    if not hasattr(column.dtype, "categories"):
        return in_order(codes.astype(np.float64), [*known])
    rank = {str(value): i for i, value in enumerate(column.dtype.categories)}
    order = sorted(known, key=lambda text: rank.get(text, -1))
    place = {text: float(i) for i, text in enumerate(order)}
    return np.array([place[text] for text in texts]), tuple(order)


def _load(file: Path) -> Any:
    import pandas

    check_size("read_table", str(file), file.stat().st_size)
    feather = file.suffix.lower() in (".feather", ".arrow")
    module = "pyarrow.feather" if feather else "pyarrow.parquet"
    library = optional_package("read_table", module, "reads Parquet and Feather files")
    try:
        if feather:
            return pandas.read_feather(file)
        facts = library.read_metadata(file)
        # A few bytes may stand for any number of rows.
        check_size("read_table", str(file), 8 * facts.num_rows * facts.num_columns)
        # pandas would not say that names are equal.
        Selection().positions(facts.schema.to_arrow_schema().names, str(file))
        return pandas.read_parquet(file, engine="pyarrow")
    except Refused:
        raise
    # A damaged file raises nearly any exception, MemoryError too if a size in it is wrong.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise Refused(
            f"read_table: expected a table in a Parquet or Feather file, {str(file)!r} cannot be "
            f"read ({reason}); it is cut, damaged or of another kind: write it again"
        ) from error


def _is_number(kind: Any) -> bool:
    import pandas

    types = pandas.api.types
    return types.is_numeric_dtype(kind) and not (
        types.is_bool_dtype(kind) or types.is_complex_dtype(kind)
    )


def _is_whole(kind: Any) -> bool:
    import pandas

    return pandas.api.types.is_integer_dtype(kind)
