"""Axes of columns: where values lie on them, and ticks in the units of the data."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from .panels import (
    FAINT,
    MOST_UNLIKE,
    NAMED_UNLIKE,
    Array,
    Box,
    Limits,
    plain,
    span,
    square,
)

Scale = Literal["linear", "log", "asinh", "logit", "normal"]
#: What is said of a scale beside the name of its column.
NOTES = {
    "linear": "",
    "log": "\n(log scale)",
    "asinh": "\n(asinh scale)",
    "logit": "\n(logit scale)",
    "normal": "\n(normal quantiles)",
}
TICKS, MOST_LETTERS, MOST_LETTERS_OF_NAMES = 4, 14, 24
LETTERS_PER_INCH = 10
MOST_DIGITS = 17  # all that a float has
#: Discrete columns of more values are drawn as continuous ones.
MOST_CELLS = 40
#: The part of a cell over which its points are spread.
CELL = 0.76
#: A tick may be this part of their distance from where it would be, so that its number is short.
OFF = 0.2
#: Values beyond are drawn here: float64 holds their place.
FARTHEST = 1e300
NEAREST_END = 1e-16


@dataclass(frozen=True)
class Axis:
    r"""A column, and how its values lie on an axis.

    With a value :math:`y` the place is :math:`y` itself, :math:`\log y`,
    :math:`\operatorname{asinh}((y - c) / s)`, or
    :math:`\operatorname{logit}((y - a) / (b - a))`. Categories are numbered from 0, and their
    place is that number; on a scale "normal" it is the quantile of a standard normal, which
    `edges` cut into cells.

    Arguments:
        name: The name of the column.
        scale: "linear", "log", "asinh", "logit" or "normal".
        center: c, of "asinh".
        spread: s > 0, of "asinh".
        low: a, of "logit".
        high: b, of "logit".
        step: The distance of discrete values; 0 for continuous ones, 1 for categories.
        labels: The categories.
        edges: Of "normal" the inner edges of the categories, increasing.
        gaps: Whether values may be missing, which are NaN.
    """

    name: str
    scale: Scale = "linear"
    center: float = 0.0
    spread: float = 1.0
    low: float = 0.0
    high: float = 1.0
    step: float = 0.0
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    gaps: bool = False

    @property
    def label(self) -> str:
        """The name, and the scale where it is not linear."""
        return plain(shortened(self.name, MOST_LETTERS_OF_NAMES)) + NOTES[self.scale]

    def place(self, values: Array) -> Array:
        """Returns where values lie; NaN stays NaN."""
        values = np.clip(values, -FARTHEST, FARTHEST)
        if self.scale == "log":
            return np.log(np.maximum(values, 1.0 / FARTHEST))
        if self.scale == "asinh":
            return np.arcsinh((values - self.center) / self.spread)
        if self.scale == "logit":
            share = (values - self.low) / (self.high - self.low)
            return special.logit(np.clip(share, NEAREST_END, 1.0 - NEAREST_END))
        return values

    def value(self, places: Array) -> Array:
        """Returns the values that lie there."""
        if self.scale == "log":
            return np.exp(places)
        if self.scale == "asinh":
            return self.center + self.spread * np.sinh(places)
        if self.scale == "logit":
            return self.low + (self.high - self.low) * special.expit(places)
        return places

    def cells(self, *values: Array) -> Array | None:
        """Returns the edges of the cells of discrete values, None if they are too many."""
        if self.labels and self.scale == "linear":
            return np.arange(len(self.labels) + 1, dtype=np.float64) - 0.5
        known = np.concatenate([some[np.isfinite(some)] for some in values])
        if not self.step or not len(known):
            return None
        low, count = float(known.min()), round(float(np.ptp(known)) / self.step)
        if count > MOST_CELLS:
            return None
        return self.place(low + self.step * (np.arange(count + 2, dtype=np.float64) - 0.5))

    def limits(self, *values: Array) -> Limits:
        """Returns limits around the middle part of values; of few discrete ones around all."""
        cells = self.cells(*values)
        if cells is not None:
            return float(cells[0]), float(cells[-1])
        known = np.concatenate([some[np.isfinite(some)] for some in values])
        return span(self.place(known)) if len(known) else (0.0, 1.0)

    def spread_out(self, values: Array, seed: int, part: Limits = (-0.5, 0.5)) -> Array:
        """Returns places of values, discrete ones spread evenly over a part of their cells."""
        if self.step:
            u = np.random.default_rng(seed).uniform(*part, values.shape)
            values = values + CELL * self.step * u
        return self.place(values)

    def mark(self, axis: Any, limits: Limits) -> None:
        """Puts ticks on an axis of matplotlib, whose limits are those."""
        if not self.labels:
            if self.scale != "linear":
                axis.set_ticks(*round_ticks(self, limits))
            return
        panel, is_x = axis.axes, axis.axis_name == "x"
        for edge in self.edges:
            (panel.axvline if is_x else panel.axhline)(
                edge, color=FAINT, linewidth=0.6, zorder=0.5
            )
        places, texts = self._middles(limits)
        inches = panel.get_window_extent().width / panel.figure.dpi
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        is_full = is_x and sum(map(len, texts)) > inches * LETTERS_PER_INCH
        axis.set_ticks(places, texts, **(slanted if is_full else {}))

    def _middles(self, limits: Limits) -> tuple[list[float], list[str]]:
        """Returns the middles of categories that have room for a label, and the labels."""
        if self.scale == "normal":
            shares = special.ndtr(np.array([-np.inf, *self.edges, np.inf]))
            middles = special.ndtri(0.5 * (shares[1:] + shares[:-1]))
        else:
            middles = np.arange(len(self.labels), dtype=np.float64)
        least = (limits[1] - limits[0]) / 9.0
        places, texts = list[float](), list[str]()
        for middle, text in zip(middles.tolist(), self.labels, strict=True):
            inside = limits[0] <= middle <= limits[1]
            if inside and (not places or middle - places[-1] >= least):
                places.append(middle)
                texts.append(plain(shortened(text, MOST_LETTERS)))
        return places, texts


def shortened(text: str, most: int) -> str:
    """Returns a text, or the beginning of a long one."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def axes_of(op: str, columns: Sequence[str | Axis] | None, count: int) -> list[Axis]:
    """Returns an axis for each column, x1, x2, ... if None; as many as there are values."""
    if columns is None:
        columns = [f"x{i + 1}" for i in range(count)]
    if len(columns) != count:
        raise ValueError(
            f"{op}: expected {count} column names, got {len(columns)}; name every column"
        )
    return [Axis(one) if isinstance(one, str) else one for one in columns]


def places_of(axes: Sequence[Axis], values: Array) -> Array:
    """Returns where the values of columns lie, the last dimension of an array."""
    return np.stack([axis.place(values[..., i]) for i, axis in enumerate(axes)], axis=-1)


def box_around(axes: Sequence[Axis], *places: Array) -> Box:
    """Returns limits around the middle part of all places, shapes (..., 2), for all panels."""
    x, y = np.concatenate([some.reshape(-1, 2) for some in places]).T
    return box_of(axes, span(x), span(y))


def box_of(axes: Sequence[Axis], x: Limits, y: Limits) -> Box:
    """Returns limits, of the same length if both columns are numbers that may be alike."""
    alike = all(axis.scale == "linear" and not axis.labels for axis in axes)
    named = any(re.fullmatch(r"x\d+", axis.name) is None for axis in axes)
    return square(x, y, NAMED_UNLIKE if named else MOST_UNLIKE) if alike else (x, y)


def round_ticks(axis: Axis, limits: Limits) -> tuple[list[float], list[str]]:
    """Returns places of short numbers that lie about evenly between limits, and the numbers."""
    decades = (limits[1] - limits[0]) / math.log(10.0)
    if axis.scale == "log" and decades >= 1.5:
        first, last = (end / math.log(10.0) for end in limits)
        every = max(1, round(decades / TICKS))
        powers = range(math.ceil(first), math.floor(last) + 1, every)
        return [k * math.log(10.0) for k in powers], [_power(k) for k in powers]
    even = np.linspace(*limits, TICKS + 2)[1:-1]
    zero = float(axis.place(np.array(0.0)))
    if axis.scale == "asinh" and limits[0] < zero < limits[1]:  # One of them is 0.
        even = even + (zero - even[np.abs(even - zero).argmin()])
    places, texts = list[float](), list[str]()
    for place in even.tolist():
        text = _shortest(axis, place, OFF * (even[1] - even[0]))
        if text not in texts:
            places.append(float(axis.place(np.array(float(text)))))
            texts.append(text)
    return places, texts


def _shortest(axis: Axis, place: float, off: float) -> str:
    """Returns the shortest number whose place is near enough."""
    value = float(axis.value(np.array(place)))
    short = ["0"] if axis.scale == "asinh" else []
    short += [f"{value:.{digits}g}" for digits in range(1, MOST_DIGITS)]

    def is_near(text: str) -> bool:
        with np.errstate(divide="ignore", invalid="ignore"):
            return abs(float(axis.place(np.array(float(text)))) - place) <= off

    return next(filter(is_near, short), f"{value:.{MOST_DIGITS}g}")


def _power(k: int) -> str:
    """Returns 10^k, of few digits as a number."""
    return f"{10.0**k:g}" if -3 <= k <= 4 else f"$10^{{{k}}}$"
