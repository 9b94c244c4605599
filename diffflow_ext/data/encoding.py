r"""How rows of a table become inputs of a model, and samples become rows.

A column has one coordinate. With :math:`y` its value, :math:`u` uniform in (0, 1), and a mean
:math:`m` and a deviation :math:`\sigma` of the training split,

.. math::
    \text{continuous} \quad & x = (y - m) / \sigma \\
    \text{heavy} \quad & x = (\operatorname{asinh}((y - c) / s) - m) / \sigma \\
    \text{positive} \quad & x = (\log y - m) / \sigma \\
    \text{bounded} \quad & x = (\operatorname{logit}((y - a) / (b - a)) - m) / \sigma \\
    \text{integer} \quad & \text{as continuous or heavy, of } y + h (u - \tfrac12),
        \text{ h the step} \\
    \text{category} \quad & x = \Phi^{-1}(F_{k-1} + u P_k), \text{ of the k-th value}

with the distribution function :math:`\Phi` of a standard normal, and the share :math:`P_k` of the
k-th value and :math:`F_k = P_1 + \dots + P_k`. A column with missing values has a second
coordinate, the category present or missing, and where one is missing :math:`x \sim N(0, 1)`.

A density :math:`p_X` of the inputs gives rows the density, or the probability where a column is
discrete,

.. math:: \log p_Y(y) \geq \operatorname{E}_u [\log p_X(x) + w]

with a weight :math:`w`, the sum over coordinates of :math:`\log |dx/dy|`, to which an integer adds
:math:`\log h`; of :math:`\log P_k - \log \varphi(x)` for a category and
:math:`-\log \varphi(x)` for a missing value, with the density :math:`\varphi` of a standard
normal. Without discrete columns and missing values it is an equality and has no noise.

Dequantisation is that of Theis et al. (2016, arXiv 1511.01844) and of Ho et al. (2019, arXiv
1902.00275), for a category in the coordinate that makes it a standard normal (the distributional
transform, Rueschendorf 2009): where all columns are independent categories and the model is
exact, the bound is the log-probability itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .column import Column, cell_normal, cell_of, cell_weight, rounding_of, shown
from .formats.cells import is_truth
from .formats.columns import Values, listed
from .formats.reading import Refused
from .formats.tables import Table

MAX_DEVIATIONS = 1e12  # of any sound value; float32 and the fingerprint hold it
ON_GRID = 1e-3  # steps
#: What truth values are written as, in lower case.
TRUTH = {"false": 0.0, "true": 1.0, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


@dataclass(frozen=True)
class Encoding:
    """The columns of a table and their coordinates.

    False and true are the same as 0 and 1 in a column that has these alone: they may be truth
    values of a data frame, numbers, or texts of any case of letters.

    Attributes:
        columns: The columns, in the order of the first coordinates; those with missing values
            have another one after these.
    """

    columns: tuple[Column, ...]

    def __repr__(self) -> str:
        return f"Encoding({listed([f'{c.name}: {c.kind_in_words}' for c in self.columns])})"

    @classmethod
    def linear(cls, names: Sequence[str], mean: Any, std: Any) -> Encoding:
        """Returns that of continuous columns."""
        numbers = zip(names, map(float, mean), map(float, std), strict=True)
        return cls(tuple(Column(name, "continuous", m, s) for name, m, s in numbers))

    @classmethod
    def from_meta(cls, columns: Sequence[Mapping[str, Any]]) -> Encoding:
        """Returns the encoding from the plain data of `to_meta`."""
        return cls(tuple(map(Column.from_meta, columns)))

    def to_meta(self) -> list[dict[str, Any]]:
        """Returns plain data for a manifest."""
        return [asdict(column) for column in self.columns]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def masked(self) -> tuple[int, ...]:
        """The positions of columns with a second coordinate."""
        return tuple(i for i, c in enumerate(self.columns) if c.missing and c.kind != "category")

    @cached_property
    def coordinates(self) -> tuple[str, ...]:
        """The names of the coordinates."""
        return self.names + tuple(f"{self.names[i]} missing" for i in self.masked)

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self.coordinates)

    @cached_property
    def is_random(self) -> bool:
        """Whether inputs have noise."""
        return any(column.is_discrete or column.missing for column in self.columns)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The names of columns of texts."""
        return tuple(column.name for column in self.columns if column.is_text)

    def stored(self, table: Table, op: str = "open_dataset", *, gaps: bool = False) -> Tensor:
        """Returns what is stored of rows, float32, shape (n, columns).

        Arguments:
            table: The rows, with these columns in this order.
            op: The function that errors name.
            gaps: Whether values of all columns may be missing; what is stored of them is NaN.

        Raises:
            ValueError: If a value is missing, not finite, of no known category, out of its
                bounds, between two steps, or further than 10^12 deviations away.
        """
        parts = list[Values]()
        for i, column in enumerate(self.columns):
            values, texts = table.values[:, i], table.categories.get(column.name)
            absent = np.isnan(values)
            if texts is not None:
                known = not gaps and column.is_text and "" in column.values
                absent = (values == texts.index("")) if "" in texts and not known else absent
            if column.is_text:
                stored = _translated(op, column, texts, values)
            elif texts is None or absent.all() or (column.is_binary and is_truth(texts)):
                numbers = values if texts is None else _truth_numbers(texts, values)
                stored = column.stored(np.where(absent, np.nan, numbers))
            else:
                raise Refused(
                    f"{op}: expected numbers in the column {column.name!r} of {table.source!r}, "
                    f"got texts such as {next(filter(None, texts))!r}; write numbers"
                )
            _check(op, table, i, column, stored, absent, gaps=gaps)
            parts.append(np.where(absent, np.nan, stored) if gaps else stored)
        return torch.from_numpy(np.stack(parts, axis=1).astype(np.float32))

    def inputs(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """Returns inputs of a model, float32, shape (n, dim).

        Arguments:
            stored: What `stored` returned, shape (n, columns).
            noise: Standard normals of shape (n, dim), whose distribution function is u; not used
                unless `is_random`.
        """
        if not self.is_random:
            return stored
        assert noise is not None
        rows, u = stored.double(), torch.special.ndtr(noise.double())
        parts = [column.input(rows[:, i], u[:, i]) for i, column in enumerate(self.columns)]
        for j, i in enumerate(self.masked, start=len(self.columns)):
            shares = self.columns[i].shares
            parts.append(cell_normal(shares, rows[:, i].isnan().long(), u[:, j]))
        return torch.stack(parts, dim=1).float()

    def log_weight(self, stored: Tensor, x: Tensor) -> Tensor:
        """Returns w of rows, float64, shape (n,), from what is stored of them and their inputs."""
        return self.log_weights(stored, x).sum(1)

    def log_weights(self, stored: Tensor, x: Tensor) -> Tensor:
        """Returns the parts of w by coordinate, float64, shape (n, dim)."""
        rows, x = stored.double(), x.double()
        parts = [column.log_weight(rows[:, i], x[:, i]) for i, column in enumerate(self.columns)]
        for j, i in enumerate(self.masked, start=len(self.columns)):
            parts.append(cell_weight(self.columns[i].shares, rows[:, i].isnan().long(), x[:, j]))
        return torch.stack(parts, dim=1)

    def decoded(self, x: Tensor) -> Tensor:
        """Returns values in the units of the data, float64 on the CPU, shape (n, columns).

        Missing values are NaN, values of text columns indices into `Column.values`. Integers
        beyond the smallest and largest of the data become these.
        """
        x = x.detach().cpu().double()
        parts = [column.decoded(x[:, i]) for i, column in enumerate(self.columns)]
        for j, i in enumerate(self.masked, start=len(self.columns)):
            absent = cell_of(self.columns[i].shares, x[:, j]) == 1
            parts[i] = torch.where(absent, math.nan, parts[i])
        return torch.stack(parts, dim=1)


def _translated(op: str, column: Column, own: Sequence[str] | None, values: Values) -> Values:
    """Returns the indices of a column's texts, given indices into another list of texts."""
    if own is None and not column.is_truth:
        raise Refused(
            f"{op}: expected texts in the column {column.name!r}, got numbers; give a data frame "
            "or a file with its texts"
        )
    keys = [TRUTH.get(str(v).lower(), v) if column.is_truth else v for v in column.values]
    places: dict[Any, float] = {key: float(i) for i, key in enumerate(keys)}
    if own is None:
        # NaN is a missing text.
        numbers = ["" if math.isnan(value) else value for value in values.tolist()]
        return np.array([places.get(number, -1.0) for number in numbers])
    texts = [TRUTH.get(text.lower(), text) if column.is_truth else text for text in own]
    return np.array([places.get(text, -1.0) for text in texts])[values.astype(np.int64)]


def _truth_numbers(texts: Sequence[str], values: Values) -> Values:
    """Returns 0 for false and 1 for true, NaN for a missing text, given indices into texts."""
    known = np.array([TRUTH.get(text.lower(), math.nan) for text in texts])
    return known[values.astype(np.int64)]


def _check(
    op: str,
    table: Table,
    i: int,
    column: Column,
    stored: NDArray[np.float64],
    absent: NDArray[np.bool_],
    *,
    gaps: bool,
) -> None:
    """Refuses what can't be stored of a column, with the first such row."""
    wrong, expected = _wrong(table, i, column, stored)
    wrong &= ~(absent & (gaps or column.missing))
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    value: object = table.values[row, i]
    if column.is_text and column.name in table.categories:
        value = table.categories[column.name][int(table.values[row, i])]
    hint = "mend or delete such rows"
    if absent[row]:
        expected = "a value"
        hint = "fill or delete such rows; this column had none missing in training"
    raise ValueError(
        f"{op}: expected {expected}, got {shown(value)} in row {row} (counted from 0), column "
        f"{column.name!r} of {table.source!r}; {hint}"
    )


def _wrong(
    table: Table, i: int, column: Column, stored: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], str]:
    """Returns which rows can't be stored, and what is expected of them."""
    if column.kind == "category":
        return stored < 0, f"one of {_some(column.values)}"
    if column.kind == "integer":
        values, step = table.values[:, i], column.step
        # Rounded numbers miss the grid, but not by half a step, where it is another one.
        rounding = rounding_of(table.dtypes.get(column.name, "")) * np.abs(values)
        near = np.minimum(ON_GRID * step + rounding, 0.49 * step)
        wrong = ~(np.abs(values - column.low - stored * step) <= near)
        wrong |= ~(np.abs(stored) < 2.0**24)
        return wrong, f"{column.low:.10g} and steps of {column.step:.10g} from there"
    expected = "a finite number within 1e12 deviations of the training data"
    if column.kind == "positive":
        expected = "a number greater than 0"
    elif column.kind == "bounded":
        expected = f"a number between {column.low:.10g} and {column.high:.10g}"
    return ~(np.abs(stored) <= MAX_DEVIATIONS), expected


def _some(values: Sequence[float] | Sequence[str]) -> str:
    return listed([shown(value) for value in values])
