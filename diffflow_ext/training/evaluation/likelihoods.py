r"""Likelihoods of held-out data, each estimator by its name.

Means of :math:`-\log p(x)` in nats with their standard errors; for vectors also in the units of
the data, for 8-bit images in bits per dimension.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import bits_per_dim
from diffflow_ext.metrics.distances import gaussian_nll

from ..parallel.distributed import World
from ..recipes.base import Estimator, EvaluationSettings, Recipe
from ..store.inputs import model_inputs
from .loaded_run import LoadedRun
from .sampling import EVALUATION_STREAM
from .scoring import log_probs

#: Rows for the comparison with half the steps of a solver.
STEP_ERROR_ROWS = 16


def likelihoods(
    run: LoadedRun,
    dataset: Dataset,
    n: int,
    settings: EvaluationSettings,
    seed: int,
    world: World | None = None,
) -> dict[str, Any]:
    """Returns the results of each estimator for the first n test data, given their conditions.

    For an estimator called NAME these are NAME (nats), NAME_error, NAME_n and NAME_median, which a
    few rows far out do not move; for those that solve
    an ODE NAME_step_error (the change with half the steps, on a few rows); for vectors
    NAME_data_units with NAME_data_units_error, and NAME_minus_gaussian; for images NAME_bits and
    NAME_bits_error.
    `estimators` has the names and titles.
    """
    recipe = run.recipe.given(dataset.given_of("test"))
    estimators, world = recipe.estimators(settings), world or World()
    result: dict[str, Any] = {"estimators": {one.name: one.title for one in estimators}}
    if not run.record.is_image:
        result["gaussian_nll"] = _gaussian(dataset, n, seed)
    for one in estimators:
        rows = dataset.test[: min(n, one.limit or n)]
        nats, weight = _nats(recipe, run.record.encoding, one, rows, seed, world)
        result |= {
            one.name: float(nats.mean()),
            f"{one.name}_error": float(nats.std()) / math.sqrt(len(nats)),
            f"{one.name}_n": len(nats),
            f"{one.name}_median": float(nats.median()),
        }
        if one.halved is not None:
            few = slice(0, STEP_ERROR_ROWS)
            half = replace(one, log_prob=one.halved)
            halved, _ = _nats(recipe, run.record.encoding, half, rows[few], seed, world)
            result[f"{one.name}_step_error"] = float((halved - nats[few]).mean())
        result |= _read(one.name, result, run, nats - weight)
    return result


def _gaussian(dataset: Dataset, n: int, seed: int) -> float | None:
    """Returns -log p of the Gaussian of the training data, None if that has no density."""
    key = NoiseKey(seed, stream=EVALUATION_STREAM)
    train, test = (
        model_inputs(dataset.encoding, rows, key) for rows in (dataset.train, dataset.test[:n])
    )
    try:
        return gaussian_nll(train, test)[0]
    except ValueError as error:
        warnings.warn(f"evaluate: no Gaussian to compare with: {error}", stacklevel=2)
        return None


def _read(
    name: str, result: dict[str, Any], run: LoadedRun, in_units: Tensor
) -> dict[str, float | None]:
    nats, dim = result[name], run.record.dim
    if run.record.is_image:
        error = result[f"{name}_error"] / (dim * math.log(2))
        return {f"{name}_bits": bits_per_dim(nats, dim), f"{name}_bits_error": error}
    gaussian = result["gaussian_nll"]
    return {
        f"{name}_data_units": float(in_units.mean()),
        f"{name}_data_units_error": float(in_units.std()) / math.sqrt(len(in_units)),
        f"{name}_minus_gaussian": None if gaussian is None else nats - gaussian,
    }


def _nats(
    recipe: Recipe[Any, Any],
    encoding: Encoding | None,
    estimator: Estimator,
    rows: Tensor,
    seed: int,
    world: World,
) -> tuple[Tensor, Tensor]:
    density, weight = log_probs(recipe, estimator, encoding, rows, seed, world)
    return -density, weight
