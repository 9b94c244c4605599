"""How the pictures of the pages look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#22262b", "#c9ced6"
COLOURS = ("#1f4e8c", "#d2570c", "#2a9d8f", "#7b4bb3", "#c2335a", "#7a9e2e", "#6b7280")
MARKERS = "osD^vPX"
DPI = 130


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path


def plain(panel: Axes) -> None:
    panel.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    panel.grid(True, color=FAINT, linewidth=0.5, alpha=0.6)
    for side, spine in panel.spines.items():
        spine.set_color(FAINT)
        spine.set_visible(side in ("left", "bottom"))
