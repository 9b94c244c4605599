"""The pictures of a report, as data in its text: no file beside it, nothing from the net."""

from __future__ import annotations

import base64
import io
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
from diffflow_ext.figures.frames import MAX_POINTS, cloud_frames, image_frame
from diffflow_ext.figures.histogram import histograms
from diffflow_ext.figures.panels import SOFTWARE
from diffflow_ext.figures.points import MAX_CORNER
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import quantise

from ..config.fields import NFDMConfig
from ..parallel.distributed import World
from ..recipes.base import EvaluationSettings
from ..store.inputs import model_inputs
from .axes import chosen, state_axes, state_values
from .curve import TrainingCurve, training_curve
from .loaded_run import LoadedRun
from .pictures import figure_of_curve, figure_of_samples
from .sampling import EVALUATION_STREAM
from .scoring import log_probs, pick_estimator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Times at which states are drawn.
FRAMES = 26
#: Images that are followed, fewer of large ones.
FOLLOWED_IMAGES, FOLLOWED_BYTES = 16, 16 * 3 * 32 * 32
#: Test rows whose log p is computed, as many as `evaluate` takes for an ODE; samples; and images
#: of each, of which a bound takes long.
SCORED, SCORED_SAMPLES, SCORED_IMAGES = 2000, 1000, 16
SHOWN_IMAGES, SHOWN_BYTES = 64, 64 * 3 * 32 * 32
FINE = 220  # pixels an inch
#: Of a picture to one of the page, for letters of about its size.
PIXELS = 1.4


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
        """Width and height on the page, where nothing else is said."""
        width, height = struct.unpack(">II", self.png[16:24])
        return round(width / PIXELS), round(height / PIXELS)


@dataclass(frozen=True)
class DrawnCurve:
    """The training curve, drawn and as numbers."""

    picture: Picture
    numbers: TrainingCurve

    @property
    def label(self) -> str:
        """What it is, as the beginning of a sentence."""
        return f"{self.numbers.label[0].upper()}{self.numbers.label[1:]}"


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
    reading: str


def fitting(most: int, size: int, shape: Sequence[int]) -> int:
    """Returns how many images of a shape have so many bytes, at least 1 and at most `most`."""
    return min(most, max(1, size // math.prod(shape)))


def curve_of(run: LoadedRun, evaluation: Mapping[str, Any] | None) -> DrawnCurve | None:
    """Returns the training curve; None if the run has no log."""
    curve = training_curve(run, evaluation)
    if curve is None:
        return None
    figure = figure_of_curve(run, curve)
    figure.suptitle("")
    _resize(figure)
    first, last = (f"{curve.values[i]:.4g} at step {curve.steps[i]:,}" for i in (0, -1))
    alt = f"{curve.label} against the training step: {first}, {last}"
    return DrawnCurve(Picture(_png(figure), alt), curve)


def _png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file, without the room of a title."""
    stream = io.BytesIO()
    figure.savefig(
        stream, format="png", bbox_inches="tight", pad_inches=0.05, metadata={"Software": SOFTWARE}
    )
    return stream.getvalue()


def _resize(figure: Figure) -> None:
    """Gives a chart a size in which its letters can be read on a phone, and more pixels."""
    figure.set_size_inches(5.0, 3.2)
    figure.set_dpi(FINE)
    axes = figure.axes[0]
    axes.set_xlabel(axes.get_xlabel(), fontsize=9)
    axes.set_ylabel(axes.get_ylabel(), fontsize=9)


def slider_of(run: LoadedRun, dataset: Dataset) -> Slider | str:
    """Returns states of the reverse process, or why there are none."""
    if len(dataset.columns) == 1:
        return "The data have one column, which is drawn below."
    count = MAX_POINTS
    if dataset.is_image:
        count = fitting(FOLLOWED_IMAGES, FOLLOWED_BYTES, dataset.event_shape)
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
    return _cloud_slider(dataset.encoding, x0, states, shown)


def _image_slider(dataset: Dataset, states: Tensor, shown: Sequence[str]) -> Slider:
    count = states.shape[1]
    named = [
        (time, Picture(image_frame(quantise(state).numpy()), f"{count} samples at {time}"))
        for time, state in zip(shown, states, strict=True)
    ]
    data = Picture(image_frame(dataset.test[:count].numpy()), f"{count} images of the test data")
    return Slider(data, named, f"{count} samples on their way from noise to images.")


def _cloud_slider(
    encoding: Encoding, x0: Tensor, states: Tensor, shown: Sequence[str]
) -> Slider | str:
    """Returns states of two columns."""
    pair = chosen("report", encoding, None, 2)
    both = " and ".join(encoding.names[i] for i in pair)
    states = states[:, states.isfinite().flatten(2).all(2).all(0)]
    # From data to noise, in which a value that is missing at the first state has no place.
    moving = state_values(encoding, states.flip(0), pair)[::-1]
    still = state_values(encoding, x0[None], pair)[0]
    if not (still.size and moving.size):
        return f"There is no test row, or no sample, with a value of {both}."
    data, frames = cloud_frames(still, moving, state_axes(encoding, pair))
    named = [
        (time, Picture(png, f"{both} of the samples at {time}"))
        for time, png in zip(shown, frames, strict=True)
    ]
    caption = f"{both}. Each particle keeps the colour of the place where it ends."
    return Slider(Picture(data, f"{both} of the test data"), named, caption)


def samples_pictures(dataset: Dataset, samples: Tensor) -> tuple[dict[str, Picture], str]:
    """Returns pictures of samples and test data by name, or "both" in one, and a caption."""
    if dataset.encoding is None:
        count = fitting(SHOWN_IMAGES, SHOWN_BYTES, dataset.event_shape)
        count = min(count, len(dataset.test), len(samples))
        shown = {"Test data": dataset.test[:count], "Samples": quantise(samples[:count])}
        pictures = {
            name: Picture(image_frame(images.numpy()), f"{count} images: {name.lower()}")
            for name, images in shown.items()
        }
        return pictures, f"{count} images of the test data, and {count} samples{_given(dataset)}."
    figure = figure_of_samples(dataset, samples)
    figure.suptitle("")
    names = dataset.encoding.names
    count = f"{len(dataset.test):,} test rows and {len(samples):,} samples"
    some = "" if len(names) <= MAX_CORNER else f"The first {MAX_CORNER} of {len(names)} columns, "
    what = f"{some}{listed(names[:MAX_CORNER])}" if some else listed(names)
    count = "equally many of each" if len(names) == 2 else count
    caption = f"{what}: {count}{_given(dataset)}."
    both = Picture(_png(figure), f"{what}: test data in blue, samples in orange")
    return {"both": both}, caption


def _given(dataset: Dataset) -> str:
    return ", which are given the conditions of the test data" if dataset.given else ""


def usable(dataset: Dataset, samples: Tensor) -> Tensor:
    """Returns which samples are finite, in the units of the data too, shape (n,)."""
    finite = samples.flatten(1).isfinite().all(1)
    if dataset.encoding is None:
        return finite
    values = dataset.encoding.decoded(samples)
    gaps = torch.tensor([column.missing for column in dataset.encoding.columns])
    return finite & (values.isfinite() | (values.isnan() & gaps)).all(1)


def densities_of(run: LoadedRun, dataset: Dataset, samples: Tensor) -> Densities | str:
    """Returns histograms of log p of test data and of samples, in the units of the data.

    Samples are all that `samples_like_test` has returned, because they are given the conditions of
    the test data in turn. Those that aren't finite are left out.
    """
    most, few = (SCORED_IMAGES,) * 2 if dataset.is_image else (SCORED, SCORED_SAMPLES)
    finite = usable(dataset, samples).nonzero().flatten()[:few]
    rows = dataset.test[:most]
    groups = {
        "test data": (rows, torch.arange(len(rows))),
        "samples": (_as_stored(run, samples[finite]), finite),
    }
    given, values, said, title = dataset.given_of("test"), dict[str, Tensor](), list[str](), ""
    for name, (rows, places) in groups.items():
        recipe = run.recipe.given(None if given is None else given[places % len(given)])
        estimator = pick_estimator(recipe, None, EvaluationSettings())
        density, weight = log_probs(recipe, estimator, dataset.encoding, rows, 0, World())
        found, title = density + weight, estimator.title
        said.append(_said(run, name, found))
        if found.isfinite().any():
            values[name] = found[found.isfinite()]
    if not values:
        return "No log p of test data or samples is finite."
    label = "log p of an image [nats]" if dataset.is_image else "log p of a row [nats]"
    figure, caption = histograms(values, label), f"Means: {', '.join(said)}"
    _resize(figure)
    picture = Picture(_png(figure), f"Histograms of {label}: {caption}")
    return Densities(picture, f"{title[0].upper()}{title[1:]}", caption, _reading(run))


def _reading(run: LoadedRun) -> str:
    """Returns what samples and the density are of, and when both histograms agree."""
    agree = "Samples that are distributed as the data have the same histogram."
    estimator = pick_estimator(run.recipe, None, EvaluationSettings())
    if estimator.name != "ode":
        return agree
    drawn = "The samples are drawn with noise in every step, by the SDE; log p is that of the ODE"
    if isinstance(run.config, NFDMConfig) and run.config.model.forward == "learned":
        return f"{drawn}, which with a learned forward process is another model."
    return f"{drawn}. {agree}"


def _said(run: LoadedRun, name: str, found: Tensor) -> str:
    """Returns the mean of finite numbers, in nats and of images also in bits, and how many."""
    finite = found[found.isfinite()]
    without = f", and {len(found) - len(finite):,} not finite" if len(finite) < len(found) else ""
    if not len(finite):
        return f"{name} none (none of {len(found):,} finite)"
    mean, bits = float(finite.mean()), ""
    if run.record.is_image:
        bits = f", {-mean / (run.record.dim * math.log(2.0)):.4g} bits a dimension"
    return f"{name} {mean:.4g} nats{bits} (n = {len(finite):,}{without})"


def _as_stored(run: LoadedRun, samples: Tensor) -> Tensor:
    """Returns samples, in the units of training, as rows of a data set."""
    encoding = run.record.encoding
    if encoding is None:
        return quantise(samples)
    values = run.record.in_data_units(samples).numpy()
    texts = {c.name: tuple(map(str, c.values)) for c in encoding.columns if c.is_text}
    return encoding.stored(Table(values, [*encoding.names], "samples", categories=texts))
