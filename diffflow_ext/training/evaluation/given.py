"""What samples and rows are conditioned on, as a run stores it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data.conditions import LABEL, Conditions
from diffflow_ext.data.formats.columns import listed, plain_name
from diffflow_ext.data.formats.tables import Table, array_of
from diffflow_ext.functional.checks import in_words

from .scoring import table_with


def parse_given(text: str) -> dict[str, str]:
    """Returns the values in a text such as "cut=Ideal,price=500", by name.

    Raises:
        ValueError: If a part has another form, or a name occurs twice.
    """
    found = dict[str, str]()
    for part in [part for row in csv.reader([text], skipinitialspace=True) for part in row]:
        name, equals, value = part.partition("=")
        if not equals or name.strip() in found:
            raise ValueError(
                f"given={text!r}: expected one value for each name, such as cut=Ideal,price=500"
            )
        found[name.strip()] = value.strip()
    return found


def stored_conditions(
    op: str, conditions: Conditions | None, given: Any, count: int
) -> Tensor | None:
    """Returns the conditions of samples as `Dataset.given` has them; None for a run without.

    Arguments:
        op: The function that errors name.
        conditions: What the run is conditioned on.
        given: A mapping of each name to the value of all samples; or of a table a data frame, an
            array of numbers or a `Table` with a row for each sample, of images the classes.
        count: The number of samples.

    Raises:
        TypeError: If a value isn't a number where the run has numbers.
        ValueError: If it's missing or not taken, or a name, value or number of rows is wrong.
    """
    if conditions is None:
        if given is not None:
            raise ValueError(
                f"{op}: expected no given, because the run has no condition, got"
                f" {in_words(given)}; leave it out"
            )
        return None
    if given is None:
        raise ValueError(
            f"{op}: expected given, because the run is conditioned on {conditions.describe()};"
            f" pass given={{{conditions.names[0]!r}: ...}} or a row for each sample (--given"
            f" {conditions.names[0]}=...)"
        )
    if isinstance(given, Mapping):
        given = {plain_name(name): value for name, value in given.items()}
        _check_names(op, conditions, given)
        one = _of_values(op, conditions, given)
        return one.expand(count, *one.shape[1:])
    stored = _of_rows(op, conditions, given)
    if len(stored) != count:
        raise ValueError(
            f"{op}: expected given with {count} rows, one for each sample, got {len(stored)}"
        )
    return stored


def _check_names(op: str, conditions: Conditions, given: Mapping[str, Any]) -> None:
    missing = [name for name in conditions.names if name not in given]
    unknown = [name for name in given if name not in conditions.names]
    if missing or unknown:
        problem = f"has no {listed([*map(repr, missing)])}" if missing else f"has {unknown[0]!r}"
        raise ValueError(
            f"{op}: expected given with {listed(conditions.names)}, got one that {problem}; the"
            f" run is conditioned on {conditions.describe()}"
        )


def _of_values(op: str, conditions: Conditions, given: Mapping[str, Any]) -> Tensor:
    """Returns one row of values."""
    if conditions.encoding is None:
        return _classes(op, conditions, np.array([_number(op, LABEL, given[LABEL])]))
    values, categories = np.zeros((1, len(conditions.names))), dict[str, tuple[str, ...]]()
    for i, column in enumerate(conditions.columns):
        value = given[column.name]
        if column.is_text:
            categories[column.name] = ("" if value is None else str(value),)
        else:
            values[0, i] = _number(op, column.name, value)
    table = Table(values, list(conditions.names), "given", categories=categories)
    return conditions.encoding.stored(table, op)


def _number(op: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{op}: expected a number for {name!r} in given, got {in_words(value)}"
        ) from None


def _of_rows(op: str, conditions: Conditions, given: Any) -> Tensor:
    encoding = conditions.encoding
    if encoding is None:
        return _classes(op, conditions, array_of(given))
    return encoding.stored(table_with(encoding, given, op, "given"), op)


def _classes(op: str, conditions: Conditions, values: Any) -> Tensor:
    if values.dtype.kind not in "iuf" or values.ndim != 1:
        raise ValueError(
            f"{op}: expected given as classes of shape (n,), got {values.dtype} of shape"
            f" {values.shape}"
        )
    wrong = ~((values >= 0) & (values < conditions.num_classes) & (values == np.rint(values)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{op}: expected classes from 0 to {conditions.num_classes - 1} in given, got"
            f" {values[row]:.10g} in row {row} (counted from 0)"
        )
    return torch.from_numpy(values.astype(np.int64))
