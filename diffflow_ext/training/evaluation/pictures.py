"""The figures of a run: samples beside data, both processes, the training curve.

They are figures of matplotlib, which notebooks show and `figures.save` writes:
``sample_figure(load_run("runs/moons"))``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.data.display import title_of
from diffflow_ext.figures.axes import Axis
from diffflow_ext.figures.images import image_grid, image_rows
from diffflow_ext.figures.panels import save
from diffflow_ext.figures.paths import FORWARD, REVERSE, Paths, film, trajectories
from diffflow_ext.figures.points import loss_curve, samples_beside_data
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import quantise

from ..recipes.flows import FlowRecipe
from ..store.directory import RunDirectory
from ..store.inputs import model_inputs
from .axes import Columns, chosen, drawable, sample_axes, sample_values, state_axes, state_values
from .curve import TrainingCurve, training_curve
from .loaded_run import LoadedRun
from .run_data import open_run_data, samples_like_test
from .sampling import EVALUATION_STREAM
from .table import read_evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAJECTORIES = 2000
#: Particles of a film, whose bytes grow with them.
FILMED = 1000
IMAGES = 100
#: Times at which one image is drawn.
IMAGES_OF_PATH = 9


def sample_figure(
    run: LoadedRun,
    data: Any = None,
    *,
    n: int | None = None,
    seed: int = 0,
    columns: Columns = None,
    **options: Any,
) -> Figure:
    """Draws samples of a run beside its test data, in the units of the data; images as a grid.

    Samples of a run with conditions are given those of the test data.

    Arguments:
        run: The run.
        data: The data of the run, if they were in memory; or where they are now, if they moved.
        n: The number of samples; by default 10,000, of images 100.
        seed: The seed of the samples.
        columns: The columns of a table to draw, as names or a text with commas between them; None
            for all, of which the first five are drawn.
        options: Options of the sampler, as of `LoadedRun.sample`.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        FileNotFoundError: If the data aren't there.
        ValueError: If they aren't those of the run, or an option is wrong.
    """
    picks_of("sample_figure", run, columns)
    dataset = open_run_data(run, data)
    count = n if n is not None else IMAGES if run.record.is_image else 10_000
    samples = samples_like_test(run, dataset, count, seed=seed, **options)
    return figure_of_samples(dataset, samples, columns)


def picks_of(op: str, run: LoadedRun, columns: Columns, count: int | None = None) -> Sequence[int]:
    """Returns the positions of the columns of a run that are to be drawn; none of images.

    Errors name `op` and are those of `axes.chosen`; images have no columns.
    """
    if run.record.encoding is None:
        if columns is not None:
            raise ValueError(f"{op}: columns: expected none, the run has images; leave it out")
        return ()
    return chosen(op, run.record.encoding, columns, count)


def path_figure(
    runs: LoadedRun | Mapping[str, LoadedRun],
    data: Any = None,
    *,
    seed: int = 0,
    columns: Columns = None,
) -> Figure:
    """Draws both processes of a run, or of several by their names, at some times.

    Of tables two columns are shown, of images one from the data and one sample. Axes have the
    units of the data and are even in the coordinate of the model: of a positive column they are
    logarithmic. States between data and noise are decoded column by column.

    Arguments:
        runs: The run, or runs of the same data.
        data: As of `sample_figure`.
        seed: The seed of the samples.
        columns: Two columns of a table, as names or a text with a comma between them; None for
            the first two of numbers.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        FileNotFoundError: If the data aren't there.
        ValueError: If they aren't those of all runs, have one column, a column has another name,
            or a model has no such processes.
    """
    op, named = "path_figure", {"": runs} if isinstance(runs, LoadedRun) else dict(runs)
    _require_same_data(named)
    for run in named.values():
        _require_paths(op, run)
    picks = picks_of(op, next(iter(named.values())), columns, 2)
    dataset = open_run_data(next(iter(named.values())), data)
    paths = {name: _drawn(op, run, dataset, picks, seed) for name, run in named.items()}
    return _figure_of_paths(dataset, paths, picks)


def _require_paths(op: str, run: LoadedRun) -> None:
    """Refuses runs of models without processes, and of one column."""
    if isinstance(run.recipe, FlowRecipe):
        raise ValueError(
            f"{op}: expected runs with a process in time, got {run!r}; a flow is one map from"
            " noise to data, without states between them: take sample_figure (diffflow sample"
            " --figure), or leave that run out"
        )
    if not run.record.is_image and len(run.record.columns) < 2:
        raise ValueError(
            f"{op}: expected runs with two columns or more, or of images, got {run!r}; take"
            " sample_figure"
        )


def _drawn(op: str, run: LoadedRun, dataset: Dataset, picks: Sequence[int], seed: int) -> Paths:
    """Returns the states of a run that are drawn."""
    found = _paths(run, dataset, picks, seed)
    if found is None:
        raise ValueError(
            f"{op}: expected paths with finite values of both columns, got none of {run!r}; choose"
            " other columns, or train longer"
        )
    return found


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


def film_of_paths(
    run: LoadedRun,
    path: str | Path,
    data: Any = None,
    *,
    seed: int = 0,
    columns: Columns = None,
) -> Path:
    """Writes a film, .gif or .mp4, of both processes of a run in two columns.

    Arguments and errors are those of `path_figure`; see `figures.film`. Images have no film.
    """
    op = "film_of_paths"
    if run.record.is_image:
        raise ValueError(f"{op}: expected a run of two columns or more, got {run!r}; take"
                         " path_figure")  # fmt: skip
    _require_paths(op, run)
    picks = picks_of(op, run, columns, 2)
    dataset = open_run_data(run, data)
    paths = _drawn(op, run, dataset, picks, seed)
    ahead, back = (np.asarray(states)[:, :FILMED] for states in paths[:2])
    shown = Paths(ahead, back, paths.times)
    return film(shown, path, _title_of_paths(dataset), columns=_axes(dataset, picks))


def loss_figure(run: LoadedRun) -> Figure:
    """Draws the training curve of a run: its bound, or its loss where the log has none.

    Beside it, where the curve is in nats and the run has been evaluated, -log p of the test data
    under a Gaussian of the training data; and the steps at which the number N of steps of a path
    changes.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If the run has no log, as that of an estimator, or its evaluation.json is none.
    """
    numbers = None
    if run.folder is not None:
        numbers = read_evaluation("loss_figure", RunDirectory(run.folder))
    curve = training_curve(run, numbers)
    if curve is None:
        raise ValueError(
            "loss_figure: expected a run with a log, metrics.jsonl in its folder, got"
            f" {run!r}; load one by load_run"
        )
    return figure_of_curve(run, curve)


def draw_pictures(
    folder: Path,
    run: LoadedRun,
    dataset: Dataset,
    samples: Tensor,
    seed: int,
    evaluation: Mapping[str, Any],
) -> None:
    """Draws all pictures of a run into a folder, given the numbers of its evaluation."""
    drawn: dict[str, Figure | None] = {}
    try:
        drawn["samples"] = figure_of_samples(dataset, samples)
    except ValueError as error:  # The numbers of the evaluation are worth more than a picture.
        warnings.warn(f"evaluate: samples.png is left out: {error}", stacklevel=2)
    if dataset.is_image:
        drawn["data"] = image_grid(dataset.test[:IMAGES], f"{title_of(dataset.name)}: test data")
    encoding = dataset.encoding
    picks = [] if encoding is None else chosen("evaluate", encoding, None, 2)
    paths = None if len(picks) == 1 else _paths(run, dataset, picks, seed)
    if paths is not None:
        drawn["trajectories"] = _figure_of_paths(dataset, {"": paths}, picks)
    curve = training_curve(run, evaluation)
    drawn["loss"] = None if curve is None else figure_of_curve(run, curve)
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        if figure is not None:
            save(figure, folder / f"{name}.png")


def figure_of_samples(dataset: Dataset, samples: Tensor, columns: Columns = None) -> Figure:
    """Draws samples, as the model gives them, beside a run's test data; images as a grid."""
    encoding = dataset.encoding
    if encoding is None:
        shown = quantise(samples[:IMAGES])
        return image_grid(shown, f"{title_of(dataset.name)}: {len(shown)} samples")
    picks = chosen("sample_figure", encoding, columns)
    axes = sample_axes(encoding, picks)
    data, drawn = (
        drawable(sample_values(encoding, x, picks), axes) for x in (_inputs(dataset), samples)
    )
    if not len(drawn):
        raise ValueError(
            f"sample_figure: expected samples that are finite in the units of the data, got none"
            f" in {len(samples):,}; train longer, or with a lower learning_rate"
        )
    title = f"{title_of(dataset.name)}: {len(drawn):,} samples"
    if len(drawn) < len(samples):
        title += f", {len(samples) - len(drawn):,} not finite"
    return samples_beside_data(data, drawn, title, columns=axes)


def _inputs(dataset: Dataset) -> Tensor:
    key = NoiseKey(0, stream=EVALUATION_STREAM)
    return model_inputs(dataset.encoding, dataset.test, key)


def figure_of_curve(run: LoadedRun, curve: TrainingCurve) -> Figure:
    """Draws the training curve of a run, the level of a Gaussian, and where N changes."""
    title = f"{title_of(run.record.name)}: training of {run.config.name}"
    knows = "Gaussian that knows no conditions" if curve.is_given else "Gaussian"
    level = None if curve.gaussian is None else (f"{knows}, on test data", curve.gaussian)
    marks = [(first, f"N = {n}") for first, n in curve.counts]
    return loss_curve(
        curve.steps, curve.values, title=title, label=curve.label, level=level, marks=marks
    )


def _paths(run: LoadedRun, dataset: Dataset, picks: Sequence[int], seed: int) -> Paths | None:
    """Returns states of both processes: of two columns in their units, or two images as bytes."""
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    device = next(run.model.parameters()).device
    x0 = _inputs(dataset)[: 1 if dataset.is_image else TRAJECTORIES].to(device)
    with torch.no_grad():
        paths = run.recipe.given(dataset.given_of("test")).paths(x0, key)
    if paths is None:
        return None
    forward, reverse = (torch.as_tensor(states).cpu() for states in paths[:2])
    if dataset.encoding is None:
        return Paths(quantise(forward[:, 0]), quantise(reverse[:, 0]), paths.times)
    ahead, back = (state_values(dataset.encoding, s, picks) for s in (forward, reverse))
    return Paths(ahead, back, paths.times) if ahead.size and back.size else None


def _axes(dataset: Dataset, picks: Sequence[int]) -> list[Axis]:
    assert dataset.encoding is not None
    return state_axes(dataset.encoding, picks)


def _figure_of_paths(dataset: Dataset, paths: Mapping[str, Paths], picks: Sequence[int]) -> Figure:
    if not dataset.is_image:
        alone = paths[""] if [*paths] == [""] else paths
        return trajectories(alone, _title_of_paths(dataset), columns=_axes(dataset, picks))
    rows = {}
    for name, (forward, reverse, times) in paths.items():
        picks = np.linspace(0, len(np.asarray(times)) - 1, IMAGES_OF_PATH).round().astype(int)
        for label, states in ((FORWARD, forward), (REVERSE, reverse)):
            rows[f"{name}, {label}" if name else label] = torch.as_tensor(states)[picks]
    return image_rows(rows, f"{title_of(dataset.name)}: an image and a sample")


def _title_of_paths(dataset: Dataset) -> str:
    return f"{title_of(dataset.name)}: forward and reverse process"
