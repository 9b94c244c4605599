"""Pictures of paths: both processes of models at some times, and as a film."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .axes import Axis, axes_of, box_around, places_of
from .panels import (
    INK,
    Array,
    Box,
    checked_path,
    cloud,
    coloured,
    finite_array,
    new_figure,
    plain,
    replacing,
    titled,
    turns,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SNAPSHOTS = 6
FORWARD = "forward: data \N{RIGHTWARDS ARROW} noise"
REVERSE = "reverse: data \N{LEFTWARDS ARROW} noise"
FORWARD_ROW, REVERSE_ROW = "forward \N{RIGHTWARDS ARROW}", "\N{LEFTWARDS ARROW} reverse"
PANEL_INCHES, DOT = 1.5, 1.4
#: So many particles have a line.
LINES = 5
#: Endings of films; the second needs the program ffmpeg.
FILMS = (".gif", ".mp4")
FRAMES, STILL, FRAMES_PER_SECOND = 45, 10, 12.5
#: Small, so that texts are large: films are looked at on phones too.
FILM_INCHES, FILM_DPI = (5.4, 3.5), 130
#: Of a GIF file, which has 3 HUES + GREYS colours.
HUES, GREYS = 15, 18


class Paths(NamedTuple):
    """States of both processes of a model.

    Attributes:
        forward: States from data to noise, shape (N + 1, B, *event), `forward[i]` at `times[i]`.
        reverse: States, shape (N + 1, B', *event), `reverse[i]` at `times[i]` too: in the reverse
            order of a sampler, which starts from noise.
        times: The N + 1 times, increasing.
    """

    forward: ArrayLike
    reverse: ArrayLike
    times: ArrayLike


def trajectories(
    paths: Paths | Mapping[str, Paths],
    title: str,
    *,
    columns: Sequence[str | Axis] | None = None,
) -> Figure:
    """Draws snapshots of both processes of one model, or of several by their names.

    Of each model a row from data to noise and one from noise to data, which is read from right to
    left. Panels above each other share a time, so that in a trained model their clouds agree; all
    panels share their limits. A particle keeps the colour of its place in the data, and some have
    the line of their path behind them.

    Arguments:
        paths: States in two dimensions, of each model its own times.
        title: The title.
        columns: The two columns by their names, or as `Axis`; x1 and x2 if None.
    """
    op = "trajectories"
    models = {"": paths} if isinstance(paths, Paths) else paths
    if not models:
        raise ValueError(f"{op}: expected paths of at least one model, got none")
    axes = axes_of(op, columns, 2)
    checked = {name: _checked(op, one, axes) for name, one in models.items()}
    everything = [states for one in checked.values() for states in one[:2]]
    limits = box_around(axes, *(states[_picks(states)] for states in everything))
    count = max(len(_picks(states)) for states in everything)
    figure = new_figure(PANEL_INCHES * count + 1.3, PANEL_INCHES * len(everything) + 0.9)
    panels = figure.subplots(len(everything), count, squeeze=False)
    for i, (name, (forward, reverse, times)) in enumerate(checked.items()):
        own, picks = panels[2 * i : 2 * i + 2], _picks(forward)
        slots = np.linspace(0, count - 1, len(picks)).round().astype(int)
        for panel in np.delete(own, slots, axis=1).flat:
            panel.set_visible(False)
        for row, states, behind in ((0, forward, 1), (1, reverse, -1)):
            _draw_row(own[row, slots], states, picks[::behind], axes, limits)
            label = (FORWARD_ROW, REVERSE_ROW)[row]
            text = f"{plain(name)}\n{label}" if name else label
            own[row, 0].set_ylabel(text, fontsize=10, color=INK, rotation=0, ha="right",
                                   va="center")  # fmt: skip
        for panel, pick in zip(own[0, slots], picks, strict=True):
            panel.set_title(f"t = {times[pick]:.3g}", fontsize=9.5, color=INK)
    for panel in panels.flat:
        edge = {"left": panel in panels[:, 0], "bottom": panel in panels[-1]}
        panel.tick_params(**edge, labelleft=edge["left"], labelbottom=edge["bottom"])
    figure.supxlabel(axes[0].label, fontsize=10, color=INK)
    figure.supylabel(axes[1].label, fontsize=10, color=INK)
    return titled(figure, title)


def _draw_row(
    panels: Array, states: Array, picks: NDArray[np.integer], axes: Sequence[Axis], limits: Box
) -> None:
    """Draws states at the times picked, in the order of the process, and lines of some."""
    colours, first = turns(states[0]), picks[0]
    shown = np.argsort(colours)[np.linspace(0, len(colours), LINES, endpoint=False).astype(int)]
    for panel, i in zip(panels[:: 1 if first == 0 else -1], picks, strict=True):
        past = states[first : i + 1] if first == 0 else states[i : first + 1]
        cloud(panel, states[i], colours, limits, DOT)
        for path in past[:, shown].swapaxes(0, 1):
            panel.plot(*path.T, color=INK, linewidth=0.5, alpha=0.3, zorder=0.5)
        panel.scatter(*states[i, shown].T, s=5.0, c=INK, linewidths=0, zorder=3)
        for axis, of_panel, ends in zip(axes, (panel.xaxis, panel.yaxis), limits, strict=True):
            axis.mark(of_panel, ends)


def _picks(states: Array) -> NDArray[np.integer]:
    """Returns the indices of the states that are drawn."""
    return np.unique(np.linspace(0, len(states) - 1, SNAPSHOTS).round().astype(int))


def film(
    paths: Paths,
    path: str | os.PathLike[str],
    title: str,
    *,
    columns: Sequence[str | Axis] | None = None,
) -> Path:
    """Writes a film of both processes side by side: data to noise, and noise to data.

    It is written beside its place and moved there when it is whole.

    Arguments:
        paths: States in two dimensions.
        path: A file that ends in .gif, or in .mp4, which needs the program ffmpeg.
        title: The title.
        columns: The two columns by their names, or as `Axis`; x1 and x2 if None.

    Raises:
        FileNotFoundError: If the folder of the path does not exist, or ffmpeg is missing.
        ValueError: If the path has another ending, or shapes don't fit.
    """
    op = "film"
    file, axes = checked_path(op, path, FILMS), axes_of(op, columns, 2)
    states = _checked(op, paths, axes)
    if file.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise FileNotFoundError(
            f"{op}: expected the program ffmpeg for {file.name!r}, found none; install it, or "
            "write a .gif file"
        )
    picks = np.unique(np.linspace(0, len(states[2]) - 1, FRAMES).round().astype(int))
    # Films stand still at their ends, where one looks longest.
    frames = [*[picks[0]] * STILL, *picks, *[picks[-1]] * STILL]
    figure, draw = _stage(states, axes, title)
    animation = importlib.import_module("matplotlib.animation")
    made = animation.FuncAnimation(
        figure, lambda number: draw(frames[number], frames[-1 - number]), frames=len(frames),
        init_func=lambda: None, blit=False,
    )  # fmt: skip
    writer = _gif_writer() if file.suffix.lower() == ".gif" else animation.FFMpegWriter
    with replacing(file) as aside:
        made.save(str(aside), writer=writer(fps=FRAMES_PER_SECOND))
    return file


def _stage(
    states: tuple[Array, Array, Array], axes: Sequence[Axis], title: str
) -> tuple[Figure, Callable[[int, int], None]]:
    """Returns a figure of both processes, and a function that shows a state of each in it."""
    forward, reverse, times = states
    figure = new_figure(*FILM_INCHES)
    figure.set_dpi(FILM_DPI)
    panels, limits = figure.subplots(1, 2), box_around(axes, forward, reverse)
    for panel, start in zip(panels, (forward[0], reverse[-1]), strict=True):
        cloud(panel, start, turns(forward[0] if panel is panels[0] else reverse[0]), limits, 3.0)
        panel.set_xlabel(axes[0].label, color=INK)
        axes[0].mark(panel.xaxis, limits[0])
        axes[1].mark(panel.yaxis, limits[1])
    panels[0].set_ylabel(axes[1].label, color=INK)
    panels[1].tick_params(labelleft=False)

    def draw(i: int, j: int) -> None:
        pairs = ((forward, FORWARD, i), (reverse, REVERSE, j))
        for panel, (process, label, at) in zip(panels, pairs, strict=True):
            panel.collections[0].set_offsets(process[at])
            panel.set_title(f"{label}\nt = {times[at]:.3f}", fontsize=11, color=INK)

    draw(0, len(times) - 1)
    titled(figure, title)
    # A layout of each frame would let the panels tremble.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure, draw


def _gif_writer() -> type[Any]:
    """Returns a writer of GIF files that loop, whose frames share one palette: far less bytes."""
    animation = importlib.import_module("matplotlib.animation")
    image = importlib.import_module("PIL.Image")

    class Writer(animation.PillowWriter):
        def finish(self) -> None:
            palette = image.new("P", (1, 1))
            palette.putpalette(_palette().flatten().tolist())
            first, *others = [
                frame.convert("RGB").quantize(palette=palette, dither=image.Dither.NONE)
                for frame in self._frames
            ]
            first.save(
                self.outfile, save_all=True, append_images=others, optimize=True,
                duration=int(1000 / self.fps), loop=0,
            )  # fmt: skip

    return Writer


def _palette() -> NDArray[np.uint8]:
    """Returns the colours of a film: of dots and of texts, and both on their way to white."""
    dots = coloured(np.linspace(0.0, 1.0, HUES, endpoint=False))[:, :3]
    ink = np.array([int(INK[i : i + 2], 16) / 255.0 for i in (1, 3, 5)])
    parts = [1.0 - share * (1.0 - dots) for share in (1.0, 0.65, 0.3)]
    parts.append(1.0 - np.linspace(0.0, 1.0, GREYS)[:, None] * (1.0 - ink))
    return np.round(255.0 * np.concatenate(parts)).astype(np.uint8)


def _checked(op: str, paths: Paths, axes: Sequence[Axis]) -> tuple[Array, Array, Array]:
    """Returns places of states and times, all finite and of lengths that fit."""
    both = _states(op, "forward", paths.forward), _states(op, "reverse", paths.reverse)
    forward, reverse = (places_of(axes, states) for states in both)
    return forward, reverse, _times(op, paths.times, [len(forward), len(reverse)])


def _states(op: str, name: str, values: ArrayLike) -> Array:
    array = finite_array(op, name, values, 3)
    if len(array) < 2 or array.shape[2] != 2:
        raise ValueError(
            f"{op}: expected {name} of shape (N + 1, B, 2) with N >= 1, got {array.shape}; "
            "choose two columns"
        )
    return array


def _times(op: str, values: ArrayLike, lengths: list[int]) -> Array:
    grid = finite_array(op, "times", values, 1)
    if any(len(grid) != length for length in lengths) or np.any(np.diff(grid) <= 0.0):
        raise ValueError(
            f"{op}: expected increasing times, one for each state, got {len(grid)} times "
            f"for {lengths} states; give the grid of the paths"
        )
    return grid
