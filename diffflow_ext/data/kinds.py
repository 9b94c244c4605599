"""What kind each column of a table is: found from its values, or said by the user.

A column of texts or truth values is a category. One of numbers is a category too if it has two
values, or few and each often; it is an integer if its values are whole, or are often the same and
lie on a grid; it has heavy tails if a few values make most of its deviation. All others are
continuous. Columns that count the rows, do not vary, or have another text in every other row tell
nothing of a row and are left out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from .column import KINDS, Column, in_decimals, rounding_of
from .formats.columns import (
    ALL,
    Values,
    column_kind,
    how_to_leave_out,
    listed,
    names_text,
    plain_name,
)
from .formats.reading import Refused
from .formats.tables import Table

DROP = "drop"
MOST_VALUES = 1000  # of a category
MOST_STEPS = 2.0**24  # of integers: float32 holds them
MOST_WHOLE = 2.0**53  # float64 holds all whole numbers up to it
DECIMALS = 6  # of a grid at most
EXACT = 1e-4  # steps, by which rounded numbers miss a grid
SURELY = 20.0  # minus the logarithm of the probability of a chance
#: Of a deviation over that of a normal with the same nine tenths.
HEAVY = 1.5
NINE_TENTHS = 3.2897072539029435  # deviations of a normal
HALF = 1.3489795003921634
#: Added to the count of each value, so that none has no share.
PRIOR_COUNT = 0.5


def parse_columns(text: str | Mapping[str, str]) -> dict[str, str]:
    """Returns the kind of each column, as a text such as "price=integer,cut=category" has it.

    A kind alone is that of all other columns, under the name `ALL`.

    Raises:
        ValueError: If a part has another form, or a column occurs twice.
    """
    if isinstance(text, Mapping):
        return {plain_name(name): parsed_kind(str(kind)) for name, kind in text.items()}
    found = dict[str, str]()
    for part in _parts(text):
        name, equals, kind = part.rpartition("=")
        name = name.strip() if equals else ALL
        if name in found:
            raise ValueError(f"columns={text!r}: expected one kind for {name!r}, got two")
        found[name] = parsed_kind(kind)
    return found


def columns_text(kinds: Mapping[str, str]) -> str:
    """Returns the text from which `parse_columns` gets the kind of each column."""
    return names_text([kind if name == ALL else f"{name}={kind}" for name, kind in kinds.items()])


def _parts(text: str) -> list[str]:
    try:
        rows = list(csv.reader([text], skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(
            f"columns={text!r}: expected kinds with commas between them ({error})"
        ) from None
    return [part for row in rows for part in row if part.strip()]


def parsed_kind(text: str) -> str:
    """Returns a kind as it is written: a key of `KINDS`, with two bounds if it has some, or drop.

    Raises:
        ValueError: If there is no such kind.
    """
    kind, *bounds = text.split() or [""]
    numbers = [number for number in map(_finite, bounds) if number is not None]
    if kind == "bounded" and len(numbers) == len(bounds) == 2 and numbers[0] < numbers[1]:
        return " ".join([kind, *bounds])
    if kind in KINDS and kind != "bounded" and not bounds:
        return kind
    if kind == DROP and not bounds:
        return kind
    raise ValueError(
        f"columns: expected a kind: continuous, heavy, positive, integer, category, drop, or "
        f"bounded LOW HIGH with two numbers, got {text!r}"
    )


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Chosen:
    """The columns of a table, and which are left out.

    Attributes:
        columns: The columns of a model.
        positions: Their positions in the table.
        notes: What was left out, and why.
    """

    columns: list[Column]
    positions: list[int]
    notes: list[str]


def choose_columns(table: Table, train: Any, wanted: Mapping[str, str]) -> Chosen:
    """Returns the columns of a table.

    Arguments:
        table: The table.
        train: The positions of its training rows, from which means and shares are taken.
        wanted: Kinds of some columns, by name, and of all others under `ALL`.

    Raises:
        ValueError: If there is no such column, none is left, or one can't be of its kind.
    """
    _check_names(table, wanted)
    found, left_out = list[tuple[int, str]](), dict[str, list[str]]()
    for i, (name, kind) in enumerate(found_kinds(table).items()):
        others = wanted.get(ALL)
        # A kind of all others is one of numbers.
        others = None if name in table.categories and others != DROP else others
        said = wanted.get(name, others)
        if said is None and kind not in KINDS:
            left_out.setdefault(kind, []).append(name)
        elif (said or kind) != DROP:
            found.append((i, said or kind))
    if not found:
        names = [name for names in left_out.values() for name in names]
        raise Refused(
            f"open_dataset: expected a column that varies, {table.source!r} has only "
            f"{listed([*map(repr, names)])}, which are left out; to keep them, name their kinds "
            "with --columns (in Python columns=)"
        )
    columns = [_column(table, i, kind, train) for i, kind in found]
    notes = [f"{listed(names)} ({reason})" for reason, names in left_out.items()]
    return Chosen(columns, [i for i, _ in found], notes)


def _check_names(table: Table, wanted: Mapping[str, str]) -> None:
    for name in wanted:
        if name != ALL and name not in table.columns:
            near = get_close_matches(name, table.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {listed(table.columns)}"
            raise Refused(
                f"open_dataset: expected columns of {table.source!r} in columns, got {name!r}; "
                f"{hint}"
            )


# --- what is found in values -----------------------------------------------------------------


def found_kinds(table: Table) -> dict[str, str]:
    """Returns the kind of each column, or why it is left out, by name."""
    kinds = map(column_kind, filled(table.values).T)
    pairs = enumerate(zip(table.columns, kinds, strict=True))
    return {name: _kind(table, i, name, kind) for i, (name, kind) in pairs}


def filled(values: Values) -> Values:
    """Returns numbers with the first present one of the column for missing ones."""
    absent = np.isnan(values)
    if not absent.any():
        return values
    first = values[np.argmin(absent, axis=0), np.arange(values.shape[1])]
    return np.where(absent, np.nan_to_num(first), values)


def _kind(table: Table, i: int, name: str, kind: str) -> str:
    values = table.values[:, i]
    present = values[~np.isnan(values)]
    if not len(present) or present.min() == present.max():
        return "one value alone"
    if name in table.categories:
        return _kind_of_texts(table.categories[name], len(values))
    if kind == "rows":
        return "counts the rows"
    if kind in ("two", "few") or table.dtypes.get(name, "").endswith("category"):
        return "category"
    if grid_step(present, dtype=table.dtypes.get(name, "")) is not None:
        return "integer"
    return "heavy" if _is_heavy(present) else "continuous"


def _kind_of_texts(texts: Sequence[str], rows: int) -> str:
    present, more = [text for text in texts if text], ""
    if all(text.isdigit() for text in present):
        more = f", codes such as {present[0]}; numbers if --columns says so"
    if len(texts) > rows / 2:
        return f"another text in most rows{more}"
    return f"{len(texts):,} different texts{more}" if len(texts) > MOST_VALUES else "category"


def grid_step(values: Values, *, surely: bool = False, dtype: str = "") -> float | None:
    """Returns the step of the grid on which numbers lie; None if they seem to be continuous.

    Numbers that are not whole must often be the same, unless it is known (`surely`) that they lie
    on one. Those of the type `dtype` float32 have been rounded to it: they must lie on a
    decimal grid so coarse that float32 would hardly do so by chance.
    """
    unique = np.unique(values)
    often = surely or 2 * len(unique) <= len(values)
    if rounding_of(dtype) > 0.0 and not _are_whole(unique):
        step = _step(in_decimals(unique, dtype), DECIMALS) if often else None
        return step if step is not None and _tells(unique, step) else None
    return _step(unique, DECIMALS if often else 0)


def _step(unique: Values, most_decimals: int) -> float | None:
    """Returns the step of the decimal grid on which different numbers in order lie, if any."""
    if len(unique) < 2:
        return None
    for decimals in range(most_decimals + 1):
        scaled = (unique - unique[0]) * 10.0**decimals
        whole = np.rint(scaled)
        if whole[-1] >= MOST_WHOLE:
            return None
        if bool((np.abs(scaled - whole) <= EXACT).all()) and bool((np.diff(whole) >= 1.0).all()):
            step = float(np.gcd.reduce(whole[1:].astype(np.int64)))
            return step / 10.0**decimals if whole[-1] / step < MOST_STEPS else None
    return None


def _are_whole(values: Values) -> bool:
    return bool((values == np.rint(values)).all())


def _tells(values: Values, step: float) -> bool:
    """Whether numbers of float32 on a decimal grid show that there is one.

    If the grid is no coarser than numbers of float32 lie apart, all are on it. Of those between
    two steps a share of (distance apart) / step is so by chance.
    """
    apart = np.spacing(np.maximum(np.abs(values), step).astype(np.float32)).astype(np.float64)
    return bool(apart.max() < step) and float(np.log(step / apart).sum()) > SURELY


def _is_heavy(values: Values) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.quantile(values, [0.05, 0.95])
        std = values.std()
        return bool(np.isfinite(std) and std * NINE_TENTHS > HEAVY * (high - low) > 0.0)


# --- the columns ------------------------------------------------------------------------------


def _column(table: Table, i: int, kind: str, train: Any) -> Column:
    """Returns a column of a kind."""
    name, values = table.columns[i], table.values[:, i]
    kind, *bounds = kind.split()
    own: dict[str, Any] = {"dtype": table.dtypes.get(name, "")}
    if name in table.categories or kind == "category":
        return _category(table, i, kind, train, own)
    if np.isnan(values).any():
        own |= _mask(values[train])
    present = values[~np.isnan(values)]
    if not len(present):
        raise Refused(
            f"open_dataset: expected values in the column {name!r} of {table.source!r}, all are "
            f"missing; {how_to_leave_out([name])}"
        )
    if kind == "bounded":
        own |= {"low": float(bounds[0]), "high": float(bounds[1])}
        _check_bounds(table, i, own["low"], own["high"])
    if kind == "positive":
        _check_bounds(table, i, 0.0, math.inf)
    if kind == "integer":
        own |= _grid(table, name, present)
    if kind == "heavy" or (kind == "integer" and _is_heavy(present)):
        own |= _spread(present)
    column = Column(name, kind, **own)
    return _standardised(column, values[train], table)


def _mask(train: Values) -> dict[str, Any]:
    count = np.isnan(train).sum() + PRIOR_COUNT
    share = float(count / (len(train) + 2 * PRIOR_COUNT))
    return {"missing": True, "shares": (1.0 - share, share)}


def _grid(table: Table, name: str, values: Values) -> dict[str, Any]:
    dtype = table.dtypes.get(name, "")
    step = grid_step(values, surely=True, dtype=dtype)
    if step is None:
        raise Refused(
            f"open_dataset: expected numbers on a grid in the column {name!r} of "
            f"{table.source!r}, which is to be integer; say continuous"
        )
    low, high = in_decimals(np.array([values.min(), values.max()]), dtype).tolist()
    return {"low": low, "high": high, "step": step}


def _spread(values: Values) -> dict[str, float]:
    """Returns the median, and the deviation of a normal with the same inner half."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    if not high > low:
        low, high = np.quantile(values, [0.05, 0.95])
    spread = (high - low) / HALF
    return {"center": float(middle), "spread": float(spread if spread > 0 else values.std())}


def _standardised(column: Column, train: Values, table: Table) -> Column:
    """Returns a column with the mean and the deviation of its coordinate in the training rows."""
    stored = column.stored(train)
    if column.kind == "integer":
        values = column.low + column.step * stored
        stored = np.arcsinh((values - column.center) / column.spread) if column.spread else values
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(np.nanmean(stored)), float(np.nanstd(stored))
    if not (0.0 < std < math.inf) or np.nanmin(stored) == np.nanmax(stored):
        raise ValueError(
            f"split_table: expected columns with a finite positive deviation in the training "
            f"split, not so {column.name!r} of {table.source!r}; rescale it, or "
            f"{how_to_leave_out([column.name])}"
        )
    ends = {"low": float(np.nanmin(train)), "high": float(np.nanmax(train))}
    ends = ends if column.kind in ("continuous", "heavy", "positive") else {}
    return replace(column, mean=mean, std=std, **ends)


def _check_bounds(table: Table, i: int, low: float, high: float) -> None:
    values = table.values[:, i]
    wrong = (values <= low) | (values >= high)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        expected = f"between the bounds {low:.10g} and {high:.10g}", "give wider ones"
        if high == math.inf:
            expected = "greater than 0", "mend or delete such rows, or say continuous"
        raise Refused(
            f"open_dataset: row {row} (counted from 0), column {table.columns[i]!r} of "
            f"{table.source!r}: expected a number {expected[0]}, got {values[row]:.10g}; "
            f"{expected[1]}"
        )


def _category(table: Table, i: int, kind: str, train: Any, own: dict[str, Any]) -> Column:
    """Returns a category with all values of the table, and shares of the training rows."""
    name, values = table.columns[i], table.values[:, i]
    if kind != "category":
        raise Refused(
            f"open_dataset: expected numbers in the column {name!r} of {table.source!r}, which is "
            f"to be {kind}, got texts; say category"
        )
    texts = table.categories.get(name)
    codes = values if texts is not None else np.unique(values, return_inverse=True)[1]
    known: Sequence[Any] = (
        texts or in_decimals(np.unique(values), table.dtypes.get(name, "")).tolist()
    )
    if not 2 <= len(known) <= MOST_VALUES:
        raise Refused(
            f"open_dataset: expected 2 to {MOST_VALUES:,} values of a category, the column "
            f"{name!r} of {table.source!r} has {len(known):,}; {how_to_leave_out([name])}"
        )
    counts = np.bincount(codes[train].astype(np.int64), minlength=len(known)) + PRIOR_COUNT
    missing = texts is None and bool(np.isnan(values).any())
    return Column(
        name, "category", values=tuple(known[:-1] if missing else known),
        shares=tuple((counts / counts.sum()).tolist()), missing=missing, **own,
    )  # fmt: skip
