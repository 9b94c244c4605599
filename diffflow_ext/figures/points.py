"""Pictures of points: samples beside data, and the loss of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .axes import Axis, axes_of, box_of
from .panels import (
    BLUE,
    INK,
    ORANGE,
    Array,
    Limits,
    bins_for,
    cloud,
    finite_array,
    grid_lines,
    legend,
    marginal,
    new_figure,
    overlay,
    plain,
    style,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_CORNER = 5
MAX_DOTS = 20_000
MARK = "#6b7280"
MAX_CELL_DOTS = 1500
#: Where in the cell of a discrete value its data and its samples are spread.
HALVES = ((-0.5, -0.06), (0.06, 0.5))
#: Losses up to this number are drawn as points too.
FEW_POINTS = 40


def samples_beside_data(
    data: ArrayLike,
    samples: ArrayLike,
    title: str,
    *,
    columns: Sequence[str | Axis] | None = None,
) -> Figure:
    """Draws samples of a model beside the data, on the same axes.

    In two dimensions two clouds with equally many dots; otherwise a corner grid of the first
    five columns, with marginal histograms on the diagonal, and below it the density of the data
    with contours around the densest 50 % and 90 % of the samples. Discrete values are spread over
    cells, in which samples stand beside data. Rows with a missing value are left out where its
    column is drawn, and their share is said.

    Arguments:
        data: Points with shape (n, d).
        samples: Points with shape (m, d).
        title: The title.
        columns: The d columns by their names, or as `Axis`, which also says what categories they
            have, and whether values may be missing (NaN); x1, x2, ... if None.
    """
    op = "samples_beside_data"
    gaps = [isinstance(one, Axis) and one.gaps for one in columns or ()]
    gaps = gaps if len(gaps) == np.shape(data)[-1] else []
    x = finite_array(op, "data", data, 2, gaps)
    y = finite_array(op, "samples", samples, 2, gaps)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{op}: expected data and samples with as many columns, got shapes {x.shape} and "
            f"{y.shape}; give both in the same columns"
        )
    axes = axes_of(op, columns, x.shape[1])
    if len(axes) > MAX_CORNER:
        title = f"{title}, first {MAX_CORNER} of {len(axes)} columns"
    shown = [_Column.of(axis, x[:, i], y[:, i]) for i, axis in enumerate(axes[:MAX_CORNER])]
    return titled(_pair_of_clouds(shown) if len(axes) == 2 else _corner(shown), title)


class _Column(NamedTuple):
    """A column: its axis, values of data and samples, limits, and cells if it is discrete."""

    axis: Axis
    data: Array
    samples: Array
    limits: Limits
    cells: Array | None

    @classmethod
    def of(cls, axis: Axis, data: Array, samples: Array) -> _Column:
        return cls(axis, data, samples, axis.limits(data, samples), axis.cells(data, samples))


def loss_curve(
    steps: ArrayLike,
    losses: ArrayLike,
    *,
    title: str = "Training loss",
    label: str = "loss [nats per sample]",
    level: tuple[str, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Draws the loss against the training step: raw light, smoothed dark.

    The axis follows the bulk of the curve; a first spike may leave it. NaN leaves a gap.

    Arguments:
        steps: The training steps, increasing.
        losses: A loss for each, in the units that `label` names.
        title: The title.
        label: The name and unit of the vertical axis.
        level: A name and a loss to draw across, such as what a simple model reaches.
        marks: Steps at which something changed, and what is new since then.
    """
    op = "loss_curve"
    step, raw = finite_array(op, "steps", steps, 1), np.asarray(losses, np.float64)
    if raw.shape != step.shape or not np.isfinite(raw).any():
        raise ValueError(
            f"{op}: expected losses of shape {step.shape}, as steps, with a finite value, got "
            f"{raw.shape} and {int(np.isfinite(raw).sum())} finite; give one loss for each step"
        )
    raw = np.where(np.isfinite(raw), raw, np.nan)
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    _losses(axes, step, raw, [mark[0] for mark in marks])
    settled = raw[np.isfinite(raw)]
    settled = settled[len(settled) // 20 :]
    low, high = float(settled.min()), float(np.quantile(settled, 0.995))
    if level is not None:
        low, high = min(low, level[1]), max(high, level[1])
        _level(axes, *level)
    for mark in marks:
        _mark(axes, *mark)
    pad = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)
    style(axes)
    grid_lines(axes)
    axes.set_xlabel("training step", color=INK)
    axes.set_ylabel(label, color=INK)
    place = "best" if level is not None or len(marks) else "upper right"
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=9, loc=place)
    return titled(figure, title)


def _losses(axes: Axes, step: Array, raw: Array, changes: Sequence[float]) -> None:
    """Draws the curve, and its mean over a window, which does not reach across a change."""
    width = len(raw) // 16 if len(raw) > FEW_POINTS else 1
    # One point draws no line, and the line of a few is hidden below the other one.
    own = {"marker": "o", "markersize": 4} if len(raw) <= FEW_POINTS else {}
    alpha = 0.28 if width > 1 else 1.0
    axes.plot(step, raw, color=BLUE, alpha=alpha, linewidth=0.8, label=_spacing(step), **own)
    if width > 1:
        parts = pd.Series(raw).groupby(np.searchsorted(changes, step, side="right"))
        smooth = parts.transform(lambda p: p.rolling(width, center=True, min_periods=1).mean())
        axes.plot(step, smooth, color=BLUE, linewidth=1.8, label="smoothed")


def _level(axes: Axes, name: str, height: float) -> None:
    text = f"{plain(name)}: {height:.4g}"
    axes.axhline(height, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label=text)


def _mark(axes: Axes, step: float, text: str) -> None:
    axes.axvline(step, color=MARK, linewidth=1.0, linestyle=(0, (1, 2)))
    axes.annotate(
        plain(text), (step, 1.0), (0, 3), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", fontsize=8.5, color=INK, ha="center",
    )  # fmt: skip


def _spacing(steps: Array) -> str:
    """Returns which steps the curve has: their usual distance."""
    gap = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    return "each step" if gap <= 1 else f"one step in {gap:g}"


def _pair_of_clouds(columns: list[_Column]) -> Figure:
    figure = new_figure(9.0, 5.2)
    limits = box_of([one.axis for one in columns], *(one.limits for one in columns))
    sides = [_known(*((one.data, one.samples)[side] for one in columns)) for side in range(2)]
    # As many dots on either side, or the denser picture looks the better one.
    shown = min(len(sides[0]), len(sides[1]), MAX_DOTS)
    size = float(np.clip(12_000.0 / max(shown, 1), 0.7, 6.0))
    names, colours = ("data", "samples"), (BLUE, ORANGE)
    for side, panel in enumerate(figure.subplots(1, 2)):
        points = [one.axis.spread_out(sides[side][:shown, i], i) for i, one in enumerate(columns)]
        cloud(panel, np.column_stack(points), colours[side], limits, size)
        panel.set_title(f"{names[side]}, {shown:,} points", fontsize=10.5, color=INK)
        labels = [one.axis.label + _missing(one, side) for one in columns]
        panel.set_xlabel(labels[0], color=INK)
        panel.set_ylabel(labels[1], color=INK)
        columns[0].axis.mark(panel.xaxis, limits[0])
        columns[1].axis.mark(panel.yaxis, limits[1])
    return figure


def _known(*values: Array) -> Array:
    """Returns the rows of columns in which no value is missing."""
    rows = np.column_stack(values)
    return rows[np.isfinite(rows).all(axis=1)]


def _missing(column: _Column, side: int) -> str:
    """Returns which part of the values is missing, for a label; "" where none may be."""
    if not column.axis.gaps:
        return ""
    share = float(np.isnan((column.data, column.samples)[side]).mean())
    return f" (missing: {100.0 * share:.3g} %)"


def _corner(columns: list[_Column]) -> Figure:
    count = len(columns)
    figure = new_figure(1.9 * max(count, 2) + 0.5, 1.9 * max(count, 2) + 0.7)
    axes = figure.subplots(count, count, squeeze=False)
    for row in range(count):
        for column in range(count):
            panel: Axes = axes[row, column]
            if column > row:
                panel.set_visible(False)
                continue
            if column == row:
                _diagonal(panel, columns[row])
            else:
                _beside(panel, columns[column], columns[row])
                columns[row].axis.mark(panel.yaxis, columns[row].limits)
            columns[column].axis.mark(panel.xaxis, columns[column].limits)
            _outer_labels(panel, row, column, columns)
    figure.align_labels()
    continuous = sum(one.cells is None for one in columns)
    lines = "\n(contours: 50 %, 90 %)" if continuous > 1 else ""
    data, samples = columns[0].data, columns[0].samples
    legend(figure, f"data, n = {len(data):,}", f"samples, n = {len(samples):,}{lines}")
    return figure


def _diagonal(panel: Axes, column: _Column) -> None:
    """Draws the histograms of a column, of discrete values a bin for each."""
    both = (column.data, column.samples)
    fewest = min(int(np.isfinite(values).sum()) for values in both)
    edges = column.cells
    if edges is None:
        edges = np.linspace(*column.limits, bins_for(fewest) + 1)
    if column.cells is None:
        both = [column.axis.spread_out(values, 0) for values in both]
    else:
        both = [column.axis.place(values) for values in both]
    data, samples = (values[np.isfinite(values)] for values in both)
    marginal(panel, data, samples, edges)
    if column.axis.gaps:
        panel.set_ylim(top=1.3 * panel.get_ylim()[1])
        shares = [100.0 * float(np.isnan(values).mean()) for values in both]
        text = f"missing: data {shares[0]:.2g} %,\nsamples {shares[1]:.2g} %"
        panel.text(0.96, 0.96, text, transform=panel.transAxes, fontsize=7.5, color=INK,
                   ha="right", va="top")  # fmt: skip


def _beside(panel: Axes, x: _Column, y: _Column) -> None:
    """Draws two columns: densities, or dots if the values of one are discrete.

    Dots of samples stand beside those of the data in the cell of a value.
    """
    box = (x.limits, y.limits)
    sides = [_known(x.data, y.data), _known(x.samples, y.samples)]
    if x.cells is None and y.cells is None:
        data, samples = (
            np.column_stack([one.axis.spread_out(rows[:, i], i) for i, one in enumerate((x, y))])
            for rows in sides
        )
        overlay(panel, data, samples, box)
        return
    shown, whole = min(len(sides[0]), len(sides[1]), MAX_CELL_DOTS), (-0.5, 0.5)
    for rows, colour, part in zip(sides, (BLUE, ORANGE), HALVES, strict=True):
        across = x.axis.spread_out(rows[:shown, 0], 0, whole if x.cells is None else part)
        up = y.axis.spread_out(rows[:shown, 1], 1, whole if x.cells is not None else part)
        panel.scatter(across, up, s=2.0, c=colour, linewidths=0, alpha=0.5, rasterized=True)
    style(panel)
    panel.set_xlim(*box[0])
    panel.set_ylim(*box[1])


def _outer_labels(panel: Axes, row: int, column: int, columns: list[_Column]) -> None:
    last = len(columns) - 1
    panel.tick_params(labelbottom=row == last, labelleft=column == 0 and row > 0)
    if row == column:
        panel.tick_params(left=False)
    if row == last:
        panel.set_xlabel(columns[column].axis.label, fontsize=9.5, color=INK)
    if column == 0 and row > 0:
        panel.set_ylabel(columns[row].axis.label, fontsize=9.5, color=INK)
    elif row == column == 0:
        panel.set_ylabel("density", fontsize=9.5, color=INK)
