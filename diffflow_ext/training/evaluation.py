r"""How good a trained model is, each figure beside what it's to be read against.

The bound is :math:`-\mathrm{elbo} \geq -\log p(x_0)` in nats on the held-out test data, beside
the likelihood of a Gaussian with the full covariance of the training data. Distances between
samples and test data stand beside a floor: the mean distance of as many real training data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import metrics
from diffflow_ext._backend import build_info
from diffflow_ext.data import TOY_SETS, Dataset, open_dataset, toy_entropy
from diffflow_ext.grids import TimeGrid
from diffflow_ext.noise import NoiseKey
from diffflow_ext.samplers import LastStep
from diffflow_ext.sde import DiffFlowSDE
from diffflow_ext.training.checkpoint import load_latest
from diffflow_ext.training.model import sampling_grid
from diffflow_ext.training.runs import RunDirectory, read_metrics, replace_text
from diffflow_ext.training.trainer import load_run

__all__ = ["draw_samples", "evaluate", "format_table"]

MIN_SAMPLES = 50
CHUNK = 8192
FLOOR_DRAWS = 4
# Streams of training are its iterations: far above them, no draw is used twice.
EVALUATION_STREAM = 2**31
TRAJECTORIES = 2000


def evaluate(
    run: str | Path,
    n: int = 10000,
    *,
    seed: int = 0,
    device: str = "auto",
    figures: bool = True,
) -> dict[str, Any]:
    """Evaluates a run on its held-out data, and writes RUN/evaluation.json and RUN/figures/.

    Arguments:
        run: The run directory.
        n: Samples to draw and data to compare them with; fewer where the data have fewer.
        seed: Seed of all noise; the same seed gives the same numbers.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        figures: Draw pictures; this needs matplotlib.

    Returns:
        The numbers, as in RUN/evaluation.json.

    Raises:
        ValueError: If `n` or the data are too few for distances, no run is there, or its data
            have changed.
        CheckpointError: If it has no whole checkpoint.
    """
    sde, config, record = load_run(run, device)
    dataset = open_dataset(config.data, seed=config.data_seed)
    record.require(dataset)
    count = _common_count(n, dataset)
    directory = RunDirectory(run)
    grid = sampling_grid(config)
    samples = draw_samples(sde, count, record.dim, grid, seed=seed)
    result = {
        "package": build_info()["version"],
        "data": record.name,
        "step": load_latest(directory.checkpoints).step,
        "seed": seed,
        "n": count,
        "num_steps": config.num_steps,
        **_bound(sde, dataset, grid, n, seed),
        "entropy": toy_entropy(record.name) if record.name in TOY_SETS else None,
        **_distances(samples, dataset, count),
    }
    replace_text(directory.evaluation, _spell(result))
    if figures:
        _draw(directory, sde, dataset, samples, grid, seed)
    return result


def draw_samples(
    sde: DiffFlowSDE,
    n: int,
    dim: int,
    grid: TimeGrid,
    *,
    seed: int,
    stochasticity: float = 1.0,
    last_step: LastStep = "noisy",
) -> Tensor:
    """Returns n standardised samples of shape (n, dim) on the CPU.

    Sample i depends on the seed and i alone, not on n.

    Raises:
        ValueError: If `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"draw_samples: n={n}: expected at least 1")
    with torch.no_grad():
        parts = [
            sde.sample(
                (min(CHUNK, n - start), dim),
                grid,
                NoiseKey(seed, stream=EVALUATION_STREAM),
                stochasticity=stochasticity,
                last_step=last_step,
                sample_offset=start,
            ).cpu()
            for start in range(0, n, CHUNK)
        ]
    return torch.cat(parts)


def format_table(result: Mapping[str, Any]) -> str:
    """Returns the numbers of `evaluate` as a table for a terminal."""
    r = result
    bound, error = r["bound"], r["bound_error"]
    rows = [
        ("", "model", "reference", "reading"),
        (
            "bound, nats",
            f"{bound:.4f} ± {error:.4f}",
            f"{r['gaussian_nll']:.4f}",
            f"{r['bound_minus_gaussian']:+.4f} against a Gaussian; lower is better",
        ),
        ("  in data units", f"{r['bound_data_units']:.4f}", *_against_entropy(r)),
        ("energy distance", *_against_floor(r, "energy_distance")),
        ("sliced Wasserstein", *_against_floor(r, "sliced_wasserstein")),
    ]
    head = f"{r['data']}, step {r['step']}, N = {r['num_steps']}, n = {r['n']}, seed {r['seed']}"
    return "\n".join([head, *_aligned(rows)])


def _against_entropy(r: Mapping[str, Any]) -> tuple[str, str]:
    if r["entropy"] is None:
        return "", ""
    excess = r["bound_data_units"] - r["entropy"]
    return f"{r['entropy']:.4f}", f"{excess:+.4f} against the entropy, the least there is"


def _against_floor(r: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    floor, ratio = r[f"{name}_floor"], r[f"{name}_ratio"]
    reading = "" if ratio is None else f"{ratio:.2f} times that of real data"
    return f"{r[name]:.5f}", f"{floor:.5f}", reading


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _spell(result: Mapping[str, Any]) -> str:
    """Returns the numbers as JSON, which has no word for those that aren't finite."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in result.items()
    }
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def _common_count(n: int, dataset: Dataset) -> int:
    count = min(n, len(dataset.train), len(dataset.test))
    if count < MIN_SAMPLES:
        raise ValueError(
            f"evaluate: distances need at least {MIN_SAMPLES} samples and as many data, got n={n},"
            f" {len(dataset.train)} training and {len(dataset.test)} test data"
        )
    return count


def _bound(
    sde: DiffFlowSDE, dataset: Dataset, grid: TimeGrid, n: int, seed: int
) -> dict[str, float]:
    """Returns the bound on the test data in nats, standardised and in data units."""
    test = dataset.test[:n]
    device = next(sde.parameters()).device
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    with torch.no_grad():
        parts = [
            -sde.elbo(rows.to(device), grid, key, sample_offset=index * CHUNK).cpu()
            for index, rows in enumerate(test.split(CHUNK))
        ]
    nats = torch.cat(parts).double()
    bound, gaussian = float(nats.mean()), metrics.gaussian_nll(dataset.train, test)[0]
    return {
        "bound_n": len(test),
        "bound": bound,
        "bound_error": float(nats.std()) / math.sqrt(len(test)),
        "bound_data_units": bound + dataset.log_abs_scale,
        "gaussian_nll": gaussian,
        "bound_minus_gaussian": bound - gaussian,
    }


def _distances(samples: Tensor, dataset: Dataset, count: int) -> dict[str, float | None]:
    """Returns each distance, its floor from as many training data, and their ratio.

    One draw of the floor may be several times its mean, so up to four are averaged.
    """
    real = dataset.test[:count]
    draws = [part for part in dataset.train.split(count) if len(part) == count][:FLOOR_DRAWS]
    result: dict[str, float | None] = {}
    for measure in (metrics.energy_distance, metrics.sliced_wasserstein):
        name = measure.__name__
        distance = measure(samples, real)
        floor = sum(measure(draw, real) for draw in draws) / len(draws)
        ratio = distance / floor if floor > 0 else None
        result |= {name: distance, f"{name}_floor": floor, f"{name}_ratio": ratio}
    return result


def _draw(
    run: RunDirectory,
    sde: DiffFlowSDE,
    dataset: Dataset,
    samples: Tensor,
    grid: TimeGrid,
    seed: int,
) -> None:
    from diffflow_ext import figures  # Needs matplotlib, which is optional.

    run.figures.mkdir(exist_ok=True)
    columns, name = dataset.columns, dataset.name
    title = f"{name}: {len(samples)} samples of the model"
    figures.samples_beside_data(
        run.figures / "samples.png", dataset.test, samples, title, columns=columns
    )
    if len(columns) > 1:
        forward, reverse = _trajectories(sde, dataset.test[:TRAJECTORIES], grid, seed)
        path, title = run.figures / "trajectories.png", f"{name}: {columns[0]} and {columns[1]}"
        figures.trajectories(path, forward, reverse, grid.times, title)
    lines = read_metrics(run.metrics)
    if lines:
        steps, bounds = [line["step"] for line in lines], [line["bound"] for line in lines]
        label = "bound on -log p per sample [nats]"
        figures.loss_curve(
            run.figures / "loss.png", steps, bounds, title=f"{name}: training", label=label
        )


def _trajectories(
    sde: DiffFlowSDE, data: Tensor, grid: TimeGrid, seed: int
) -> tuple[Tensor, Tensor]:
    """Returns the first two columns of both processes, in the order of time."""
    x0 = data.to(next(sde.parameters()).device)
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    with torch.no_grad():
        forward = sde.path(x0, grid, key)[..., :2].cpu()
        reverse = sde.sample_path(tuple(x0.shape), grid, key)[..., :2].cpu()
    return forward, reverse
