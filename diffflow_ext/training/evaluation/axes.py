"""Columns of a run as axes of figures: their values, scales, and names of categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from diffflow_ext.data.column import Column
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import listed, parse_names, plain_name
from diffflow_ext.figures.axes import Axis

#: What stands for a missing value of a category.
MISSING = "missing"
Columns = str | Sequence[str] | None


def chosen(op: str, encoding: Encoding, columns: Columns, count: int | None = None) -> list[int]:
    """Returns the positions of the columns that are named; of all if None.

    Of so many out of them the first ones with numbers, which a picture shows best.

    Arguments:
        op: The function that errors name.
        encoding: The columns there are.
        columns: Names, or a text of names with commas between them; None for no choice.
        count: How many there must be; None for any number.

    Raises:
        ValueError: If a name is not one of them, occurs twice, or they are not so many.
    """
    if columns is None:
        texts = [column.kind == "category" for column in encoding.columns]
        order = sorted(range(len(texts)), key=texts.__getitem__) if count else range(len(texts))
        return sorted([*order][:count])
    names, known = parse_names(columns), [*map(plain_name, encoding.names)]
    wrong = [name for name in names if name not in known]
    expected = "names" if count is None else f"{count} names"
    if wrong or len({*names}) < len(names) or len(names) != (count or max(len(names), 1)):
        raise ValueError(
            f"{op}: columns: expected {expected} out of {listed(known, 40)}, each once, got"
            f" {listed([*map(repr, names)]) or 'none'}"
        )
    return [known.index(name) for name in names]


def sample_axes(encoding: Encoding, picks: Sequence[int]) -> list[Axis]:
    """Returns the axes of columns in the units of the data."""
    return [_axis(encoding.columns[i]) for i in picks]


def sample_values(encoding: Encoding, x: Tensor, picks: Sequence[int]) -> np.ndarray:
    """Returns values on those axes, shape (n, picks): of categories numbers, of a gap NaN.

    Arguments:
        encoding: The columns.
        x: Inputs or samples of a model, shape (n, dim).
        picks: The positions of columns.
    """
    values = encoding.decoded(x)[:, list(picks)].numpy()
    for place, i in enumerate(picks):
        column = encoding.columns[i]
        if column.kind == "category" and not column.is_text:
            values[:, place] = np.searchsorted(np.array(column.values), values[:, place])
    return values


def state_axes(encoding: Encoding, picks: Sequence[int]) -> list[Axis]:
    """Returns the axes of columns for states between data and noise.

    They are even in the coordinate of the model. So one of a category is that coordinate, whose
    cells are the categories.
    """
    return [_axis(encoding.columns[i], states=True) for i in picks]


def state_values(encoding: Encoding, states: Tensor, picks: Sequence[int]) -> np.ndarray:
    """Returns values on those axes, shape (N + 1, B', picks).

    Each column is decoded alone, without rounding. Particles whose value is missing in the data,
    or in the sample, have none and are left out, as are those with a value that is too large for
    a number, so that B' <= B.

    Arguments:
        encoding: The columns.
        states: States of a process, the first at the data, shape (N + 1, B, dim).
        picks: The positions of columns.
    """
    gaps = [place for place, i in enumerate(picks) if i in encoding.masked]
    absent = np.isnan(sample_values(encoding, states[0], picks)[:, gaps]).any(axis=1)
    rows = states.double()[:, torch.from_numpy(~absent)]
    columns = [encoding.columns[i].unrounded(rows[..., i]).numpy() for i in picks]
    values = np.stack(columns, axis=-1)
    return values[:, np.isfinite(values).all(axis=(0, 2))]


def drawable(values: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """Returns the rows of values on axes, without those with a value too large for a number."""
    gaps = np.isnan(values) & np.array([axis.gaps for axis in axes])
    return values[(np.isfinite(values) | gaps).all(axis=1)]


def _axis(column: Column, *, states: bool = False) -> Axis:
    common: dict[str, Any] = {"name": column.name}
    if not states:
        common |= {"step": column.step, "gaps": column.missing}
    if column.kind == "category":
        return _of_category(column, states=states)
    if column.kind == "positive":
        return Axis(scale="log", **common)
    if column.kind == "bounded" and states:
        return Axis(scale="logit", low=column.low, high=column.high, **common)
    if column.spread:
        return Axis(scale="asinh", center=column.center, spread=column.spread, **common)
    return Axis(**common)


def _of_category(column: Column, *, states: bool) -> Axis:
    labels = [value if isinstance(value, str) else f"{value:.10g}" for value in column.values]
    labels = [label or MISSING for label in labels]
    labels += [MISSING] * (len(column.shares) - len(labels))
    if not states:
        return Axis(column.name, step=1.0, labels=tuple(labels))
    sums = np.cumsum(column.shares)
    edges = special.ndtri(sums[:-1] / sums[-1]).tolist()
    return Axis(column.name, "normal", labels=tuple(labels), edges=tuple(edges))
