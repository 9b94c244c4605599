r"""Evaluation of a trained model, with references for its numbers.

Likelihoods are :math:`-\log p` of the held-out test data, or bounds of it; their reference is a
Gaussian with the full covariance of the training data. The reference of distances between samples
and test data is a floor, the same distance for as many training data.

Of a run with conditions, likelihoods and samples are those given the conditions of the test data.
References and distances know no conditions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.data.sets.toy import TOY_SETS, toy_entropy
from diffflow_ext.functional.core import build_info
from diffflow_ext.metrics.features.digits import DigitExtractor
from diffflow_ext.metrics.features.files import load_extractor

from ..config.rules import SEED, checked
from ..parallel.distributed import joined
from ..recipes.base import EvaluationSettings
from ..store.directory import RunDirectory
from .likelihoods import likelihoods
from .loaded_run import LoadedRun, load_run
from .pictures import draw_pictures
from .quality import common_count, image_quality, vector_quality, warn_of_few
from .run_data import open_run_data, samples_like_test
from .sampling import check_options
from .table import is_evaluation, spell

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
    data: Any = None,
    out: str | Path | None = None,
    **sampler: Any,
) -> dict[str, Any]:
    """Evaluates a run on its held-out data, and writes evaluation.json and figures/ in its folder.

    Arguments:
        run: The run directory, or an example by name, for which `out` names a folder.
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
        data: Where the data of the run are now, if they have moved; or the data themselves, of a
            run that was trained on data in memory.
        out: Another folder for the results, created if missing, for a run that may not be changed.
        sampler: Options of the model's sampler.

    Returns:
        The numbers, as in RUN/evaluation.json. With several processes all but the first return
        only likelihoods.

    Raises:
        ValueError: If there is no run, its data have changed, or an option doesn't suit the model.
        OSError: If the results can't be written, or the data are not where they were.
        CheckpointError: If it has no whole checkpoint.
    """
    checked("evaluate", "seed", seed, Annotated[int, SEED])
    target = RunDirectory(run if out is None else out)
    with joined(device) as world:
        loaded = load_run(run, device)
        limit, few = _default_counts(loaded)
        limit = limit if n is None else n
        settings = EvaluationSettings(num_steps, num_paths, few if ode_n is None else ode_n)
        check_options("evaluate", loaded.recipe, num_steps, sampler)
        features = _extractor(loaded, extractor)
        dataset = open_run_data(loaded, data, warn=world.writes)
        world.on_first(lambda: _check_target(target, figures=figures))
        count = common_count(limit, dataset)
        options: dict[str, Any] = {"seed": seed, "num_steps": num_steps, "world": world}
        samples = samples_like_test(loaded, dataset, count or FEW_SAMPLES, **options, **sampler)
        nats = likelihoods(loaded, dataset, limit, settings, seed, world)
        if not world.writes:
            return nats
    result = {
        **_head(loaded, seed, count, num_steps, sampler),
        **nats,
        "entropy": _entropy(loaded),
        **(_quality(samples, dataset, features) if count else {}),
    }
    if not count:
        warn_of_few(limit, dataset)
    target.write_evaluation(spell(result))
    if figures:
        _draw(target, loaded, dataset, samples, seed, result)
    return result


def _default_counts(run: LoadedRun) -> tuple[int, int]:
    """Returns the default number of samples, and of data for the ODE."""
    if run.record.is_image:
        return DEFAULT_IMAGES, ODE_IMAGES
    return DEFAULT_VECTORS, ODE_VECTORS


def _draw(
    target: RunDirectory,
    run: LoadedRun,
    dataset: Dataset,
    samples: Tensor,
    seed: int,
    result: Mapping[str, Any],
) -> None:
    """Draws pictures, or warns that the library is missing: the numbers are written already."""
    try:
        draw_pictures(target.figures, run, dataset, samples, seed, result)
    except ImportError as error:
        warnings.warn(f"evaluate: pictures are left out: {error}", stacklevel=3)


def _check_target(target: RunDirectory, *, figures: bool) -> None:
    """Refuses a folder that can't be written, or has something else in a file's place."""
    target.check_kinds()
    pictures = target.pictures_of_others() if figures else []
    if pictures:
        raise ValueError(
            f"evaluate: expected no picture of another program in a picture's place, got"
            f" {str(pictures[0])!r}; move it away, draw none (--no-figures), or name another"
            " folder (--out FOLDER)"
        )
    results = target.evaluation
    if not target.holds_run() and results.exists() and not is_evaluation("evaluate", results):
        raise ValueError(
            f"evaluate: expected a folder without evaluation.json of another program, got"
            f" {str(results)!r}; move it away, or name another folder (--out FOLDER)"
        )
    try:
        target.make_writable()
    except OSError as error:
        raise OSError(
            f"evaluate: expected a folder to write to, got {str(target.root)!r}:"
            f" {error.strerror}; name another one for the results (--out FOLDER)"
        ) from error


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
    # That of the points alone; given their classes it is less.
    plain = run.record.conditions is None and run.record.name in TOY_SETS
    return toy_entropy(run.record.name) if plain else None
