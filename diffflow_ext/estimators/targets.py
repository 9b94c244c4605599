"""What a density is conditioned on: y of `fit`, as columns beside those of X."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffflow_ext.data.column import KINDS
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.formats.columns import listed, names_text, plain_name
from diffflow_ext.data.formats.frames import as_pandas, is_frame
from diffflow_ext.data.formats.tables import array_of, table_of
from diffflow_ext.data.kinds import found_kinds, parse_columns
from diffflow_ext.functional.checks import in_words
from diffflow_ext.training.config.fields import Config


def target_frame(op: str, y: Any, names: Sequence[str] | None = None) -> Any:
    """Returns y as a data frame with the names of its columns as texts.

    Arguments:
        op: The method that errors name.
        y: A data frame, a series, or what makes an array of shape (n,) or (n, k). Columns without
            names are y, or of several y1, y2 and so on.
        names: The names in `fit`. A data frame must have them, others have these columns in this
            order.
    """
    import pandas

    if is_frame(y):
        frame = as_pandas(y)
        frame = frame.set_axis([*map(plain_name, frame.columns)], axis=1)
        missing = [name for name in names or () if name not in frame.columns]
        if missing:
            raise ValueError(
                f"{op}: expected y with the columns {listed(names or ())}, those of fit, got"
                f" {listed([*frame.columns])}; name them so"
            )
        return frame if names is None else frame[[*names]]
    column = y if isinstance(y, pandas.Series) else None
    frame = pandas.DataFrame(_columns(op, y) if column is None else column.array)
    count = frame.shape[1]
    own = [f"y{i + 1}" for i in range(count)] if count > 1 else ["y"]
    own = [plain_name(column.name)] if column is not None and column.name is not None else own
    if names is not None and len(names) != count:
        raise ValueError(
            f"{op}: expected y with {len(names)} columns, {listed(names)}, as in fit, got {count};"
            " give as many"
        )
    return frame.set_axis([*own] if names is None else [*names], axis=1).infer_objects()


def _columns(op: str, y: Any) -> Any:
    array = array_of(y)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not array.shape[1]):
        raise ValueError(
            f"{op}: expected y of shape (n,) or (n, k), got the shape {array.shape}; give"
            " a value, or a row of values, for each row of X"
        )
    return array.reshape(len(array), -1)


def beside(rows: Any, y: Any) -> Any:
    """Returns the columns of y to put beside rows, a data frame with as many and other columns.

    Raises:
        ValueError: If there are none, too few or too many rows, or a name that rows have.
    """
    # Imported here: the module of the estimators says which version is needed.
    from sklearn.utils import assert_all_finite, check_consistent_length

    if y is None:
        raise ValueError(
            "fit: expected y, because conditional=True requires y to be passed, but the target y"
            " is None; pass what the density is conditioned on"
        )
    frame = target_frame("fit", y)
    check_consistent_length(rows, frame)
    assert_all_finite(frame.select_dtypes("number"), input_name="y")
    both = [name for name in frame.columns if name in {*map(plain_name, rows.columns)}]
    if both:
        raise ValueError(
            f"fit: expected columns of y that X doesn't have, got {listed(both)} in both; rename"
            " or leave out one of them"
        )
    return frame.set_axis(rows.index)


def conditioned(config: Config, frame: Any) -> Config:
    """Returns the configuration of a density given the columns of a frame.

    Their kinds are found in their values, as those of a table's columns, unless they are named.
    Texts are categories, also those that look like numbers.

    Raises:
        ValueError: If a column tells nothing of a row.
    """
    texts = [*frame.select_dtypes(exclude="number").columns]
    found = found_kinds(table_of(frame, texts=texts, name="y"))
    kinds = parse_columns(config.data.columns or "")
    for name, kind in found.items():
        if name not in kinds and kind not in KINDS:
            raise ValueError(
                f"fit: expected y that tells something of a row, got {name} ({kind}); leave it"
                f" out, or name its kind with options={{'columns': {f'continuous,{name}=...'!r}}}"
            )
        kinds.setdefault(name, kind)
    return config.replaced(columns=kinds, condition=names_text([*found]))


def given_rows(op: str, conditions: Conditions | None, y: Any, rows: Any) -> Any:
    """Returns what rows are given, a data frame, or None of a density without conditions."""
    from sklearn.utils import check_consistent_length

    _check_presence(op, conditions, y)
    if conditions is None:
        return None
    frame = target_frame(op, y, conditions.names)
    check_consistent_length(rows, frame)
    return frame


def given_samples(op: str, conditions: Conditions | None, y: Any, count: int) -> Any:
    """Returns what samples are given: a row for each, or a mapping of values for all."""
    _check_presence(op, conditions, y)
    if conditions is None or isinstance(y, Mapping):
        return y
    names = conditions.names
    if np.ndim(y) == 0 and not is_frame(y):
        if len(names) > 1:
            raise ValueError(
                f"{op}: expected y with {listed(names)}, got {in_words(y)}; pass a mapping of"
                " these names to values, or a row for each sample"
            )
        return dict.fromkeys(names, y)
    frame = target_frame(op, y, names)
    if len(frame) != count:
        raise ValueError(
            f"{op}: expected y with a row for each of n_samples={count}, or one value for all, got"
            f" {len(frame)} rows; pass n_samples={len(frame)}"
        )
    return frame


def _check_presence(op: str, conditions: Conditions | None, y: Any) -> None:
    if conditions is None and y is not None:
        raise ValueError(
            f"{op}: expected no y, because the density was fitted without one, got a"
            f" {type(y).__name__}; leave it out, or fit with conditional=True"
        )
    if conditions is not None and y is None:
        raise ValueError(
            f"{op}: expected y, because the density is conditioned on {conditions.describe()};"
            " pass it"
        )
