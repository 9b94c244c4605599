r"""Evaluation of a trained model, with references for its numbers.

Likelihoods are :math:`-\log p` of the held-out test data, or bounds of it; their reference is a
Gaussian with the full covariance of the training data. The reference of distances between samples
and test data is a floor, the same distance for as many training data.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.data.sets.toy import TOY_SETS, toy_entropy
from diffflow_ext.functional.core import build_info
from diffflow_ext.metrics.features.digits import DigitExtractor
from diffflow_ext.metrics.features.files import load_extractor

from ..parallel.distributed import joined
from ..recipes.base import EvaluationSettings
from ..store.dataset import open_data
from ..store.directory import RunDirectory
from .likelihoods import likelihoods
from .loaded_run import LoadedRun, load_run
from .pictures import draw_pictures
from .quality import common_count, image_quality, vector_quality
from .sampling import check_options, draw_samples

DEFAULT_VECTORS, DEFAULT_IMAGES = 10_000, 1000
#: Samples for the pictures if there are too few data for distances.
FEW_SAMPLES = 64
ODE_VECTORS, ODE_IMAGES = 2000, 64


def evaluate(
    run: str | Path,
    n: int | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    figures: bool = True,
    num_steps: int | None = None,
    num_paths: int = 1,
    ode_n: int | None = None,
    extractor: str | Path | None = None,
    **sampler: Any,
) -> dict[str, Any]:
    """Evaluates a run on its held-out data, and writes RUN/evaluation.json and RUN/figures/.

    Arguments:
        run: The run directory.
        n: The largest number of samples, of data to compare them with, and of test data for
            likelihoods. By default 10,000, for images 1000.
        seed: Seed of all noise; the same seed gives the same numbers.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        figures: Whether to draw pictures, which needs matplotlib.
        num_steps: Steps of the model; None for its own number.
        num_paths: Paths of the importance-weighted bound, for models that have it; 1 for none.
        ode_n: Test data for the density of the ODE, for models that have it; 0 for none. By
            default 2000, for images 64.
        extractor: A file of `features.save_extractor`, for measures of images.
        sampler: Options of the model's sampler.

    Returns:
        The numbers, as in RUN/evaluation.json. With several processes all but the first return
        only likelihoods.

    Raises:
        ValueError: If there is no run, its data have changed, or an option doesn't suit the model.
        CheckpointError: If it has no whole checkpoint.
    """
    with joined(device) as world:
        loaded, directory = _opened(run, device)
        is_image = loaded.record.is_image
        limit = n if n is not None else DEFAULT_IMAGES if is_image else DEFAULT_VECTORS
        ode_n = ode_n if ode_n is not None else ODE_IMAGES if is_image else ODE_VECTORS
        settings = EvaluationSettings(num_steps, num_paths, ode_n)
        check_options(loaded, num_steps, sampler)
        features = _extractor(loaded, extractor)
        dataset = open_data(loaded.config, warn=world.writes)
        loaded.record.require(dataset)
        count = common_count(limit, dataset)
        samples = draw_samples(
            loaded, count or FEW_SAMPLES, seed=seed, num_steps=num_steps, world=world, **sampler
        )
        nats = likelihoods(loaded, dataset, limit, settings, seed, world)
        if not world.writes:
            return nats
    result = {
        **_head(loaded, seed, count, num_steps, sampler),
        **nats,
        "entropy": _entropy(loaded),
        **(_quality(samples, dataset, features) if count else {}),
    }
    directory.write_evaluation(spell(result))
    if figures:
        try:
            draw_pictures(directory, loaded, dataset, samples, seed)
        except ImportError as error:
            warnings.warn(f"evaluate: pictures are left out: {error}", stacklevel=2)
    return result


def _opened(run: str | Path, device: str) -> tuple[LoadedRun, RunDirectory]:
    """Returns a run and its directory, in which results can be written as far as one can see."""
    loaded, directory = load_run(run, device), RunDirectory(run)
    directory.check_kinds()
    return loaded, directory


def _quality(samples: Tensor, dataset: Dataset, features: DigitExtractor | None) -> dict[str, Any]:
    if dataset.is_image:
        return image_quality(samples, dataset, features)
    return vector_quality(samples, dataset)


def _extractor(run: LoadedRun, path: str | Path | None) -> DigitExtractor | None:
    if path is not None and not run.record.is_image:
        raise ValueError(f"evaluate: extractor={str(path)!r}: the data are not images")
    return None if path is None else load_extractor(path)


def _head(
    run: LoadedRun, seed: int, n: int, num_steps: int | None, sampler: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "package": build_info()["version"],
        "data": run.record.name,
        "model": run.config.name,
        "step": run.step,
        "seed": seed,
        "n": n,
        "num_steps": run.recipe.num_steps(num_steps),
        "sampler": dict(sampler),
    }


def _entropy(run: LoadedRun) -> float | None:
    return toy_entropy(run.record.name) if run.record.name in TOY_SETS else None


def spell(result: Mapping[str, Any]) -> str:
    """Returns the numbers as JSON, with null for those that aren't finite."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in result.items()
    }
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"
