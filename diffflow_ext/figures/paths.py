"""Pictures of paths: both processes of models at some times, and as a film."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .panels import (
    INK,
    Array,
    Box,
    checked_path,
    cloud,
    finite_array,
    new_figure,
    plain,
    square,
    titled,
    turns,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SNAPSHOTS = 6
FORWARD = "forward: data \N{RIGHTWARDS ARROW} noise"
REVERSE = "reverse: data \N{LEFTWARDS ARROW} noise"
#: Endings of films; the second needs the program ffmpeg.
FILMS = (".gif", ".mp4")
FRAMES, STILL, FRAMES_PER_SECOND = 60, 12, 20


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


def trajectories(paths: Paths | Mapping[str, Paths], title: str) -> Figure:
    """Draws snapshots of both processes of one model, or of several by their names.

    Of each model a row from data to noise and one from noise to data, which is read from right to
    left. Columns share a time, so that in a trained model the two clouds of a column agree. A
    particle keeps the colour of its place in the data.

    Arguments:
        paths: States in two dimensions, of each model its own times.
        title: The title.
    """
    op = "trajectories"
    models = {"": paths} if isinstance(paths, Paths) else paths
    if not models:
        raise ValueError(f"{op}: expected paths of at least one model, got none")
    checked = {name: _checked(op, one) for name, one in models.items()}
    everything = [states for one in checked.values() for states in one[:2]]
    shown = [states[_picks(states)].reshape(-1, 2) for states in everything]
    limits = square(np.concatenate(shown))
    columns = max(len(_picks(states)) for states in everything)
    figure = new_figure(1.75 * columns + 0.5, 1.75 * len(everything) + 0.75)
    axes = figure.subplots(len(everything), columns, squeeze=False)
    for i, (name, (forward, reverse, times)) in enumerate(checked.items()):
        rows = zip((forward, reverse), axes[2 * i : 2 * i + 2], (FORWARD, REVERSE), strict=True)
        for states, panels, label in rows:
            _draw_row(panels, states, limits)
            panels[0].set_ylabel(
                f"{plain(name)}\n{label}" if name else label, fontsize=10, color=INK
            )
        for panel, pick in zip(axes[2 * i], _picks(forward), strict=False):
            panel.set_title(f"t = {times[pick]:.3g}", fontsize=10, color=INK)
    return titled(figure, title)


def _draw_row(panels: Array, states: Array, limits: Box) -> None:
    colours, picks = turns(states[0]), _picks(states)
    for panel in panels[len(picks) :]:
        panel.set_visible(False)
    for panel, i in zip(panels, picks, strict=False):
        _draw_cloud(panel, states[i], colours, limits)


def _draw_cloud(panel: Axes, points: Array, colours: Array, limits: Box) -> None:
    cloud(panel, points, colours, limits, 2.2)
    panel.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)


def _picks(states: Array) -> NDArray[np.integer]:
    """Returns the indices of the states that are drawn."""
    return np.unique(np.linspace(0, len(states) - 1, SNAPSHOTS).round().astype(int))


def film(paths: Paths, path: str | os.PathLike[str], title: str) -> Path:
    """Writes a film of both processes side by side: data to noise, and noise to data.

    Arguments:
        paths: States in two dimensions.
        path: A file that ends in .gif, or in .mp4, which needs the program ffmpeg.
        title: The title.

    Raises:
        FileNotFoundError: If the folder of the path does not exist, or ffmpeg is missing.
        ValueError: If the path has another ending, or shapes don't fit.
    """
    op = "film"
    file = checked_path(op, path, FILMS)
    forward, reverse, times = _checked(op, paths)
    if file.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise FileNotFoundError(
            f"{op}: expected the program ffmpeg for {file.name!r}, found none; install it, or "
            "write a .gif file"
        )
    figure = new_figure(7.4, 4.4)
    figure.set_dpi(100)
    panels = figure.subplots(1, 2)
    titled(figure, title)
    limits = square(np.concatenate([forward.reshape(-1, 2), reverse.reshape(-1, 2)]))
    colours = [turns(states[0]) for states in (forward, reverse)]
    picks = np.unique(np.linspace(0, len(times) - 1, FRAMES).round().astype(int))
    # Films stand still at their ends, where one looks longest.
    frames = [*[picks[0]] * STILL, *picks, *[picks[-1]] * STILL]

    def draw(number: int) -> None:
        for panel, states, colour, label, i in zip(
            panels, (forward, reverse), colours, (FORWARD, REVERSE),
            (frames[number], frames[len(frames) - 1 - number]), strict=True,
        ):  # fmt: skip
            panel.clear()
            _draw_cloud(panel, states[i], colour, limits)
            panel.set_title(f"{label}, t = {times[i]:.3g}", fontsize=10, color=INK)

    animation = importlib.import_module("matplotlib.animation")
    writer = animation.PillowWriter if file.suffix.lower() == ".gif" else animation.FFMpegWriter
    made = animation.FuncAnimation(figure, draw, frames=len(frames), blit=False)
    made.save(str(file), writer=writer(fps=FRAMES_PER_SECOND))
    return file


def _checked(op: str, paths: Paths) -> tuple[Array, Array, Array]:
    """Returns states in two dimensions and times, all finite and of lengths that fit."""
    forward, reverse = _states(op, "forward", paths.forward), _states(op, "reverse", paths.reverse)
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
