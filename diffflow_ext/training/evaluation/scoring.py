r"""Log-densities of single rows under a trained model.

With :math:`y` in the units of the data and :math:`x = (y - m) / \sigma` in those of training,

.. math:: \log p_Y(y) = \log p_X(x) - \sum_j \log \sigma_j

in nats. Of an image in bytes it is the logarithm of its probability, or a bound of it: see
`likelihood.images`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data.dataset import MAX_DEVIATIONS
from diffflow_ext.data.formats.columns import Selection
from diffflow_ext.data.formats.frames import frame_values, is_frame
from diffflow_ext.data.formats.tables import array_of
from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import dequantise

from ..config.rules import SEED, checked
from ..parallel.distributed import World
from ..recipes.base import Estimator, EvaluationSettings, Recipe
from ..store.dataset import DatasetRecord
from .sampling import EVALUATION_STREAM, chunk_size


def pick_estimator(
    recipe: Recipe[Any, Any], name: str | None, settings: EvaluationSettings
) -> Estimator:
    """Returns the estimator of a name, or the model's own for single rows.

    That is its density: an exact one, or the ODE's; of images, whose ODE takes long, the bound if
    it has one. With several paths it is the bound of these.
    """
    estimators = {one.name: one for one in recipe.estimators(replace(settings, ode_n=1))}
    if name is None:
        bounds = ("bound", "importance_weighted")
        several = settings.num_paths > 1
        wanted = bounds if several else bounds[:1] if recipe.is_image else ()
        name = next((one for one in reversed(wanted) if one in estimators), [*estimators][-1])
    _refuse_unused(name, estimators, settings)
    if name not in estimators:
        more = "; importance_weighted needs num_paths=2 or more" if "bound" in estimators else ""
        raise ValueError(
            f"score: estimator={name!r}: {recipe.config.name} has {', '.join(estimators)}{more}"
        )
    return estimators[name]


def _refuse_unused(
    name: str, estimators: dict[str, Estimator], settings: EvaluationSettings
) -> None:
    """Refuses options that an estimator does not have."""
    paths, steps = settings.num_paths, settings.num_steps
    if paths > 1 and name != "importance_weighted":
        raise ValueError(
            f"score: num_paths={paths}: expected 1, because only importance_weighted of diffflow"
            f" has several, got estimator {name!r}; leave one of them out"
        )
    if steps is not None and name in ("ode", "exact") and name in estimators:
        raise ValueError(
            f"score: num_steps={steps}: {name!r} has steps of its own; leave num_steps out, or"
            " take estimator='bound'"
        )


def log_probs(
    recipe: Recipe[Any, Any], estimator: Estimator, rows: Tensor, seed: int, world: World
) -> Tensor:
    """Returns the log-density of each row in the units of training, in nats, float64.

    `rows` are standardised, or images in bytes. The noise of a row depends only on its index.
    """
    checked("score", "seed", seed, Annotated[int, SEED])
    device = next(recipe.module.parameters()).device
    key, size = NoiseKey(seed, stream=EVALUATION_STREAM), chunk_size(recipe)
    parts = list[Tensor | tuple[int, ...]]()
    for index, part in enumerate(rows.split(size)):
        parts.append((len(part),))
        if not world.owns(index):
            continue
        start, x = index * size, part.to(device)
        if recipe.is_image:
            x = dequantise(x, key, sample_offset=start)
        with torch.no_grad():
            parts[-1] = estimator.log_prob(x, key, start).double()
    return world.gathered(parts, torch.float64)


def standardised(record: DatasetRecord, rows: Any) -> Tensor:
    """Returns rows in the units of training, float32 of shape (n, d), or images in bytes.

    Arguments:
        record: The record of the run's data.
        rows: Rows in the units of the data, shape (n, d): an array, a tensor, or a data frame
            whose columns are found by their names. Images: uint8 of shape (n, C, H, W).

    Raises:
        TypeError: If they are not numbers.
        ValueError: If their shape, a column or a value is wrong.
    """
    if is_frame(rows):
        rows = frame_values(rows, Selection(wanted=record.columns), "rows")[0]
    values = rows if isinstance(rows, Tensor) else _tensor(rows)
    shape = tuple(values.shape)
    if (
        values.ndim != 1 + len(record.event_shape)
        or shape[1:] != record.event_shape
        or not shape[0]
    ):
        wanted = ", ".join(map(str, record.event_shape))
        raise ValueError(
            f"score: expected rows of shape (n, {wanted}) as in the run, n at least 1, got {shape}"
        )
    if record.is_image:
        if values.dtype != torch.uint8:
            raise TypeError(
                f"score: expected images in bytes, torch.uint8 from 0 to 255, got {values.dtype}"
            )
        return values
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"score: expected rows of real numbers, got {values.dtype}")
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in (record.mean, record.std))
    x = (values.detach().cpu().double() - mean) / std
    _check_reach(record, values, x)
    return x.float()


def _check_reach(record: DatasetRecord, values: Tensor, x: Tensor) -> None:
    """Refuses rows that are not finite, or so far away that float32 does not hold them."""
    sound = x.abs() <= MAX_DEVIATIONS
    if not bool(sound.all()):
        row, column = (~sound).nonzero()[0].tolist()
        raise ValueError(
            "score: expected finite numbers within 1e12 deviations of the training data, row"
            f" {row} (counted from 0), column {record.columns[column]!r} is"
            f" {float(values[row, column])}; mend or delete such rows"
        )


def _tensor(values: Any) -> Tensor:
    array = array_of(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"score: expected rows of real numbers, got {in_words(values)} of {array.dtype}; give"
            " an array, a tensor or a data frame of numbers"
        )
    # torch has not all of NumPy's types.
    return torch.tensor(array if array.dtype == np.uint8 else array.astype(np.float64))
