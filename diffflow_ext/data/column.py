"""One column of a table: its value, its coordinate, and the weight between their densities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .formats.cells import is_truth
from .formats.columns import Values, listed

#: Kinds of columns, with titles for lists.
KINDS = {
    "continuous": "continuous",
    "heavy": "with heavy tails (asinh)",
    "positive": "positive (log)",
    "bounded": "bounded (logit)",
    "integer": "integer",
    "category": "category",
}
#: Shares of values are kept this far from 0 and 1, where the normal quantile is infinite.
LEAST_SHARE = 1e-12
#: Relative to a number that is one value of a category, rounded to float32 or not.
SAME = 1e-6
FAR = 0.25  # of the range of training
#: Of positive values, which are never 0 nor infinite.
POSITIVE = torch.finfo(torch.float64)
MOST_DECIMALS = 12  # of an integer on a grid
#: Rounding, in units of the last decimal, beyond which a number may be on any grid.
SURE = 1e-2


def rounding_of(dtype: str) -> float:
    """Returns the largest relative error of numbers that were rounded to float32, else 0.

    Types have the names that NumPy, pandas and pyarrow give them.
    """
    return 2.0**-24 if dtype.lower() in ("float32", "float[pyarrow]") else 0.0


def in_decimals(values: Values, dtype: str) -> Values:
    """Returns the decimal numbers of fewest digits that were rounded to values of float32."""
    if rounding_of(dtype) == 0.0:
        return values
    return values.astype(np.float32).astype(str).astype(np.float64)


@dataclass(frozen=True)
class Column:
    """A column and its coordinate, whose formulas `data.encoding` has.

    Attributes:
        name: Its name.
        kind: A key of `KINDS`.
        mean: m, of the coordinate before it is standardised.
        std: The deviation, likewise.
        center: c, of a column with heavy tails.
        spread: s, likewise; 0 for others.
        low: The lower bound a, the smallest integer, or the smallest value in training.
        high: The upper bound b, the largest integer, or the largest value in training; both are
            0 in a category, and where they aren't known.
        step: h, the distance of integers; 0 for other kinds.
        values: The values of a category, in order.
        shares: Their shares, and at last that of missing values if there are any; of other kinds
            with missing values the shares of present and missing ones.
        missing: Whether values may be missing.
        dtype: The type of the values where they came from, as NumPy and pandas call it, with
            "ordered " before that of ordered categories; "" for text files.
    """

    name: str
    kind: str
    mean: float = 0.0
    std: float = 1.0
    center: float = 0.0
    spread: float = 0.0
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    values: tuple[float, ...] | tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    missing: bool = False
    dtype: str = ""

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> Column:
        """Returns the column that `asdict` made plain data of, after it went through JSON."""
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        column = cls(**found)
        numbers = (getattr(column, f.name) for f in fields(cls) if f.type == "float")
        if column.kind not in KINDS or not all(math.isfinite(value) for value in numbers):
            raise ValueError(f"expected the record of a column, got {values!r}")
        return column

    @property
    def is_text(self) -> bool:
        """Whether its values are texts."""
        return bool(self.values) and isinstance(self.values[0], str)

    @property
    def is_truth(self) -> bool:
        """Whether its values are false and true, as texts, each written in one way."""
        texts = [str(value).lower() for value in self.values] if self.is_text else []
        return is_truth(texts) and len({*texts}) == len(texts)

    @property
    def is_binary(self) -> bool:
        """Whether its values are the numbers 0 and 1."""
        return self.values == (0.0, 1.0) or (self.step, self.low, self.high) == (1.0, 0.0, 1.0)

    @property
    def missing_index(self) -> int | None:
        """The index of the missing value of a category, None if none is missing."""
        if self.kind != "category":
            return None
        if self.is_text:
            return self.values.index("") if "" in self.values else None
        return len(self.values) if self.missing else None

    @property
    def is_discrete(self) -> bool:
        """Whether its values have probabilities."""
        return self.kind in ("integer", "category")

    @property
    def span(self) -> str:
        """Its smallest and largest number in words; "" where they aren't known."""
        digits = 10 if self.kind == "integer" else 4
        ends = f"from {self.low:.{digits}g} to {self.high:.{digits}g}"
        return ends if self.low < self.high else ""

    @property
    def kind_in_words(self) -> str:
        """Its kind, with what belongs to it."""
        more = f" of {len(self.values):,}" if self.kind == "category" else ""
        more = f", steps of {self.step:.6g}" if self.step not in (0.0, 1.0) else more
        return f"{self.kind}{more}{', may be missing' if self.missing else ''}"

    @property
    def values_in_words(self) -> str:
        """Its first values, or the smallest and the largest; "" where they aren't known."""
        if self.kind != "category":
            return self.span
        return listed([*map(shown, self.values)])

    def __repr__(self) -> str:
        known = f", {self.span}" if self.span else ""
        return f"Column({self.name!r}, {self.kind_in_words}{known})"

    def is_far(self, values: Values) -> NDArray[np.bool_]:
        """Returns which numbers lie more than a quarter of the range of training beyond it.

        It is measured in the coordinate that the model sees. Categories and bounded columns, whose
        other values are refused, have none.
        """
        if self.kind in ("category", "bounded") or self.low == self.high:
            return np.zeros(len(values), np.bool_)
        low, high = self._standardised(np.array([self.low, self.high]))
        x, margin = self._standardised(values), FAR * (high - low)
        return (x < low - margin) | (x > high + margin)

    @cached_property
    def decimals(self) -> int | None:
        """The decimals of an integer's values; None if they are no decimal numbers."""
        rounding = max(8.0 * rounding_of(self.dtype), 2.0**-50)
        for decimals in range(MOST_DECIMALS + 1):
            scaled = [abs(value) * 10.0**decimals for value in (self.low, self.step)]
            if rounding * max(scaled) > SURE:
                break
            if all(abs(value - round(value)) <= rounding * max(value, 1.0) for value in scaled):
                return decimals
        return None

    # --- from values to the coordinate -----------------------------------------------------------

    def stored(self, values: Values) -> Values:
        """Returns what is stored of values: x, of an integer its number, of a category its index.

        Missing values stay NaN, but for a category, where it is a value.
        """
        if self.kind == "category":
            return self._indices(values)
        if self.kind == "integer":
            return np.rint((values - self.low) / self.step)
        return self._standardised(values)

    def _indices(self, values: Values) -> Values:
        known = np.array(self.values, np.float64)
        above = np.minimum(np.searchsorted(known, values), len(known) - 1)
        below = np.maximum(above - 1, 0)
        index = np.where(
            np.abs(known[below] - values) < np.abs(known[above] - values), below, above
        )
        # The same number may have been float32, unless it is whole.
        near = np.isclose(known[index], values, rtol=SAME, atol=0.0)
        same = (known[index] == values) | (near & (known[index] != np.rint(known[index])))
        found = np.where(same, index, -1.0)
        return np.where(np.isnan(values) & self.missing, float(len(known)), found)

    def _standardised(self, values: Values) -> Values:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self.kind == "bounded":
                share = (values - self.low) / (self.high - self.low)
                values = np.log(share) - np.log1p(-share)
            elif self.kind == "positive":
                values = np.log(values)
            elif self.spread:
                values = np.arcsinh((values - self.center) / self.spread)
            return (values - self.mean) / self.std

    def input(self, stored: Tensor, u: Tensor) -> Tensor:
        """Returns the coordinate of stored values and uniforms, float64, shape (n,)."""
        if self.kind == "category":
            return cell_normal(self.shares, stored.long(), u)
        x = stored
        if self.kind == "integer":
            t = self.low + self.step * (stored + (u - 0.5))
            t = torch.asinh((t - self.center) / self.spread) if self.spread else t
            x = (t - self.mean) / self.std
        return torch.where(stored.isnan(), torch.special.ndtri(u), x) if self.missing else x

    # --- and back --------------------------------------------------------------------------------

    def log_weight(self, stored: Tensor, x: Tensor) -> Tensor:
        """Returns w of the coordinate, float64, shape (n,)."""
        if self.kind == "category":
            return cell_weight(self.shares, stored.long(), x)
        weight = self._log_slope(x) + (math.log(self.step) if self.step else 0.0)
        return torch.where(stored.isnan(), -log_normal(x), weight) if self.missing else weight

    def _log_slope(self, x: Tensor) -> Tensor:
        """Returns log |dx/dy|."""
        t = self.mean + self.std * x
        flat = torch.full_like(x, -math.log(self.std))
        if self.kind == "bounded":
            both = torch.nn.functional.logsigmoid(t) + torch.nn.functional.logsigmoid(-t)
            return flat - both - math.log(self.high - self.low)
        if self.kind == "positive":
            return flat - t
        if self.spread:
            # log cosh t, which does not overflow.
            log_cosh = t.abs() + torch.log1p(torch.exp(-2.0 * t.abs())) - math.log(2.0)
            return flat - log_cosh - math.log(self.spread)
        return flat

    def unrounded(self, x: Tensor) -> Tensor:
        """Returns the value of a coordinate before it is rounded, of a category the coordinate.

        It is continuous in x, and so a value for states between data and noise too.
        """
        if self.kind == "category":
            return x
        t = self.mean + self.std * x
        if self.kind == "bounded":
            inside = np.nextafter([self.low, self.high], [self.high, self.low]).tolist()
            return (self.low + (self.high - self.low) * torch.sigmoid(t)).clamp(*inside)
        if self.kind == "positive":
            return torch.exp(t).clamp(POSITIVE.tiny, POSITIVE.max)
        return self.center + self.spread * torch.sinh(t) if self.spread else t

    def decoded(self, x: Tensor) -> Tensor:
        """Returns the value of the coordinate; of a category of texts its index."""
        if self.kind == "category":
            index = cell_of(self.shares, x)
            if self.is_text:
                return index.double()
            return torch.tensor([*self.values, math.nan], dtype=torch.float64)[index]
        values = self.unrounded(x)
        if self.kind == "integer":
            index = ((values - self.low) / self.step).round()
            values = (self.low + self.step * index).clamp(self.low, self.high)
            # 0.2 + 4 * 0.01 is not 0.24, the number in the data.
            return values if self.decimals is None else values.round(decimals=self.decimals)
        return values


def shown(value: object) -> str:
    """Returns a value of a column for a message; of a long text the beginning."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return f"{value:.10g}"


def log_normal(x: Tensor) -> Tensor:
    """Returns the log-density of a standard normal."""
    return -0.5 * (x * x + math.log(2.0 * math.pi))


# Held for each device: a copy to a GPU in each step would wait for it.
@lru_cache(maxsize=4096)
def _bounds(shares: tuple[float, ...], device: torch.device) -> Tensor:
    """Returns F_0, F_1, ... of shares, from 0 to 1."""
    sums = torch.tensor([0.0, *shares], dtype=torch.float64).cumsum(0)
    return (sums / sums[-1]).to(device)


def cell_normal(shares: Sequence[float], index: Tensor, u: Tensor) -> Tensor:
    """Returns the normal quantile of a place u in the cells of categories."""
    ends = _bounds(tuple(shares), u.device)
    place = ends[index] + u * (ends[index + 1] - ends[index])
    return torch.special.ndtri(place.clamp(LEAST_SHARE, 1.0 - LEAST_SHARE))


def cell_weight(shares: Sequence[float], index: Tensor, x: Tensor) -> Tensor:
    """Returns log P_k minus the log-density of a standard normal."""
    ends = _bounds(tuple(shares), x.device)
    return (ends[index + 1] - ends[index]).log() - log_normal(x)


def cell_of(shares: Sequence[float], x: Tensor) -> Tensor:
    """Returns the cell in which a normal coordinate lies."""
    inner = _bounds(tuple(shares), x.device)[1:-1]
    return torch.bucketize(torch.special.ndtr(x), inner, right=True)
