"""Pictures of images, and of measures against what was varied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .panels import (
    BLUE,
    DPI,
    INK,
    ORANGE,
    finite_array,
    grid_lines,
    new_figure,
    style,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Levels = NDArray[np.uint8]
MAX_IMAGES = 4096
GAP = 2  # pixels between images, in theirs
SHOWN_WIDTH = 1000  # pixels that a montage is enlarged to, if whole factors allow
MAX_ZOOM = 6
TITLE_INCHES, MARGIN_INCHES = 0.45, 0.15
NAME_INCHES = 0.085  # of a letter
LEAST_WIDTH_INCHES = 4.5
CURVES = (BLUE, ORANGE, "#2a9d8f", "#7b4bb3", "#c2335a", "#7a9e2e", "#b07d00", "#6b7280")
MARKERS = "osD^vPX*"


def image_grid(images: ArrayLike, title: str) -> Figure:
    """Draws images in a square grid, row by row, each pixel as a square of whole screen pixels.

    Arguments:
        images: uint8, or floats from -1 (black) to 1 (white), clamped; shape (n, C, H, W) with
            C = 1 or 3 and n <= 4096.
        title: The title.
    """
    op = "image_grid"
    levels = _levels(op, "images", images)
    figure, _ = _montage(square_of(levels), 0.0)
    return titled(figure, title, 0.5 * MARGIN_INCHES)


def image_rows(rows: Mapping[str, ArrayLike], title: str) -> Figure:
    """Draws one row of images under another, each with its name: data, models, step counts.

    Arguments:
        rows: Images by name of the row, from above, as in `image_grid`. All have one size; rows
            may differ in length.
        title: The title.
    """
    op = "image_rows"
    levels = {name: _levels(op, f"row {name!r}", images) for name, images in rows.items()}
    sizes = {one.shape[1:] for one in levels.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"{op}: expected rows of images of one size, got {sorted(sizes) or 'no rows'}; draw "
            "a picture for each size"
        )
    longest = max(len(name) for name in levels)
    figure, panel = _montage(list(levels.values()), NAME_INCHES * longest + MARGIN_INCHES)
    height = levels[next(iter(levels))].shape[1]
    for index, name in enumerate(levels):
        middle = index * (height + GAP) + 0.5 * height
        panel.text(-2 * GAP, middle, name, ha="right", va="center", fontsize=10, color=INK)
    return titled(figure, title, 0.5 * MARGIN_INCHES)


def metric_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    floor: tuple[str, float],
) -> Figure:
    """Draws a measure of several models against what was varied, such as the number of steps.

    Both axes are logarithmic.

    Arguments:
        curves: Points (x, y) by name of the curve, at most eight; drawn in increasing x.
        xlabel: The name and unit of the horizontal axis.
        ylabel: The name and unit of the vertical axis.
        title: The title.
        floor: A name and a level to draw across, such as what real data reach.
    """
    op = "metric_curves"
    if not 1 <= len(curves) <= len(CURVES):
        raise ValueError(
            f"{op}: expected 1 to {len(CURVES)} curves, got {len(curves)}; draw several pictures"
        )
    points = {name: _pairs(op, name, pairs) for name, pairs in curves.items()}
    level = finite_array(op, "floor", [floor[1]], 1)
    least = min(float(some.min()) for some in (level, *points.values()))
    if least <= 0.0:
        raise ValueError(
            f"{op}: expected positive numbers on logarithmic axes, got {least:.6g}; leave them out"
        )
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    for (name, p), colour, marker in zip(points.items(), CURVES, MARKERS, strict=False):
        axes.plot(*p.T, color=colour, marker=marker, markersize=5, linewidth=1.6, label=name)
    axes.axhline(level[0], color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label=floor[0])
    style(axes)  # Before the scales: it asks for a number of ticks, which logarithmic ones refuse.
    axes.set(xscale="log", yscale="log")
    ticks = np.unique(np.concatenate([p[:, 0] for p in points.values()]))
    if len(ticks) <= 8:
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    grid_lines(axes)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return titled(figure, title)


def square_of(levels: Levels) -> list[Levels]:
    """Returns rows of images, about as many as there are in a row."""
    width = math.ceil(math.sqrt(len(levels)))
    return [levels[start : start + width] for start in range(0, len(levels), width)]


def paper_of(rows: Sequence[Levels], background: int) -> Levels:
    """Returns one image of rows of images, channels last, with gaps between them."""
    height, width, channels = rows[0].shape[1:]
    across = max(len(row) for row in rows) * (width + GAP) - GAP
    down = len(rows) * (height + GAP) - GAP
    paper = np.full((down, across, channels), background, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            paper[top : top + height, left : left + width] = image
    return paper


def _montage(rows: Sequence[Levels], left: float) -> tuple[Figure, Axes]:
    """A figure whose only panel shows rows of images, enlarged by a whole factor."""
    paper = paper_of(rows, 255)
    down, across = paper.shape[:2]
    zoom = int(np.clip(SHOWN_WIDTH // across, 1, MAX_ZOOM))
    inner = np.array([across, down]) * zoom / DPI
    outer = inner + np.array([left + 2 * MARGIN_INCHES, TITLE_INCHES + MARGIN_INCHES])
    outer[0] = max(outer[0], LEAST_WIDTH_INCHES)
    figure = new_figure(*(float(np.ceil(inches * DPI)) / DPI for inches in outer))
    # The usual layout would choose a size of its own, and smear pixels over fractions of others.
    figure.set_layout_engine("none")
    return figure, _exact_panel(figure, paper, zoom, left)


def _exact_panel(figure: Figure, paper: Levels, zoom: int, left: float) -> Axes:
    whole = np.round(figure.get_size_inches() * DPI)
    inner = np.array([paper.shape[1], paper.shape[0]]) * zoom
    start = round(0.5 * (whole[0] - inner[0] + left * DPI))
    corner = np.array([start, round(MARGIN_INCHES * DPI)])
    panel = figure.add_axes((*(corner / whole), *(inner / whole)))
    panel.imshow(
        np.repeat(paper, 3, axis=2) if paper.shape[2] == 1 else paper,
        interpolation="nearest",
        aspect="auto",
        extent=(0, paper.shape[1], paper.shape[0], 0),
    )
    panel.set_axis_off()
    return panel


def _levels(op: str, name: str, images: ArrayLike) -> Levels:
    """Images as uint8 with the channel last, checked."""
    given = np.asarray(images)
    if given.ndim != 4 or given.shape[1] not in (1, 3) or 0 in given.shape:
        raise ValueError(
            f"{op}: expected {name} of shape (n, C, H, W) with n >= 1 and C = 1 or 3, got "
            f"{given.shape}; grey images without C: images[:, None]"
        )
    if len(given) > MAX_IMAGES:
        raise ValueError(
            f"{op}: expected at most {MAX_IMAGES} images, got {len(given)} of {name}; choose some"
        )
    if given.dtype != np.uint8:
        if given.dtype.kind != "f":
            raise ValueError(
                f"{op}: expected {name} as uint8 or floats in [-1, 1], got {given.dtype}; "
                "convert it"
            )
        finite = finite_array(op, name, given, 4)
        given = np.clip(np.floor(128.0 * (finite + 1.0)), 0, 255).astype(np.uint8)
    return given.transpose(0, 2, 3, 1)


def _pairs(op: str, name: str, pairs: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    points = finite_array(op, f"curve {name!r}", pairs, 2)
    if points.shape[1] != 2:
        raise ValueError(
            f"{op}: expected curve {name!r} as pairs (x, y), got shape {points.shape}; give a y "
            "for each x"
        )
    return points[np.argsort(points[:, 0], kind="stable")]
