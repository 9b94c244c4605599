"""Missing parts of rows and images, drawn by a model that was trained with masks.

The model has the distribution of the hidden part given the rest, so that samples need no weights;
what the model says of the given part is replaced by the part itself. A value that is missing is
never drawn as missing, also where the model has learned gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import listed, plain_name
from diffflow_ext.data.formats.frames import as_pandas, is_frame
from diffflow_ext.data.masks import MASKS, Masks
from diffflow_ext.functional.memory import require_memory
from diffflow_ext.functional.noise import NoiseKey

from ..config.rules import Maybe, checked, whole
from ..recipes.base import Recipe
from ..store.dataset import DatasetRecord
from ..store.inputs import model_inputs
from .given import array_as_images, table_of_values, warn_of_far
from .imputation import draws_a_gap
from .sampling import EVALUATION_STREAM, draw
from .scoring import table_with

#: Copies of inputs that are in memory at a time: rows, values, masks, contexts and samples.
COPIES = 8
#: Draws of samples that have the category "missing" for a missing value.
DRAWS = 20
#: Draw k of a sample, from 1 on, has the noise of the stream FURTHER_STREAM + k.
FURTHER_STREAM = EVALUATION_STREAM + 2


@dataclass(frozen=True)
class Part:
    """The part of rows or images that is given.

    Attributes:
        stored: Rows as their encoding stores them, float32 of shape (n, columns), or levels of
            images, shape (n, C, H, W); NaN where they are missing.
        values: The same in the units of the data, float64, of images uint8; any number where they
            are missing.
    """

    stored: Tensor
    values: Tensor

    def completed(self, values: Tensor) -> Tensor:
        """Returns values in the units of the data with those that are given, as they were."""
        return torch.where(self.stored.isnan(), values, self.values)

    def repeated(self, times: int) -> Part:
        """Returns copies of all rows, one copy after the other.

        Raises:
            ValueError: If they, and what is computed of them, do not fit in memory.
        """
        require_memory(
            "sample", f"{times:,} copies", COPIES * 4 * times * self.stored.numel(), "draw fewer"
        )
        axes = (times, *(1,) * (self.stored.dim() - 1))
        return Part(self.stored.repeat(axes), self.values.repeat(axes))

    def for_samples(self, op: str, n: int) -> Part:
        """Returns a row for each of n samples: one for all of them, or each its own."""
        if len(self.stored) == 1:
            return self.repeated(n)
        if len(self.stored) != n:
            raise ValueError(
                f"{op}: expected given with one row for all samples, or {n}, one for each, got"
                f" {len(self.stored)}"
            )
        return self

    def inputs(self, record: DatasetRecord, masks: Masks, seed: int) -> tuple[Tensor, Tensor]:
        """Returns inputs of the model, and masks of what is seen of them."""
        known, key = ~self.stored.isnan(), NoiseKey(seed, stream=EVALUATION_STREAM)
        rows = torch.where(known, self.stored, 0.0)
        if record.encoding is None:
            return model_inputs(None, rows.to(torch.uint8), key), known[:, :1]
        # That a value is there is known of all of them.
        present = known.new_ones(len(known), masks.mask_shape[0] - known.shape[1])
        return model_inputs(record.encoding, rows, key), torch.cat([known, present], dim=1)


def given_part(
    op: str, record: DatasetRecord, given: Any, mask: Any = None, name: str = "given"
) -> Part:
    """Returns the part of rows or images that is given.

    Arguments:
        op: The function that errors name.
        record: The record of the run's data.
        given: Rows of a table as `LoadedRun.log_prob` takes them, or a mapping of some columns to
            their values; or images, whole numbers from 0 to 255; NaN where a value is missing.
        mask: Where the values are given, bool: (columns,) or (n, columns) in the order of the run
            or a data frame, of images (H, W) or (n, H, W); None for all that are not NaN.
        name: What errors call the rows.

    Raises:
        TypeError: If they are no numbers, or the mask isn't bool.
        ValueError: If a shape, a column or a value is wrong.
    """
    encoding = record.encoding
    if encoding is None:
        part = _of_images(op, record, given)
    else:
        is_row = isinstance(given, Mapping)
        table = (table_of_values if is_row else table_with)(encoding, given, op, name)
        stored = encoding.stored(table, op, gaps=True)
        warn_of_far(op, encoding.columns, table.values)
        texts = torch.tensor([column.is_text for column in encoding.columns])
        part = Part(stored, torch.where(texts, stored.double(), torch.from_numpy(table.values)))
    if mask is None:
        return part
    if encoding is not None and is_frame(mask):
        mask = _mask_by_name(op, encoding, as_pandas(mask))
    shown = _checked_mask(op, mask, tuple(part.stored.shape))
    return Part(torch.where(shown, part.stored, torch.nan), part.values)


def check_mask(record: DatasetRecord, given: Any, mask: Any) -> None:
    """Refuses a mask of samples without what it is a mask of, or of a run without masks."""
    if mask is None:
        return
    conditions = record.conditions
    if conditions is None or conditions.masks is None:
        raise ValueError(
            f"sample: expected no mask, because the run was trained without condition={MASKS!r},"
            " which hides parts of its data; leave it out, or train one"
        )
    if given is None:
        raise ValueError("sample: expected given with a mask; give both, or none of them")


def check_imputation(
    record: DatasetRecord, candidates: int | None, options: Mapping[str, Any]
) -> None:
    """Refuses images of a run without masks, and arguments that a run does not use."""
    checked("impute", "candidates", candidates, Annotated[Maybe[int], whole(2)])
    conditions = record.conditions
    if conditions is not None and conditions.masks is not None:
        if candidates is not None:
            raise ValueError(
                f"impute: candidates={candidates}: expected None, because the run was trained with"
                " masks and draws from the conditional distribution itself; leave it out"
            )
        return
    if record.encoding is None:
        raise ValueError(
            f"impute: expected images of a run that was trained with condition={MASKS!r}"
            " (--condition masks), this one was not; with weights one candidate of all would be"
            " left in so many dimensions: train such a run"
        )
    unused = [name for name, value in options.items() if value is not None]
    if unused:
        raise ValueError(
            f"impute: {unused[0]}: expected no options of a sampler, because the run was trained"
            f" without condition={MASKS!r}; leave them out"
        )


def fill(
    recipe: Recipe[Any, Any], record: DatasetRecord, part: Part, *, seed: int, **options: Any
) -> Tensor:
    """Returns samples whose seen parts are given, float32 in the units of training, on the CPU.

    Arguments:
        recipe: The model, trained with masks.
        record: The record of its data.
        part: What is given, a row for each sample.
        seed: The seed; a sample depends on it, its index and its row.
        options: Those of `sampling.draw`.

    Raises:
        ValueError: If a missing value is drawn as missing again and again.
    """
    assert recipe.conditions is not None
    masks = recipe.conditions.masks
    assert masks is not None
    x, mask = part.inputs(record, masks, seed)
    view, drawn = recipe.given(masks.context(x, mask)), 1
    samples = draw(view, len(x), seed=seed, **options)
    while (lost := _lost(record.encoding, samples, part)).any():
        if drawn == DRAWS:
            row = int(lost.nonzero()[0])
            raise ValueError(
                f"sample: expected values for what is missing in sample {row} (counted from 0),"
                f" {DRAWS} draws of it are gaps too; give more of the row, or train longer"
            )
        again = draw(view, len(x), seed=seed, stream=FURTHER_STREAM + drawn, **options)
        samples, drawn = torch.where(lost[:, None], again, samples), drawn + 1
    return torch.where(mask, x, samples)


def _lost(encoding: Encoding | None, samples: Tensor, part: Part) -> Tensor:
    """Returns which samples have the category "missing" for a missing value."""
    if encoding is None:
        return torch.zeros(len(samples), dtype=torch.bool)
    return draws_a_gap(encoding, samples[:, None], part.stored.isnan())[:, 0]


def _of_images(op: str, record: DatasetRecord, given: Any) -> Part:
    levels = array_as_images(op, given, record.event_shape)
    absent = levels.isnan()
    wrong = ~absent & ((levels < 0) | (levels > 255) | (levels != levels.round()))
    if wrong.any():
        index = [int(i) for i in wrong.nonzero()[0]]
        raise ValueError(
            f"{op}: expected levels of images, whole numbers from 0 to 255, or NaN where a pixel"
            f" is missing, got {float(levels[tuple(index)]):.10g} in image {index[0]} (counted"
            " from 0); round and scale them"
        )
    if not torch.equal(absent.any(1), absent.all(1)):
        raise ValueError(
            f"{op}: expected pixels that are missing in all channels or in none, some are missing"
            " in one; make them NaN in all"
        )
    return Part(levels, levels.nan_to_num().to(torch.uint8))


def _mask_by_name(op: str, encoding: Encoding, mask: Any) -> Any:
    """Returns the columns of a mask, a data frame, in the order of the run."""
    names = [*map(plain_name, mask.columns)]
    if sorted(names) != sorted(encoding.names):
        raise ValueError(
            f"{op}: expected mask with the columns {listed(encoding.names)}, got {listed(names)};"
            " give a data frame with all of them, or an array in the order of the run"
        )
    return mask.iloc[:, [names.index(name) for name in encoding.names]].to_numpy()


def _checked_mask(op: str, mask: Any, shape: tuple[int, ...]) -> Tensor:
    """Returns a mask in a shape that broadcasts to that of rows or images."""
    found = torch.as_tensor(np.asarray(mask))
    if found.dtype != torch.bool:
        raise TypeError(
            f"{op}: expected mask as bool, True where a value is given, got {found.dtype}"
        )
    count, *event = shape
    # All channels of a pixel are given, or none.
    own = event[1:] if len(event) > 1 else event
    if list(found.shape) not in (own, [count, *own]):
        words = ", ".join(map(str, own))
        raise ValueError(
            f"{op}: expected mask of shape ({words}) or ({count}, {words}), got"
            f" {tuple(found.shape)}"
        )
    found = found.reshape(-1, *own)
    return found[:, None] if len(event) > 1 else found
