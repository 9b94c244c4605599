"""The pictures of a report, as data in its text: no file beside it, nothing from the net."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import listed
from diffflow_ext.data.formats.tables import Table
from diffflow_ext.figures.frames import cloud_frames, image_frame
from diffflow_ext.figures.histogram import histograms
from diffflow_ext.figures.panels import INK, png_bytes
from diffflow_ext.figures.points import MAX_CORNER
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import quantise

from ..parallel.distributed import World
from ..recipes.base import EvaluationSettings
from ..store.inputs import model_inputs
from .loaded_run import LoadedRun
from .pictures import figure_of_samples, loss_figure
from .sampling import EVALUATION_STREAM
from .scoring import log_probs, pick_estimator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Times at which states are drawn.
FRAMES = 26
#: Particles, and images, that are followed.
PARTICLES, FOLLOWED_IMAGES = 1500, 16
#: Test rows whose log p is computed, as many as `evaluate` takes for an ODE; samples; and images
#: of each, of which a bound takes long.
SCORED, SCORED_SAMPLES, SCORED_IMAGES = 2000, 1000, 16
SHOWN_IMAGES = 64
FINE = 220  # pixels an inch
#: The height of a curve's axis may grow by this factor to show the Gaussian's level.
MOST_HIGHER = 2.5
#: The number of a log line that may be compared with the Gaussian: nats in the same units.
LIKELIHOODS = ("bound", "nll")
#: Kinds whose coordinate is the value itself, but for a shift and a scale.
LINEAR = ("continuous", "integer")


@dataclass(frozen=True)
class Picture:
    """A picture in the text of a page.

    Arguments:
        png: The PNG file.
        alt: What it shows, for those who don't see it.
    """

    png: bytes
    alt: str

    @property
    def source(self) -> str:
        """The file as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return struct.unpack(">II", self.png[16:24])


@dataclass(frozen=True)
class Curve:
    """The training curve, the steps at which N changes, and the Gaussian's level."""

    picture: Picture
    label: str
    switches: Sequence[tuple[int, int]]
    gaussian: float | None


@dataclass(frozen=True)
class Slider:
    """Pictures of the reverse process from noise to data, each with its time, and of the data."""

    data: Picture
    states: Sequence[tuple[str, Picture]]
    caption: str


@dataclass(frozen=True)
class Densities:
    """Histograms of log p, and what they are of."""

    picture: Picture
    estimator: str
    caption: str


def curve_of(run: LoadedRun, evaluation: Mapping[str, Any] | None) -> Curve | None:
    """Returns the training curve; None if the run has no log."""
    name, label = run.recipe.curve
    lines = [line for line in run.history() if name in line]
    if not lines:
        return None
    figure = loss_figure(run)
    axes = figure.axes[0]
    figure.suptitle("")
    _resize(figure)
    level = evaluation["gaussian_nll"] if evaluation and name in LIKELIHOODS else None
    if level is not None:
        low, high = axes.get_ylim()
        if low < level < low + MOST_HIGHER * (high - low):
            axes.axhline(level, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="Gaussian")
            axes.set_ylim(low, max(high, level + 0.06 * (high - low)))
            # Curves fall: the lower left corner is empty.
            axes.legend(frameon=False, fontsize=9, loc="lower left", labelcolor=INK)
    first, last = lines[0], lines[-1]
    alt = (
        f"{label} against the training step: {first[name]:.4g} at step {first['step']:,},"
        f" {last[name]:.4g} at step {last['step']:,}"
    )
    return Curve(Picture(png_bytes(figure), alt), label, _switches(lines), level)


def _resize(figure: Figure) -> None:
    """Gives a chart a size in which its letters can be read on a phone, and more pixels."""
    figure.set_size_inches(5.0, 3.2)
    figure.set_dpi(FINE)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        axis.label.set_size(9)


def _switches(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Returns the logged steps from which on N is another number, and that number."""
    found = list[tuple[int, int]]()
    for line in lines:
        count = line.get("num_steps")
        if count is not None and (not found or found[-1][1] != count):
            found.append((line["step"], count))
    return found


def slider_of(run: LoadedRun, dataset: Dataset) -> Slider | str:
    """Returns states of the reverse process, or why there are none."""
    if dataset.encoding is not None and dataset.dim < 2:
        return "The data have one column, which is drawn below."
    count = FOLLOWED_IMAGES if dataset.is_image else PARTICLES
    key = NoiseKey(0, stream=EVALUATION_STREAM)
    device = next(run.model.parameters()).device
    x0 = model_inputs(dataset.encoding, dataset.test[:count], key)
    with torch.no_grad():
        paths = run.recipe.given(dataset.given_of("test")).paths(x0.to(device), key)
    if paths is None:
        return (
            f"The model {run.config.name} has no diffusion whose states could be shown: its"
            " samples are a map of noise."
        )
    times, reverse = np.asarray(paths.times), torch.as_tensor(paths.reverse).cpu()
    picks = np.unique(np.linspace(0, len(times) - 1, FRAMES).round().astype(int))[::-1].copy()
    states, shown = reverse[picks], [f"t = {times[i]:.3g}" for i in picks]
    if dataset.encoding is None:
        return _image_slider(dataset, states, shown)
    return _cloud_slider(dataset.encoding, dataset.test[:count], x0, states, shown)


def _image_slider(dataset: Dataset, states: Tensor, shown: Sequence[str]) -> Slider:
    pictures = [Picture(image_frame(quantise(state).numpy()), "") for state in states]
    count = states.shape[1]
    named = [
        (time, Picture(picture.png, f"The states of {count} samples at {time}"))
        for time, picture in zip(shown, pictures, strict=True)
    ]
    data = Picture(image_frame(dataset.test[:count].numpy()), f"{count} images of the test data")
    return Slider(data, named, f"{count} samples on their way from noise to images.")


def _cloud_slider(
    encoding: Encoding, rows: Tensor, x0: Tensor, states: Tensor, shown: Sequence[str]
) -> Slider | str:
    """Returns states of two columns: the first two of numbers, else of all coordinates."""
    numbers = [i for i, column in enumerate(encoding.columns) if column.kind != "category"]
    pair = numbers[:2] if len(numbers) > 1 else [0, 1]
    # Where a value is missing, its coordinate is noise.
    known = ~_missing(encoding, rows.double(), pair)
    ends = ~_missing(encoding, encoding.decoded(states[-1]), pair)
    ends &= states[..., pair].isfinite().all(-1).all(0)
    if not (known.any() and ends.any()):
        return "There is no row, or no sample, whose first two numbers aren't missing."
    data, moving = (x.double()[..., pair] for x in (x0[known], states[:, ends]))
    names = list[str]()
    for k, i in enumerate(pair):
        column = encoding.columns[i] if i < len(encoding.columns) else None
        if column is not None and column.kind in LINEAR and not column.spread:
            names.append(column.name)
            for points in (data, moving):
                points[..., k] = column.mean + column.std * points[..., k]
        else:
            names.append(f"{encoding.coordinates[i]}, as the model sees it")
    still, frames = cloud_frames(data, moving, (names[0], names[1]))
    both = " and ".join(names)
    named = [
        (time, Picture(png, f"{both} of the samples at {time}"))
        for time, png in zip(shown, frames, strict=True)
    ]
    caption = f"{both}. Each particle keeps the colour of the place where it ends."
    return Slider(Picture(still, f"{both} of the test data"), named, caption)


def _missing(encoding: Encoding, values: Tensor, pair: Sequence[int]) -> Tensor:
    """Returns in which rows one of two coordinates belongs to a number that is missing."""
    own = [i for i in pair if i < len(encoding.columns)]
    return values[:, own].isnan().any(1)


def samples_pictures(dataset: Dataset, samples: Tensor) -> tuple[dict[str, Picture], str]:
    """Returns pictures of samples and test data by name, or "both" in one, and a caption."""
    if dataset.encoding is None:
        count = min(SHOWN_IMAGES, len(dataset.test), len(samples))
        shown = {"Test data": dataset.test[:count], "Samples": quantise(samples[:count])}
        pictures = {
            name: Picture(image_frame(images.numpy()), f"{count} images: {name.lower()}")
            for name, images in shown.items()
        }
        return pictures, f"{count} images of the test data, and {count} samples."
    figure = figure_of_samples(dataset, samples)
    figure.suptitle("")
    names = dataset.encoding.coordinates
    count = f"{len(samples):,} samples and {len(dataset.test):,} test rows"
    some = "" if len(names) <= MAX_CORNER else f"The first {MAX_CORNER} of {len(names)} columns, "
    what = f"{some}{listed(names[:MAX_CORNER])}" if some else listed(names)
    caption = f"{what}: {count}."
    both = Picture(png_bytes(figure), f"{what}: test data in blue, samples in orange")
    return {"both": both}, caption


def densities_of(run: LoadedRun, dataset: Dataset, samples: Tensor) -> Densities:
    """Returns histograms of log p of test data and of samples, in the units of the data."""
    most, few = (SCORED_IMAGES,) * 2 if dataset.is_image else (SCORED, SCORED_SAMPLES)
    given, values, title = dataset.given_of("test"), dict[str, Tensor](), ""
    groups = {"test data": dataset.test[:most], "samples": _as_stored(run, samples[:few])}
    for name, rows in groups.items():
        own = None if given is None else given[torch.arange(len(rows)) % len(given)]
        recipe = run.recipe.given(own)
        estimator = pick_estimator(recipe, None, EvaluationSettings())
        density, weight = log_probs(recipe, estimator, dataset.encoding, rows, 0, World())
        found, title = density + weight, estimator.title
        values[name] = found[found.isfinite()]
    values = {name: some for name, some in values.items() if len(some)}
    means = {name: float(some.mean()) for name, some in values.items()}
    said = [_said(run, name, len(values[name]), mean) for name, mean in means.items()]
    label = "log p of an image [nats]" if dataset.is_image else "log p of a row [nats]"
    figure, caption = histograms(values, label), "; ".join(said)
    _resize(figure)
    picture = Picture(png_bytes(figure), f"Histograms of {label}: {caption}")
    return Densities(picture, title, caption)


def _said(run: LoadedRun, name: str, count: int, mean: float) -> str:
    bits = ""
    if run.record.is_image:
        bits = f", {-mean / (run.record.dim * math.log(2.0)):.4g} bits a dimension"
    return f"{name}: mean {mean:.4g} nats{bits} (n = {count:,})"


def _as_stored(run: LoadedRun, samples: Tensor) -> Tensor:
    """Returns samples, in the units of training, as rows of a data set."""
    encoding = run.record.encoding
    if encoding is None:
        return quantise(samples)
    values = run.record.in_data_units(samples).numpy()
    texts = {c.name: [*map(str, c.values)] for c in encoding.columns if c.is_text}
    return encoding.stored(Table(values, [*encoding.names], "samples", categories=texts))
