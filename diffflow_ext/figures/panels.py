"""Parts of the pictures: palette, checks, clouds, densities, frames.

Only here matplotlib is imported, when the first picture is drawn.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = NDArray[np.float64]
Limits = tuple[float, float]
Box = tuple[Limits, Limits]
BLUE, ORANGE, INK, FAINT = "#1f4e8c", "#d2570c", "#22262b", "#c9ced6"
BLUE_RAMP = ("#ffffff", "#cfe0f3", "#7fb0dd", "#2f74b5", "#123a6d")
# Around the circle and back, all of middling lightness: none fades on white.
WHEEL = ("#2f74b5", "#2a9d8f", "#7a9e2e", "#e0a100", "#dd6a1a", "#c2335a", "#7b4bb3", "#2f74b5")
DPI = 150
BINS = 56
#: Bins of a histogram of few, and of many values.
FEWEST_BINS, MOST_BINS = 8, 60
#: Points that need no more blur.
MANY = 10_000
#: The ratio of lengths up to which two columns measure the same thing: of coordinates without
#: names of their own, and of others, which mostly have units of their own.
MOST_UNLIKE, NAMED_UNLIKE = 4.0, 1.5
SUFFIXES = (".png", ".pdf", ".svg")
#: In the head of each PNG file, by which it is known as one of ours.
SOFTWARE = "diffflow_ext"


def checked_path(op: str, path: str | os.PathLike[str], endings: tuple[str, ...]) -> Path:
    """Returns the path of a picture or film; its ending is known and its folder exists."""
    file = Path(path)
    if file.suffix.lower() not in endings:
        raise ValueError(
            f"{op}: expected a path ending in {', '.join(endings)}, got {str(file)!r}; "
            "add such an ending"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{op}: expected the folder {str(file.parent)!r} to exist; make it first"
        )
    return file


def finite_array(
    op: str, name: str, values: ArrayLike, ndim: int, gaps: Sequence[bool] = ()
) -> Array:
    """Returns values as a float64 array of so many axes, all finite; of tensors, the values.

    NaN may stand in those last entries, the columns, that `gaps` has.
    """
    detach = getattr(values, "detach", None)  # NumPy refuses a tensor with a graph.
    array = np.asarray(values if detach is None else detach(), np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"{op}: expected {name} with {ndim} axes and at least one value, got shape "
            f"{array.shape}; reshape it"
        )
    wrong = ~np.isfinite(array)
    if len(gaps):
        wrong &= ~(np.isnan(array) & np.asarray(gaps))
    if wrong.any():
        raise ValueError(
            f"{op}: expected finite {name}, {int(wrong.sum())} of {array.size} "
            "values are NaN or infinite; leave those rows out"
        )
    return array


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches, without a window."""
    try:
        figures = importlib.import_module("matplotlib.figure")
        agg = importlib.import_module("matplotlib.backends.backend_agg")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures: expected matplotlib, which is not installed; run: "
            "pip install 'diffflow_ext[plot]'"
        ) from error
    size = (width, height)
    figure = figures.Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    agg.FigureCanvasAgg(figure)
    # Notebooks show figures of pyplot by themselves, and others by this method.
    figure._repr_png_ = partial(png_bytes, figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": SOFTWARE})
    return stream.getvalue()


def plain(text: str) -> str:
    """Returns a text in which dollars are no marks of formulas."""
    return text.replace("$", r"\$")


def titled(figure: Figure, title: str, inches_above: float | None = None) -> Figure:
    """Puts a title above a figure, perhaps a fixed distance below its upper edge."""
    height = {} if inches_above is None else {"y": 1.0 - inches_above / figure.get_figheight()}
    figure.suptitle(plain(title), fontsize=13, color=INK, **height)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure to a file, the same bytes for the same figure; returns its path.

    Raises:
        FileNotFoundError: If the folder of the path does not exist.
        ValueError: If the path ends in none of `SUFFIXES`.
    """
    file = checked_path("save", path, SUFFIXES)
    # Without a date two pictures of the same numbers are the same bytes.
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    own = metadata.get(file.suffix.lower(), {"Software": SOFTWARE})
    with replacing(file) as aside:
        figure.savefig(aside, metadata=own)
    return file


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Gives a new path beside a file, and moves what is written there into the file's place.

    So a process that is killed while it writes leaves the file as it was.
    """
    # A new name each time: a file that is there belongs to somebody else.
    aside = file.with_name(f".tmp-{secrets.token_hex(8)}{file.suffix}")
    try:
        yield aside
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def style(panel: Axes) -> None:
    """Gives a panel the ticks and faint spines of all pictures."""
    panel.set_facecolor("white")
    panel.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK, length=3)
    panel.locator_params(nbins=5)
    for spine in panel.spines.values():
        spine.set_color(FAINT)


def grid_lines(panel: Axes) -> None:
    """Draws a faint grid behind the curves and leaves the panel open above and to the right."""
    panel.grid(True, color=FAINT, linewidth=0.5, alpha=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def frame(panel: Axes, limits: Box) -> None:
    """Sets square limits on a square panel: one unit is as long on both axes."""
    style(panel)
    panel.set_xlim(*limits[0])
    panel.set_ylim(*limits[1])
    panel.set_box_aspect(1.0)


def span(values: Array, spread: float = 0.998) -> Limits:
    """Returns limits around the middle part of the values, with a margin."""
    low, high = np.quantile(values, [0.5 - spread / 2.0, 0.5 + spread / 2.0])
    pad = 0.06 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def square(x: Limits, y: Limits, most: float = MOST_UNLIKE) -> Box:
    """Returns limits of the same length, so that shapes keep their proportions.

    Where one length is many times the other, they measure other things and stay as they are.
    """
    lengths = [high - low for low, high in (x, y)]
    if max(lengths) > most * min(lengths):
        return x, y
    half = max(lengths) / 2.0
    (left, right), (bottom, top) = x, y
    x_middle, y_middle = (left + right) / 2.0, (bottom + top) / 2.0
    return (x_middle - half, x_middle + half), (y_middle - half, y_middle + half)


def turns(points: Array) -> Array:
    """The direction of each point from the centre, in turns from 0 to 1.

    Columns count by their deviations: they may have other units.
    """
    x, y = ((points - points.mean(axis=0)) / (points.std(axis=0) + np.finfo(float).tiny)).T
    return np.arctan2(y, x) / (2.0 * np.pi) + 0.5


def coloured(turns: Array) -> Array:
    """Returns the colours of turns, shape (n, 4)."""
    colors = importlib.import_module("matplotlib.colors")
    return colors.LinearSegmentedColormap.from_list("wheel", list(WHEEL))(turns)


def cloud(panel: Axes, points: Array, colours: Array | str, limits: Box, size: float) -> None:
    """Draws points as dots, in one colour or each by its turn."""
    each = colours if isinstance(colours, str) else coloured(colours)
    panel.scatter(points[:, 0], points[:, 1], s=size, c=each, linewidths=0, rasterized=True)
    frame(panel, limits)


def bins_for(count: int) -> int:
    """Returns how many bins a histogram of so many values has: about their root."""
    return int(np.clip(round(count**0.5), FEWEST_BINS, MOST_BINS))


def _density(points: Array, box: Box, blur: float) -> Array:
    """Returns the shares of points in bins, blurred by so many; by more if points are few."""
    # The width of Scott's rule in two dimensions falls with the sixth root of the number.
    blur *= max(MANY / max(len(points), 1), 1.0) ** (1 / 6)
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=BINS, range=box)
    return ndimage.gaussian_filter(counts / max(len(points), 1), blur)


def _map(panel: Axes, density: Array, box: Box) -> None:
    colors = importlib.import_module("matplotlib.colors")
    top = float(np.quantile(density[density > 0.0], 0.995)) if density.any() else 1.0
    panel.imshow(
        density.T,
        origin="lower",
        extent=(*box[0], *box[1]),
        aspect="auto",
        cmap=colors.LinearSegmentedColormap.from_list("blue", BLUE_RAMP),
        # The root lets thin tails be seen beside sharp peaks.
        norm=colors.PowerNorm(0.5, vmin=0.0, vmax=top, clip=True),
    )


def _mass_levels(density: Array, masses: tuple[float, ...]) -> list[float]:
    """Heights above which the given parts of the mass lie, rising."""
    falling = np.sort(density.ravel())[::-1]
    mass = np.cumsum(falling)
    picks = [int(np.searchsorted(mass, part * mass[-1])) for part in masses]
    return sorted({float(falling[min(i, len(falling) - 1)]) for i in picks} - {0.0})


def marginal(panel: Axes, data: Array, samples: Array, edges: Array) -> None:
    """Draws the histograms of one column: data filled, samples as a line."""
    for values, colour, filled in ((data, BLUE, True), (samples, ORANGE, False)):
        height, _ = np.histogram(values, edges)
        density = height / (max(len(values), 1) * np.diff(edges))
        panel.stairs(
            density, edges, fill=filled, color=colour, alpha=0.3 if filled else 1.0, linewidth=1.4
        )
    style(panel)
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(bottom=0.0)


def overlay(panel: Axes, data: Array, samples: Array, box: Box) -> None:
    """The density of the data, and contours around the densest half and 90 % of the samples."""
    _map(panel, _density(data, box, 0.7), box)
    front = _density(samples, box, 1.3)
    levels = _mass_levels(front, (0.9, 0.5))
    if len(levels) > 1:
        middles = [np.linspace(low, high, 2 * BINS + 1)[1::2] for low, high in box]
        panel.contour(*middles, front.T, levels=levels, colors=ORANGE, linewidths=[0.9, 1.4])
    style(panel)
    panel.set_xlim(*box[0])
    panel.set_ylim(*box[1])


def legend(figure: Figure, data: str, samples: str) -> None:
    """Names the colours in the upper right corner, which a grid leaves empty."""
    patch = importlib.import_module("matplotlib.patches").Patch
    line = importlib.import_module("matplotlib.lines").Line2D
    handles = [patch(color=BLUE, alpha=0.4), line([], [], color=ORANGE, linewidth=1.6)]
    figure.legend(
        handles, [data, samples], loc="upper right", bbox_to_anchor=(0.98, 0.9), frameon=False,
        labelcolor=INK,
    )  # fmt: skip
