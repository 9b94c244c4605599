"""Pictures of distributions of one number, such as log-densities of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .panels import (
    BLUE,
    INK,
    ORANGE,
    bins_for,
    finite_array,
    grid_lines,
    new_figure,
    plain,
    style,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The part of the values, at most, that may lie beyond the left and right end of the axis.
BEYOND = 0.005


def histograms(values: Mapping[str, ArrayLike], label: str) -> Figure:
    """Draws the distribution of one number in two groups, with their means.

    Both have the same bins and an area of 1, so that groups of different sizes can be compared.
    The axis holds both means, and all values but 0.5 % at either end.

    Arguments:
        values: One group by its name, or two: the first is filled with the colour of data, the
            second drawn as a line in that of samples.
        label: The name and unit of the number.
    """
    op = "histograms"
    if not 1 <= len(values) <= 2:
        raise ValueError(f"{op}: expected one group or two, got {len(values)}; draw two pictures")
    groups = {name: finite_array(op, f"group {name!r}", some, 1) for name, some in values.items()}
    low, high = np.quantile(np.concatenate([*groups.values()]), [BEYOND, 1.0 - BEYOND])
    means = [float(some.mean()) for some in groups.values()]
    low, high = min(low, *means), max(high, *means)
    pad = 0.03 * (high - low) or 0.5
    count = bins_for(min(map(len, groups.values())))
    edges = np.linspace(low - pad, high + pad, count + 1)
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    styles = zip(groups.items(), means, (BLUE, ORANGE), (True, False), strict=False)
    for (name, some), mean, colour, filled in styles:
        heights = np.histogram(some, edges)[0] / (len(some) * np.diff(edges))
        axes.stairs(
            heights, edges, fill=filled, color=colour, alpha=0.3 if filled else 1.0, linewidth=1.4,
        )  # fmt: skip
        said = f"{plain(name)}: mean {mean:.4g}"
        axes.axvline(mean, color=colour, linewidth=1.4, linestyle=(0, (5, 3)), label=said)
    style(axes)
    grid_lines(axes)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0.0, None))
    axes.set_xlabel(plain(label), color=INK)
    axes.set_ylabel("density", color=INK)
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, loc="lower left", bbox_to_anchor=(0.0, 1.0),
        ncols=2, borderaxespad=0.2,
    )  # fmt: skip
    return figure
