"""What samples and rows are conditioned on, as a run stores it."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data.column import Column
from diffflow_ext.data.conditions import LABEL, Conditions
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import Values, listed, plain_name
from diffflow_ext.data.formats.frames import is_frame
from diffflow_ext.data.formats.tables import Table, array_of
from diffflow_ext.functional.checks import in_words

from .scoring import table_with


def parse_given(text: str) -> dict[str, str]:
    """Returns the values in a text such as "cut=Ideal,price=500", by name.

    Raises:
        ValueError: If a part has another form, or a name occurs twice.
    """
    found = dict[str, str]()
    try:
        rows = list(csv.reader([text], skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(
            f"given={text!r}: expected one line of values with commas between them ({error})"
        ) from None
    for part in [part for row in rows for part in row]:
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
            array of numbers or a `Table` with a row for each sample, of images the classes, by
            numbers or names.
        count: The number of samples.

    Warns:
        UserWarning: If numbers lie far outside of those of training.

    Raises:
        TypeError: If a value isn't a number where the run has numbers.
        ValueError: If it's missing or not taken, or a name, value or number of rows is wrong.
    """
    if conditions is None or conditions.masks is not None:
        if given is not None:
            has = "no condition" if conditions is None else "the density of whole rows"
            raise ValueError(
                f"{op}: expected no given, because the run has {has}, got"
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
        _check_names(op, conditions, given)
    if conditions.encoding is None:
        stored = _classes(op, conditions, _class_values(op, conditions, given))
    else:
        table = _table(op, conditions.encoding, given)
        stored = conditions.encoding.stored(table, op)
        warn_of_far(op, conditions.columns, table.values)
    if isinstance(given, Mapping):
        return stored.expand(count, *stored.shape[1:])
    if len(stored) != count:
        raise ValueError(
            f"{op}: expected given with {count} rows, one for each sample, got {len(stored)}"
        )
    return stored


def condition_values(conditions: Conditions, given: Any, count: int) -> Tensor:
    """Returns the values of conditions of a table as they were given, float64, shape (n, columns).

    Those of text columns are indices, as `Encoding.decoded` has them. What a run stores of numbers
    is rounded to float32.

    Arguments:
        conditions: What the run is conditioned on.
        given: As for `stored_conditions`, which has taken it.
        count: The number n of samples.
    """
    assert conditions.encoding is not None
    table = _table("sample", conditions.encoding, given)
    stored = conditions.encoding.stored(table, "sample").double()
    texts = torch.tensor([column.is_text for column in conditions.columns])
    return torch.where(texts, stored, torch.from_numpy(table.values)).expand(count, -1)


def warn_of_far(op: str, columns: Sequence[Column], values: Values) -> None:
    """Warns of numbers far outside of those of training, one warning for each column."""
    for i, column in enumerate(columns):
        far = values[column.is_far(values[:, i]), i]
        if not len(far):
            continue
        worst = float(far[np.argmax(np.abs(far - 0.5 * (column.low + column.high)))])
        more = f" and {len(far) - 1:,} more such values" if len(far) > 1 else ""
        warnings.warn(
            f"{op}: {column.name}={worst:.10g}{more}: far outside of the values of training,"
            f" {column.span}, where the model knows nothing",
            stacklevel=4,
        )


def _check_names(op: str, conditions: Conditions, given: Mapping[str, Any]) -> None:
    names = [plain_name(name) for name in given]
    missing = [name for name in conditions.names if name not in names]
    unknown = [name for name in names if name not in conditions.names]
    if missing or unknown:
        problem = f"has no {listed([*map(repr, missing)])}" if missing else f"has {unknown[0]!r}"
        raise ValueError(
            f"{op}: expected given with {listed(conditions.names)}, got one that {problem}; the"
            f" run is conditioned on {conditions.describe()}"
        )


def _class_values(op: str, conditions: Conditions, given: Any) -> Any:
    if not isinstance(given, Mapping):
        return array_of(given)
    (value,) = given.values()
    if isinstance(value, str):
        # Of names that are numbers themselves, a text of another number is none.
        classes = conditions.classes
        numbers = not classes or not all(name.isdigit() for name in classes)
        return _named(op, conditions, [value], numbers=numbers)
    return np.array([_number(op, LABEL, value)])


def _table(op: str, encoding: Encoding, given: Any) -> Table:
    """Returns the conditions as a table, of one row if they are a mapping."""
    if isinstance(given, Mapping):
        return table_of_values(encoding, given, op)
    if encoding.texts and not (is_frame(given) or isinstance(given, Table)) and _has_texts(given):
        given = _column_of_texts(op, encoding, given)
    return table_with(encoding, given, op, "given")


def _has_texts(given: Any) -> bool:
    """Whether there is a text among values of any shape."""
    return any(isinstance(value, str) for value in np.asarray(given, dtype=object).flat)


def _column_of_texts(op: str, encoding: Encoding, given: Any) -> Any:
    """Returns a list of texts, one for each sample, as a data frame of the only condition."""
    import pandas

    if len(encoding.columns) > 1 or isinstance(given, str) or np.ndim(given) != 1:
        name = encoding.names[0]
        raise TypeError(
            f"{op}: expected texts in {listed(encoding.texts)}, got {in_words(given)}; pass a"
            f" mapping such as {{{name!r}: ...}}, or a data frame with a row for each sample"
        )
    return pandas.DataFrame({encoding.names[0]: [*given]})


def table_of_values(
    encoding: Encoding, given: Mapping[str, Any], op: str, name: str = "given"
) -> Table:
    """Returns a row of values by their names; those that are not there are missing."""
    given = {plain_name(key): value for key, value in given.items()}
    unknown = [key for key in given if key not in encoding.names]
    if unknown:
        raise ValueError(
            f"{op}: expected {name} with some of {listed(encoding.names)}, got one that has"
            f" {unknown[0]!r}"
        )
    values = np.full((1, len(encoding.columns)), np.nan)
    categories = dict[str, tuple[str, ...]]()
    for i, column in enumerate(encoding.columns):
        value = given.get(column.name)
        if value is not None and np.ndim(value):
            raise TypeError(
                f"{op}: {column.name}: expected one value in a mapping, which all samples have,"
                f" got {in_words(value)}; pass a data frame with a row for each sample"
            )
        if column.is_text:
            values[0, i] = 0
            absent = value is None or (isinstance(value, float) and math.isnan(value))
            categories[column.name] = ("" if absent else str(value),)
        elif column.name in given:
            values[0, i] = _number(op, column.name, value)
    return Table(values, [*encoding.names], name, categories=categories)


def array_as_images(op: str, given: Any, event_shape: tuple[int, ...]) -> Tensor:
    """Returns numbers as images, float32 of shape (n, C, H, W).

    Arguments:
        op: The function that errors name.
        given: An array or a tensor of one image or several, with the channels before or after
            height and width; grey images may have no axis of channels.
        event_shape: (C, H, W).

    Raises:
        TypeError: If they are no numbers.
        ValueError: If their shape is another one.
    """
    values = array_of(given)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{op}: expected images of numbers, got {in_words(given)}")
    images = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    channels, height, width = event_shape
    shape, last = tuple(images.shape), (height, width, channels)
    if channels == 1 and shape[-2:] == (height, width) and images.dim() in (2, 3):
        images = images.reshape(-1, *event_shape)
    elif images.dim() in (3, 4) and shape[-3:] == event_shape:
        images = images.reshape(-1, *event_shape)
    elif images.dim() in (3, 4) and shape[-3:] == last:
        images = images.reshape(-1, *last).movedim(-1, 1)
    if tuple(images.shape[1:]) != event_shape or not len(images):
        wanted = ", ".join(map(str, event_shape))
        raise ValueError(
            f"{op}: expected images of shape ({wanted}) or (n, {wanted}) as in the run, n at"
            f" least 1, got {shape}"
        )
    return images


def _number(op: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{op}: expected a number for {name!r} in given, got {in_words(value)}"
        ) from None


def _classes(op: str, conditions: Conditions, values: Any) -> Tensor:
    if values.dtype.kind in "UO" and values.ndim == 1:
        # Folders that are called by numbers are no names of a run that has other ones.
        values = _named(op, conditions, values, numbers=not conditions.classes)
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


def _named(op: str, conditions: Conditions, texts: Any, *, numbers: bool) -> Any:
    """Returns the classes of names, and perhaps of texts of numbers that no class is called by."""
    index, classes = {name: i for i, name in enumerate(conditions.classes)}, list[float]()
    for row, text in enumerate(texts):
        try:
            known = text in index or (isinstance(text, str) and not numbers)
            classes.append(index[text] if known else float(text))
        except (LookupError, TypeError, ValueError):
            unseen = sorted({str(text) for text in texts} - {*index})
            own = listed(conditions.classes) or f"0 to {conditions.num_classes - 1}"
            raise ValueError(
                f"{op}: expected classes of the run in given, {own}, got {listed(unseen)}, in"
                f" row {row} (counted from 0)"
            ) from None
    return np.array(classes)
