"""Data frames, and tables in Parquet and Feather (Arrow) files, read by pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Selection, Values, beyond_float, how_to_leave_out, listed, rounding_doubts
from .reading import Refused, check_size, optional_package

FRAME_SUFFIXES = (".parquet", ".pq", ".feather", ".arrow")


def read_frame(file: Path, selection: Selection) -> tuple[Values, list[str], list[str], list[str]]:
    """Returns values, shape (n, d), column names, notes of what was passed over, and doubts.

    Missing values are NaN. A TypeError names a column that holds no numbers.
    """
    return frame_values(_load(file), selection, str(file))


def is_frame(rows: object) -> bool:
    """Returns whether rows in memory are a data frame, of pandas or with columns as it has."""
    return hasattr(rows, "columns") and hasattr(rows, "__getitem__")


def frame_values(
    frame: Any, selection: Selection, source: str
) -> tuple[Values, list[str], list[str], list[str]]:
    """Returns the selected columns of a data frame, as `read_frame` does."""
    import pandas

    if not isinstance(frame, pandas.DataFrame):
        frame = pandas.DataFrame({name: np.asarray(frame[name]) for name in frame.columns})
    notes = list[str]()
    names = [str(name) for name in frame.columns]
    kept = selection.positions(names, source)
    frame, names = frame.iloc[:, kept], [names[i] for i in kept]
    wrong = {n: kind for n, kind in zip(names, frame.dtypes, strict=True) if not _is_number(kind)}
    if wrong:
        found = [f"{name} ({kind})" for name, kind in wrong.items()]
        raise TypeError(
            f"read_table: expected columns of numbers, {source!r} has {listed(found)}; "
            f"cast decimals and numbers in text to double, or {how_to_leave_out([*wrong])}"
        )
    if type(frame.index).__name__ != "RangeIndex":
        notes.append(f"the index {listed([str(name) for name in frame.index.names])}")
    values: NDArray[Any] = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    large = beyond_float(values) if len(values) else []
    rounded = [names[i] for i in large if _is_whole(frame.dtypes.iloc[i])]
    return np.ascontiguousarray(values), names, notes, rounding_doubts(rounded)


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
