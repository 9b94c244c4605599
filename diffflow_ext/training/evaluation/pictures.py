"""The figures of a run: samples beside data, both processes, the training curve.

They are figures of matplotlib, which notebooks show and `figures.save` writes:
``sample_figure(load_run("runs/moons"))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.figures.images import image_grid
from diffflow_ext.figures.panels import save
from diffflow_ext.figures.points import loss_curve, samples_beside_data, trajectories
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import quantise

from ..store.inputs import model_inputs
from .loaded_run import LoadedRun
from .run_data import open_run_data, samples_like_test
from .sampling import EVALUATION_STREAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAJECTORIES = 2000
IMAGES = 100


def sample_figure(
    run: LoadedRun, data: Any = None, *, n: int | None = None, seed: int = 0, **options: Any
) -> Figure:
    """Draws samples of a run beside its test data, as the model sees them; images as a grid.

    Samples of a run with conditions are given those of the test data.

    Arguments:
        run: The run.
        data: The data of the run, if they were in memory; or where they are now, if they moved.
        n: The number of samples; by default 10,000, of images 100.
        seed: The seed of the samples.
        options: Options of the sampler, as of `LoadedRun.sample`.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        FileNotFoundError: If the data aren't there.
        ValueError: If they aren't those of the run, or an option is wrong.
    """
    dataset = open_run_data(run, data)
    count = n or (IMAGES if run.record.is_image else 10_000)
    return figure_of_samples(dataset, samples_like_test(run, dataset, count, seed=seed, **options))


def path_figure(run: LoadedRun, data: Any = None, *, seed: int = 0) -> Figure:
    """Draws both processes of a run of at least two columns in the first two coordinates.

    Arguments and errors are those of `sample_figure`.

    Raises:
        ValueError: Also if the run has images or one column, or its model has no such processes.
    """
    figure = _paths(run, open_run_data(run, data), seed)
    if figure is None:
        raise ValueError(
            "path_figure: expected a run of diffflow and of two columns or more, got"
            f" {run!r}; take sample_figure"
        )
    return figure


def loss_figure(run: LoadedRun) -> Figure:
    """Draws the training curve of a run: its bound, or its loss where the log has none.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If the run has no log, as that of an estimator.
    """
    figure = _curve(run, run.history())
    if figure is None:
        raise ValueError(
            "loss_figure: expected a run with a log, metrics.jsonl in its folder, got"
            f" {run!r}; load one by load_run"
        )
    return figure


def draw_pictures(
    folder: Path, run: LoadedRun, dataset: Dataset, samples: Tensor, seed: int
) -> None:
    """Draws all pictures of a run into a folder."""
    drawn: dict[str, Figure | None] = {"samples": figure_of_samples(dataset, samples)}
    if dataset.is_image:
        drawn["data"] = image_grid(dataset.test[:IMAGES], f"{dataset.name}: test data")
    drawn["trajectories"] = _paths(run, dataset, seed)
    drawn["loss"] = _curve(run, run.history())
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        if figure is not None:
            save(figure, folder / f"{name}.png")


def figure_of_samples(dataset: Dataset, samples: Tensor) -> Figure:
    """Draws samples, in the units of training, beside a run's test data; images as a grid."""
    if dataset.encoding is None:
        shown = quantise(samples[:IMAGES])
        return image_grid(shown, f"{dataset.name}: {len(shown)} samples")
    title = f"{dataset.name}: {len(samples)} samples, {dataset.encoding.units}"
    names = dataset.encoding.coordinates
    return samples_beside_data(_inputs(dataset), samples, title, columns=names)


def _inputs(dataset: Dataset) -> Tensor:
    key = NoiseKey(0, stream=EVALUATION_STREAM)
    return model_inputs(dataset.encoding, dataset.test, key)


def _curve(run: LoadedRun, history: Sequence[Mapping[str, Any]]) -> Figure | None:
    name, label = run.recipe.curve
    lines = [line for line in history if name in line]
    if not lines:
        return None
    steps, values = [line["step"] for line in lines], [line[name] for line in lines]
    return loss_curve(steps, values, title=f"{run.record.name}: training", label=label)


def _paths(run: LoadedRun, dataset: Dataset, seed: int) -> Figure | None:
    if dataset.encoding is None or dataset.dim < 2:
        return None
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    device = next(run.model.parameters()).device
    with torch.no_grad():
        recipe = run.recipe.given(dataset.given_of("test"))
        paths = recipe.paths(_inputs(dataset)[:TRAJECTORIES].to(device), key)
    if paths is None:
        return None
    forward, reverse, times = paths
    columns = dataset.encoding.coordinates
    title = f"{dataset.name}: {columns[0]} and {columns[1]}, {dataset.encoding.units}"
    return trajectories(forward[..., :2].cpu(), reverse[..., :2].cpu(), times, title)
