"""The figures of a run: samples beside data, both processes, the training curve.

They are figures of matplotlib, which notebooks show and `figures.save` writes:
``sample_figure(load_run("runs/moons"))``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.figures.images import image_grid, image_rows
from diffflow_ext.figures.panels import save
from diffflow_ext.figures.paths import FORWARD, REVERSE, Paths, film, trajectories
from diffflow_ext.figures.points import loss_curve, samples_beside_data
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
#: Times at which one image is drawn.
IMAGES_OF_PATH = 9


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
    count = n if n is not None else IMAGES if run.record.is_image else 10_000
    return figure_of_samples(dataset, samples_like_test(run, dataset, count, seed=seed, **options))


def path_figure(
    runs: LoadedRun | Mapping[str, LoadedRun], data: Any = None, *, seed: int = 0
) -> Figure:
    """Draws both processes of a run, or of several by their names, at some times.

    Of tables the first two coordinates are shown, of images one from the data and one sample.
    Forward states of a process that is not simulated in training (all but those of DiffFlow) have
    its distribution at each time.

    Arguments:
        runs: The run, or runs of the same data.
        data: As of `sample_figure`.
        seed: The seed of the samples.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        FileNotFoundError: If the data aren't there.
        ValueError: If they aren't those of all runs, have one column, or a model has no such
            processes.
    """
    named = {"": runs} if isinstance(runs, LoadedRun) else dict(runs)
    _require_same_data(named)
    dataset = open_run_data(next(iter(named.values())), data)
    paths = dict[str, Paths]()
    for name, run in named.items():
        found = _paths(run, dataset, seed)
        if found is None:
            raise ValueError(
                f"path_figure: expected runs with two columns or more, or of images, and with"
                f" processes (no flow), got {run!r}; take sample_figure"
            )
        paths[name] = found
    return _figure_of_paths(dataset, paths)


def _require_same_data(runs: Mapping[str, LoadedRun]) -> None:
    """Refuses no runs, and runs of different data: their axes would be others."""
    if not runs:
        raise ValueError("path_figure: expected at least one run, got none")
    (first, one), *others = runs.items()
    for name, run in others:
        if run.record.fingerprint == one.record.fingerprint:
            continue
        others_are = "values"
        if run.record.name != one.record.name:
            others_are = f"data, {run.record.name} and {one.record.name}"
        elif run.record.columns != one.record.columns:
            others_are = "columns"
        raise ValueError(
            f"path_figure: expected runs of the same data, {name!r} and {first!r} have other"
            f" {others_are}; compare those that have the same"
        )


def film_of_paths(run: LoadedRun, path: str | Path, data: Any = None, *, seed: int = 0) -> Path:
    """Writes a film, .gif or .mp4, of both processes of a run in the first two coordinates.

    Arguments and errors are those of `path_figure`; see `figures.film`.
    """
    dataset = open_run_data(run, data)
    paths = None if dataset.is_image else _paths(run, dataset, seed)
    if paths is None:
        raise ValueError(
            f"film_of_paths: expected a run of two columns or more with processes, got {run!r};"
            " take sample_figure"
        )
    return film(paths, path, _title_of_paths(dataset))


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
    paths = _paths(run, dataset, seed)
    drawn["trajectories"] = None if paths is None else _figure_of_paths(dataset, {"": paths})
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


def _paths(run: LoadedRun, dataset: Dataset, seed: int) -> Paths | None:
    """Returns states of both processes: the first two coordinates, or two images as bytes."""
    if dataset.encoding is not None and dataset.dim < 2:
        return None
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    device = next(run.model.parameters()).device
    x0 = _inputs(dataset)[: 1 if dataset.is_image else TRAJECTORIES].to(device)
    with torch.no_grad():
        paths = run.recipe.given(dataset.given_of("test")).paths(x0, key)
    if paths is None:
        return None
    forward, reverse = (torch.as_tensor(states).cpu() for states in paths[:2])
    if dataset.is_image:
        return Paths(quantise(forward[:, 0]), quantise(reverse[:, 0]), paths.times)
    return Paths(forward[..., :2], reverse[..., :2], paths.times)


def _figure_of_paths(dataset: Dataset, paths: Mapping[str, Paths]) -> Figure:
    if not dataset.is_image:
        alone = paths[""] if [*paths] == [""] else paths
        return trajectories(alone, _title_of_paths(dataset))
    rows = {}
    for name, (forward, reverse, times) in paths.items():
        picks = np.linspace(0, len(np.asarray(times)) - 1, IMAGES_OF_PATH).round().astype(int)
        for label, states in ((FORWARD, forward), (REVERSE, reverse)):
            rows[f"{name}, {label}" if name else label] = torch.as_tensor(states)[picks]
    return image_rows(rows, f"{dataset.name}: an image and a sample")


def _title_of_paths(dataset: Dataset) -> str:
    assert dataset.encoding is not None
    columns = dataset.encoding.coordinates
    return f"{dataset.name}: {columns[0]} and {columns[1]}, {dataset.encoding.units}"
