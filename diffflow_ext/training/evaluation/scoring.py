r"""Log-densities of single rows under a trained model.

They are in nats and in the units of the data: the log-density of the model's inputs, and a weight
that depends on how rows become inputs (see `data.encoding`). Of an image in bytes it is the
logarithm of its probability, or a bound of it: see `likelihood.images`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import Selection, listed
from diffflow_ext.data.formats.frames import is_frame
from diffflow_ext.data.formats.images import images_of
from diffflow_ext.data.formats.tables import Table, array_of, select
from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.noise import NoiseKey

from ..config.rules import SEED, checked
from ..parallel.distributed import World
from ..parallel.progress import tracked
from ..recipes.base import Estimator, EvaluationSettings, Recipe
from ..store.dataset import DatasetRecord
from ..store.inputs import log_weight, model_inputs
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
    recipe: Recipe[Any, Any],
    estimator: Estimator,
    encoding: Encoding | None,
    rows: Tensor,
    seed: int,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Returns the log-density of each row's input, and its weight, float64, shape (n,), in nats.

    Their sum is the log-density in the units of the data. The noise of a row depends only on the
    seed and its index.

    Arguments:
        recipe: The model.
        estimator: The estimator of its density.
        encoding: The encoding of rows; None for images.
        rows: Rows as the encoding stores them, or images in bytes.
        seed: The seed.
        world: The processes that share the work.
    """
    checked("score", "seed", seed, Annotated[int, SEED])
    device = next(recipe.module.parameters()).device
    key, size = NoiseKey(seed, stream=EVALUATION_STREAM), chunk_size(recipe)
    parts = list[Tensor | tuple[int, ...]]()
    starts = tracked(range(0, len(rows), size), len(rows), "row", shown=world.writes)
    for index, start in enumerate(starts):
        stored = rows[start : start + size]
        parts.append((len(stored), 2))
        if not world.owns(index):
            continue
        stored = stored.to(device)
        x = model_inputs(encoding, stored, key, start)
        with torch.no_grad():
            density = estimator.log_prob(x, key, start).double()
        weight = log_weight(encoding, stored, x).to(density)
        parts[-1] = torch.stack([density, weight], dim=1)
    density, weight = world.gathered(parts, torch.float64).unbind(1)
    return density, weight


def stored_rows(record: DatasetRecord, rows: Any) -> Tensor:
    """Returns rows as the encoding of a run stores them, or images in bytes.

    Arguments:
        record: The record of the run's data.
        rows: Rows in the units of the data, shape (n, columns): an array, a tensor, a table, or a
            data frame whose columns are found by their names. Images: uint8, shape (n, C, H, W).

    Raises:
        TypeError: If they are not numbers, or texts in a column of texts.
        ValueError: If their shape, a column or a value is wrong.
    """
    encoding = record.encoding
    if encoding is None:
        return _images(record, rows)
    return encoding.stored(table_with(encoding, rows), "score")


def table_with(encoding: Encoding, rows: Any, op: str = "score", name: str = "rows") -> Table:
    """Returns the columns of an encoding of rows, at least one; errors as `stored_rows`.

    Arguments:
        encoding: The encoding.
        rows: As for `stored_rows`; columns of frames and tables are found by their names.
        op: The function that errors name.
        name: What errors call the rows.
    """
    table = _table(encoding, rows, op, name)
    if not len(table.values):
        raise ValueError(f"{op}: expected {name}, at least one, got none")
    return table


def _table(encoding: Encoding, rows: Any, op: str, name: str) -> Table:
    if isinstance(rows, Table):
        named = {*encoding.names} <= {*rows.columns}
        return rows.of_columns([*map(rows.columns.index, encoding.names)]) if named else rows
    if is_frame(rows):
        selection = Selection(wanted=encoding.names, texts=frozenset(encoding.texts))
        return select(rows, selection, name)
    values = array_of(rows)
    if values.dtype.kind not in "fiu":
        raise TypeError(
            f"{op}: expected {name} of real numbers, got {in_words(rows)} of {values.dtype}; give"
            " an array, a tensor or a data frame of numbers"
        )
    wanted = len(encoding.columns)
    if values.ndim != 2 or values.shape[1] != wanted:
        raise ValueError(
            f"{op}: expected {name} of shape (n, {wanted}) as in the run, n at least 1, got"
            f" {values.shape}"
        )
    if encoding.texts:
        raise TypeError(
            f"{op}: expected texts in {listed(encoding.texts)}, got numbers alone; give a data"
            " frame"
        )
    return Table(values.astype(np.float64), list(encoding.names), name)


def _images(record: DatasetRecord, rows: Any) -> Tensor:
    array = array_of(rows)
    values = images_of(array, "images") if array.dtype == np.uint8 else torch.as_tensor(array)
    values = torch.as_tensor(array) if values is None else values
    if values.dtype != torch.uint8:
        raise TypeError(
            f"score: expected images in bytes, torch.uint8 from 0 to 255, got {values.dtype}"
        )
    if tuple(values.shape[1:]) != record.event_shape or not len(values):
        wanted = ", ".join(map(str, record.event_shape))
        raise ValueError(
            f"score: expected images of shape (n, {wanted}) as in the run, n at least 1, got"
            f" {tuple(values.shape)}"
        )
    return values
