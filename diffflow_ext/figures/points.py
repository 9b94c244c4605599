"""Pictures of points: samples beside data, and the loss of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .panels import (
    BLUE,
    INK,
    ORANGE,
    Array,
    cloud,
    finite_array,
    grid_lines,
    legend,
    marginal,
    new_figure,
    overlay,
    plain,
    span,
    square,
    style,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_CORNER = 5
MAX_DOTS = 20_000
#: Losses up to this number are drawn as points too.
FEW_POINTS = 40


def samples_beside_data(
    data: ArrayLike,
    samples: ArrayLike,
    title: str,
    *,
    columns: Sequence[str] | None = None,
) -> Figure:
    """Draws samples of a model beside the data, on the same axes.

    In two dimensions two clouds with equally many dots; otherwise a corner grid of the first
    five columns, with marginal histograms on the diagonal, and below it the density of the data
    with contours around the densest 50 % and 90 % of the samples.

    Arguments:
        data: Points with shape (n, d).
        samples: Points with shape (m, d).
        title: The title.
        columns: The d column names; x1, x2, ... if None.
    """
    op = "samples_beside_data"
    x, y = finite_array(op, "data", data, 2), finite_array(op, "samples", samples, 2)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{op}: expected data and samples with as many columns, got shapes {x.shape} and "
            f"{y.shape}; give both in the same columns"
        )
    names = list(columns) if columns is not None else [f"x{i + 1}" for i in range(x.shape[1])]
    if len(names) != x.shape[1]:
        raise ValueError(
            f"{op}: expected {x.shape[1]} column names, got {len(names)}; name every column"
        )
    if len(names) > MAX_CORNER:
        title = f"{title}, {MAX_CORNER} of {len(names)} columns"
    figure = _pair_of_clouds(x, y, names) if x.shape[1] == 2 else _corner(x, y, names)
    return titled(figure, title)


def loss_curve(
    steps: ArrayLike,
    losses: ArrayLike,
    *,
    title: str = "Training loss",
    label: str = "loss per sample [nats]",
) -> Figure:
    """Draws the loss against the training step: raw light, smoothed dark.

    The axis follows the bulk of the curve; a first spike may leave it. NaN leaves a gap.

    Arguments:
        steps: The training steps, increasing.
        losses: A loss for each, in the units that `label` names.
        title: The title.
        label: The name and unit of the vertical axis.
    """
    op = "loss_curve"
    step, raw = finite_array(op, "steps", steps, 1), np.asarray(losses, np.float64)
    if raw.shape != step.shape or not np.isfinite(raw).any():
        raise ValueError(
            f"{op}: expected losses of shape {step.shape}, as steps, with a finite value, got "
            f"{raw.shape} and {int(np.isfinite(raw).sum())} finite; give one loss for each step"
        )
    raw = np.where(np.isfinite(raw), raw, np.nan)
    width = max(1, len(raw) // 40)
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    # One point draws no line, and the line of a few is hidden below the other one.
    own = {"marker": "o", "markersize": 4} if len(raw) <= FEW_POINTS else {}
    alpha = 0.28 if width > 1 else 1.0
    axes.plot(step, raw, color=BLUE, alpha=alpha, linewidth=0.8, label=_spacing(step), **own)
    if width > 1:
        window = pd.Series(raw).rolling(width, center=True, min_periods=1)
        axes.plot(step, window.mean(), color=BLUE, linewidth=1.8, label="smoothed")
    settled = raw[np.isfinite(raw)]
    settled = settled[len(settled) // 20 :]
    low, high = float(settled.min()), float(np.quantile(settled, 0.995))
    pad = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)
    style(axes)
    grid_lines(axes)
    axes.set_xlabel("training step", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return titled(figure, title)


def _spacing(steps: Array) -> str:
    """Returns which steps the curve has: their usual distance."""
    gap = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    return "each step" if gap <= 1 else f"one step in {gap:g}"


def _pair_of_clouds(data: Array, samples: Array, names: list[str]) -> Figure:
    figure = new_figure(9.0, 5.2)
    axes = figure.subplots(1, 2)
    limits = square(np.concatenate([data, samples]))
    # As many dots on either side, or the denser picture looks the better one.
    shown = min(len(data), len(samples), MAX_DOTS)
    size = float(np.clip(12_000.0 / shown, 0.7, 6.0))
    sides = zip(axes, (data, samples), ("data", "samples"), (BLUE, ORANGE), strict=True)
    for panel, points, label, colour in sides:
        cloud(panel, points[:shown], colour, limits, size)
        panel.set_title(f"{label}, {shown:,} points", fontsize=10.5, color=INK)
        panel.set_xlabel(plain(names[0]), color=INK)
        panel.set_ylabel(plain(names[1]), color=INK)
    return figure


def _corner(data: Array, samples: Array, names: list[str]) -> Figure:
    count = min(MAX_CORNER, len(names))
    figure = new_figure(1.9 * max(count, 2) + 0.5, 1.9 * max(count, 2) + 0.7)
    axes = figure.subplots(count, count, squeeze=False)
    limits = [span(np.concatenate([data[:, i], samples[:, i]])) for i in range(count)]
    for row in range(count):
        for column in range(count):
            panel: Axes = axes[row, column]
            if column > row:
                panel.set_visible(False)
                continue
            if column == row:
                marginal(panel, data[:, row], samples[:, row], limits[row])
            else:
                pick, box = [column, row], (limits[column], limits[row])
                overlay(panel, data[:, pick], samples[:, pick], box)
            _outer_labels(panel, row, column, count, names)
    figure.align_labels()
    lines = "\n(contours: 50 %, 90 %)" if count > 1 else ""
    legend(figure, f"data, n = {len(data):,}", f"samples, n = {len(samples):,}{lines}")
    return figure


def _outer_labels(panel: Axes, row: int, column: int, count: int, names: list[str]) -> None:
    panel.tick_params(labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
    if row == column:
        panel.tick_params(left=False)
    if row == count - 1:
        panel.set_xlabel(plain(names[column]), fontsize=10, color=INK)
    if column == 0 and row > 0:
        panel.set_ylabel(plain(names[row]), fontsize=10, color=INK)
    elif row == column == 0:
        panel.set_ylabel("density", fontsize=10, color=INK)
