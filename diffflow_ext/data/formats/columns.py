"""Columns of tables: those left out, the kinds of the others, and what is doubtful in them."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .reading import Refused

Values = NDArray[np.float64]
#: The different texts of columns, by name.
Categories = Mapping[str, tuple[str, ...]]
ALL = "*"  # stands for all columns that are not named
SHOWN = 8  # names in a text
SAMPLE = 10_000  # rows, evenly spaced, that are enough to exclude a kind
MOST_COLUMNS = 512  # beyond, the linear relations of columns take too long
FEW = 100  # values of a column at most, each ten times or more
REPEATED = 10
ATOM = 0.05  # of the rows
DEPENDENT = 1e-6  # deviations; what float32 resolves
SQUEEZED = 1e-3  # deviations
EXACT = 2.0**53  # float64 holds all whole numbers up to it
# In ranges of all other values. Good data have values beyond the first: in one row the largest of
# heavy tails, in most rows a usual one; but none of nines, as -9999, 999.9 and -999.25 are.
FAR, FAR_ALONE = 10.0, 1e4
_NINES = re.compile(r"9+(\.9+|\.25)?")

#: What a user may do about missing values, for messages.
MASK = "learn which values are missing with --missing=mask (in Python missing='mask')"
_UNBOUNDED = "a density has no bound there, so the likelihood means nothing"
_DOUBTS = {
    "rows": ("that count the rows", "probably an index"),
    "two": ("with two values", _UNBOUNDED),
    "few": ("with few values, each many times,", _UNBOUNDED),
    "copy": ("that are copies of others, up to unit and sign,", _UNBOUNDED),
    "linear": ("that are weighted sums of others", _UNBOUNDED),
}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers and texts.

    Attributes:
        values: float64 values, shape (n, d), finite, or NaN where one is missing; of a column of
            texts indices into `categories`.
        columns: The d column names.
        source: The origin of the table, for messages and records.
        notes: What else the file has, and was left out.
        doubts: What may have been meant otherwise.
        categories: The different texts of each column of texts, by its name.
        dtypes: The types that columns have in a data frame, by name.
    """

    values: Values
    columns: list[str]
    source: str
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    categories: Categories = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def of_columns(self, positions: Sequence[int]) -> Table:
        """Returns the table with some of its columns."""
        columns = [self.columns[i] for i in positions]
        return replace(self, values=self.values[:, positions], columns=columns)


def plain_name(name: object) -> str:
    """Returns the name of a column without the spaces at its ends, which no name has."""
    return str(name).strip()


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """Returns the first names with commas, and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def how_to_leave_out(names: Sequence[str]) -> str:
    """Returns the words with which a user leaves columns out, for messages."""
    text = names_text(names)
    what = "the column" if len(names) == 1 else "the columns"
    flag = f"--drop-columns={shlex.quote(text)}"
    return f"leave {what} out with {flag} (in Python drop_columns={text!r})"


def names_text(names: Sequence[str]) -> str:
    """Returns the text from which `parse_names` gets the names."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(names)
    return stream.getvalue()


def parse_names(names: str | Sequence[str]) -> list[str]:
    """Returns the names in a text, separated by commas as in CSV; of a sequence its items."""
    if not isinstance(names, str):
        return [*map(plain_name, names)]
    try:
        rows = list(csv.reader([names], skipinitialspace=True))
    except csv.Error as error:
        raise Refused(
            f"read_table: expected names of columns with commas between them, got {names!r:.60}"
            f" ({error}); quote a name with a line break, as in CSV, or rename the column"
        ) from None
    return [plain_name(name) for row in rows for name in row]


def in_order(codes: Values, texts: Sequence[str]) -> tuple[Values, tuple[str, ...]]:
    """Returns indices into texts that are in alphabetical order, and these."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    place = np.empty(len(texts))
    place[order] = np.arange(len(texts))
    return place[codes.astype(np.int64)], tuple(texts[i] for i in order)


@dataclass(frozen=True)
class Selection:
    """Which columns of a table are read.

    Attributes:
        dropped: The names of those to leave out.
        wanted: The names of those to read, in this order; None for all that are not dropped.
        texts: The names of those whose values are texts, whatever they look like.
        numbers: The names of those whose values are numbers, also with leading zeros; `ALL` for
            all that have no words. Those that are `wanted` have numbers whatever they look like.
        gaps: Whether numbers may be missing; they are NaN then.
    """

    dropped: tuple[str, ...] = ()
    wanted: tuple[str, ...] | None = None
    texts: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    gaps: bool = False

    def without(self, names: Sequence[str]) -> Selection:
        """Returns a selection that leaves more columns out."""
        return replace(self, dropped=(*self.dropped, *names))

    def positions(self, names: Sequence[str], source: str, *, named: bool = True) -> list[int]:
        """Returns the positions of the columns; `named` tells whether the file has the names.

        Columns without names are taken by their order, if those that are not dropped are as many
        as are wanted.

        Raises:
            ValueError: If a name occurs twice, a column that is named here does not exist, or none
                is left.
        """
        as_written, names = names, [*map(plain_name, names)]
        # Runs of earlier versions may have names as they were in a frame.
        wanted = None if self.wanted is None else [*map(plain_name, self.wanted)]
        counts = Counter(names if wanted is None else (n for n in names if n in wanted))
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            spaced = ", but for spaces" if {*as_written} - {*names} else ""
            raise Refused(
                f"read_table: expected columns with different names, {source!r} has two or more "
                f"called {listed([*map(repr, twice)])}{spaced}; give each a name of its own"
            )
        if wanted is not None:
            if named:
                return self._by_name(wanted, names, source)
            return self._in_order(wanted, names, source)
        unknown = [name for name in self.dropped if name not in names]
        if unknown:
            raise Refused(
                f"read_table: expected drop_columns of {source!r}, got {unknown[0]!r}; its "
                f"columns are {listed(names)}"
            )
        kept = [i for i, name in enumerate(names) if name not in self.dropped]
        if not kept:
            raise Refused(
                f"read_table: expected a column that is not left out, {source!r} has only "
                f"{listed(names)}; shorten drop_columns"
            )
        return kept

    def _by_name(self, wanted: Sequence[str], names: Sequence[str], source: str) -> list[int]:
        places = {name: i for i, name in enumerate(names)}
        missing = [name for name in wanted if name not in places]
        if missing:
            raise Refused(
                f"read_table: expected the columns {listed(wanted)} in {source!r}, which has no "
                f"{listed([*map(repr, missing)])}; its columns are {listed(names)}: name them so"
            )
        return [places[name] for name in wanted]

    def _in_order(self, wanted: Sequence[str], names: Sequence[str], source: str) -> list[int]:
        kept = [i for i, name in enumerate(names) if name not in self.dropped]
        if len(kept) != len(wanted):
            raise Refused(
                f"read_table: expected the {len(wanted)} columns {listed(wanted)} in {source!r}, "
                f"which names none and has {len(names)}; name them in a first line, or write "
                "those alone in this order"
            )
        return kept


def column_kinds(values: Values) -> list[str]:
    """Returns what the values of each column are like, as a word; `values` has shape (n, d).

    It is "rows" if they count the rows, "two" or "few" if there are so many different ones,
    "whole", "copy" or "linear" if columns before it determine it, and else "number".
    """
    kinds = [column_kind(column) for column in values.T]
    for i, kind in _dependent(values).items():
        kinds[i] = kind
    return kinds


def column_kind(column: Values) -> str:
    """Returns what the values of a column are like: rows, two, few, whole or number."""
    n = len(column)
    # Larger numbers are all whole.
    whole = bool((column == np.rint(column)).all() and (np.abs(column) < EXACT).all())
    if whole and n > 2 and bool((np.diff(column) == 1.0).all()):
        return "rows"
    if len(np.unique(_sample(column))) <= FEW:
        count = len(np.unique(column))
        if count == 2:
            return "two"
        if count <= FEW and count * REPEATED <= n:
            return "few"
    return "whole" if whole else "number"


def _sample(values: Values) -> Values:
    return values[:: -(-len(values) // SAMPLE)]


def _dependent(values: Values) -> dict[int, str]:
    """Returns the columns that the ones before them determine, by linear regression."""
    rows = _sample(values)
    n, d = rows.shape
    if d == 1 or d > MOST_COLUMNS or n <= 2 * d:
        return {}
    # Columns may have any unit.
    rows = rows / np.maximum(np.abs(rows).max(axis=0), np.finfo(float).tiny)
    rows = rows - rows.mean(axis=0)
    spread = rows.std(axis=0)
    spread[spread == 0.0] = 1.0
    rows = rows / spread
    # The diagonal is the part of each column that is orthogonal to those before it.
    residual = np.abs(np.diagonal(np.linalg.qr(rows, mode="r"))) / np.sqrt(n)
    found = {}
    for i in np.flatnonzero(residual < DEPENDENT).tolist():
        if i > 0 and rows[:, i].any():
            correlations = np.abs(rows[:, :i].T @ rows[:, i]) / n
            found[i] = "copy" if correlations.max() > 1.0 - DEPENDENT**2 / 2 - 1e-12 else "linear"
    return found


def column_doubts(values: Values, names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Returns a warning for each kind of column of which a density is probably not intended.

    `kinds` are those of `column_kinds`, or "integer", "heavy" and "positive" of such columns.
    """
    texts = []
    for kind, (which, why) in _DOUBTS.items():
        own = [name for name, its in zip(names, kinds, strict=True) if its == kind]
        if own:
            texts.append(f"columns {which} ({listed(own)}): {why}; {how_to_leave_out(own)}")
    ends = _far_values(values)
    if ends:
        parts = [f"{value:.6g} in {n} row{'s' * (n > 1)} of {names[i]}" for i, value, n in ends]
        texts.append(
            f"values that lie far from all others of their columns ({listed(parts)}); if they "
            "mark missing values or are wrong, delete those rows"
        )
    sample = _sample(values)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.quantile(sample, [0.05, 0.95], axis=0)
        std = values.std(axis=0)
        squeezed = (high > low) & (high - low < SQUEEZED * std)
    squeezed[[i for i, *_ in ends]] = False  # One warning is enough.
    squeezed &= np.array([kind not in ("integer", "heavy", "positive") for kind in kinds])
    for i in np.flatnonzero(squeezed)[:SHOWN].tolist():
        far = values[np.argmax(np.abs(values[:, i] - np.median(sample[:, i]))), i]
        texts.append(
            f"nine tenths of the column {names[i]} lie within {SQUEEZED:g} of its deviation "
            f"{std[i]:.3g}, because of values such as {far:.6g}, and cannot be told apart once "
            "it is standardised; mend or delete such rows"
        )
    return texts


def repeated_values(values: Values, names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Returns a warning of single values that many rows have among different others."""
    found = []
    for i, column in enumerate(_sample(values).T):
        if kinds[i] not in ("number", "heavy", "positive"):
            continue
        value, counts = np.unique(column[~np.isnan(column)], return_counts=True)
        most = int(counts.argmax())
        share = counts[most] / len(column)
        if share > ATOM and counts[most] >= REPEATED:
            found.append(f"{value[most]:.6g} in {100.0 * share:.0f} % of {names[i]}")
    if not found:
        return []
    return [
        f"values that many rows have among different others ({listed(found)}): {_UNBOUNDED}; if "
        "they mark missing values, delete those rows; or round the others and name the column "
        "integer"
    ]


def _far_values(values: Values) -> list[tuple[int, float, int]]:
    """Returns (column, value, rows) of smallest or largest values that lie far from the rest."""
    found = []
    sample, low, high = _sample(values), values.min(axis=0).tolist(), values.max(axis=0).tolist()
    for i in range(len(low)):
        for end, other in ((low[i], high[i]), (high[i], low[i])):
            # The range of a sample is no larger, so few columns are looked at in full.
            if _distance(end, other, sample[:, i]) <= FAR:
                continue
            distance, rows = _distance(end, other, values[:, i]), int((values[:, i] == end).sum())
            is_fill = 1 < rows <= len(values) // 2 or _NINES.fullmatch(f"{abs(end):.10g}")
            if (FAR if is_fill else FAR_ALONE) < distance < math.inf:
                found.append((i, end, rows))
    return found


def _distance(end: float, other: float, column: Values) -> float:
    """Returns how far one end of a column lies from all other values, in ranges of these."""
    rest = column[column != end]
    if not len(rest):
        return math.inf
    near = float(rest.min() if end < other else rest.max())
    return abs(near - end) / abs(near - other) if near != other else math.inf


def beyond_float(values: Values) -> list[int]:
    """Returns the columns with numbers so large that float64 does not hold all whole ones."""
    if max(values.max(), -values.min()) < EXACT:  # faster than by column
        return []
    large = (values.max(axis=0) >= EXACT) | (values.min(axis=0) <= -EXACT)
    return np.flatnonzero(large).tolist()


def rounding_doubts(names: Sequence[str]) -> list[str]:
    """Returns a warning for columns of whole numbers that were rounded, if there are any."""
    if not names:
        return []
    return [
        f"whole numbers beyond 2^53 ({listed(names)}) were rounded to float64; "
        f"subtract a constant from them, or {how_to_leave_out(names)}"
    ]
