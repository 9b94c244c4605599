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

from ..store.directory import read_metrics
from ..store.inputs import model_inputs
from .loaded_run import LoadedRun
from .sampling import EVALUATION_STREAM

TRAJECTORIES = 2000
IMAGES = 100


def draw_pictures(
    figures: Path, metrics: Path, run: LoadedRun, dataset: Dataset, samples: Tensor, seed: int
) -> None:
    """Draws all pictures into a folder; the training curve is that of a metrics.jsonl."""
    figures.mkdir(exist_ok=True)
    draw_sample_picture(figures / "samples.png", dataset, samples)
    if dataset.is_image:
        shown = dataset.test[:IMAGES]
        image_grid(figures / "data.png", shown, f"{dataset.name}: test data")
    elif dataset.dim > 1:
        _draw_trajectories(figures / "trajectories.png", run, dataset, seed)
    name, label = run.recipe.curve
    lines = [line for line in read_metrics(metrics) if name in line]
    if lines:
        steps, values = [line["step"] for line in lines], [line[name] for line in lines]
        loss_curve(
            figures / "loss.png", steps, values, title=f"{dataset.name}: training", label=label
        )


def draw_sample_picture(path: str | Path, dataset: Dataset, samples: Tensor) -> None:
    """Draws samples, in the units of training, beside a run's test data; images as a grid."""
    title = f"{dataset.name}: {len(samples)} samples"
    if dataset.encoding is None:
        shown = quantise(samples[:IMAGES])
        image_grid(path, shown, f"{dataset.name}: {len(shown)} samples")
    else:
        title += f", {dataset.encoding.units}"
        names = dataset.encoding.coordinates
        samples_beside_data(path, _inputs(dataset), samples, title, columns=names)


def _inputs(dataset: Dataset) -> Tensor:
    key = NoiseKey(0, stream=EVALUATION_STREAM)
    return model_inputs(dataset.encoding, dataset.test, key)


def _draw_trajectories(path: Path, run: LoadedRun, dataset: Dataset, seed: int) -> None:
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    device = next(run.model.parameters()).device
    with torch.no_grad():
        recipe = run.recipe.given(dataset.given_of("test"))
        paths = recipe.paths(_inputs(dataset)[:TRAJECTORIES].to(device), key)
    if paths is None:
        return
    forward, reverse, times = paths
    assert dataset.encoding is not None
    columns = dataset.encoding.coordinates
    title = f"{dataset.name}: {columns[0]} and {columns[1]}, {dataset.encoding.units}"
    trajectories(path, forward[..., :2].cpu(), reverse[..., :2].cpu(), times, title)
