"""The pictures of a run: samples beside data, both processes, the training curve."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.figures.images import image_grid
from diffflow_ext.figures.points import loss_curve, samples_beside_data, trajectories
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import quantise

from ..store.dataset import open_data
from ..store.directory import RunDirectory, read_metrics
from .loaded_run import LoadedRun
from .sampling import EVALUATION_STREAM

TRAJECTORIES = 2000
IMAGES = 100


def draw_pictures(
    directory: RunDirectory, run: LoadedRun, dataset: Dataset, samples: Tensor, seed: int
) -> None:
    """Draws all pictures into RUN/figures."""
    directory.figures.mkdir(exist_ok=True)
    _draw_samples(directory.figures / "samples.png", dataset, samples)
    if dataset.is_image:
        shown = dataset.test[:IMAGES]
        image_grid(directory.figures / "data.png", shown, f"{dataset.name}: test data")
    elif dataset.dim > 1:
        _draw_trajectories(directory, run, dataset, seed)
    name, label = run.recipe.curve
    lines = [line for line in read_metrics(directory.metrics) if name in line]
    if lines:
        steps, values = [line["step"] for line in lines], [line[name] for line in lines]
        path, title = directory.figures / "loss.png", f"{dataset.name}: training"
        loss_curve(path, steps, values, title=title, label=label)


def draw_sample_picture(path: str | Path, run: LoadedRun, samples: Tensor) -> None:
    """Draws samples, in the units of training, beside the run's test data; images as a grid."""
    _draw_samples(path, open_data(run.config), samples)


def _draw_samples(path: str | Path, dataset: Dataset, samples: Tensor) -> None:
    title = f"{dataset.name}: {len(samples)} samples"
    if dataset.is_image:
        shown = quantise(samples[:IMAGES])
        image_grid(path, shown, f"{dataset.name}: {len(shown)} samples")
    else:
        samples_beside_data(path, dataset.test, samples, title, columns=dataset.columns)


def _draw_trajectories(
    directory: RunDirectory, run: LoadedRun, dataset: Dataset, seed: int
) -> None:
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    device = next(run.model.parameters()).device
    with torch.no_grad():
        paths = run.recipe.paths(dataset.test[:TRAJECTORIES].to(device), key)
    if paths is None:
        return
    forward, reverse, times = paths
    columns = dataset.columns
    title = f"{dataset.name}: {columns[0]} and {columns[1]}"
    path = directory.figures / "trajectories.png"
    trajectories(path, forward[..., :2].cpu(), reverse[..., :2].cpu(), times, title)
