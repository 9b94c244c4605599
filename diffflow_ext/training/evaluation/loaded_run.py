"""Trained runs, loaded for sampling and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from diffflow_ext.data.column import Column
from diffflow_ext.data.display import content_facts, in_a_line, in_html, title_of
from diffflow_ext.data.formats.columns import listed
from diffflow_ext.data.formats.frames import is_frame
from diffflow_ext.data.formats.tables import Table

from ..config.defaults import resolve
from ..config.fields import Config
from ..config.rules import checked, whole
from ..parallel.device import pick_device
from ..parallel.distributed import World, local_rank
from ..recipes.base import EvaluationSettings, Recipe
from ..recipes.build import build_recipe, room_of
from ..store.checkpoint import Checkpoint, CheckpointError
from ..store.dataset import DatasetRecord, recorded
from ..store.directory import RunDirectory, read_metrics
from ..store.runs import read_run
from .filling import Part, check_imputation, check_mask, fill, given_part
from .given import condition_values, stored_conditions
from .imputation import CANDIDATES, weighed
from .sample_file import to_frame, with_given
from .sampling import MAX_SAMPLES, check_options, draw
from .scoring import log_probs, pick_estimator, stored_rows
from .sharing import Shareable

#: Lines of the log whose mean is shown.
LAST = 10


@dataclass(frozen=True)
class LoadedRun(Shareable):
    """A run, loaded for sampling and evaluation.

    Arguments:
        recipe: The model with its averaged weights, its sampler and its estimators.
        config: The configuration with which it was trained.
        record: The record of its data.
        step: Completed training steps.
        folder: Its folder; None if it's in memory alone.
    """

    recipe: Recipe[Any, Any]
    config: Config
    record: DatasetRecord
    step: int
    folder: Path | None = None

    def __repr__(self) -> str:
        return in_a_line("LoadedRun", self._facts())

    def _repr_html_(self) -> str:
        """Returns a table for notebooks."""
        facts = self._facts()
        facts["parameters"] = f"{self.parameters:,}"
        lines = [line for line in self.history() if self.recipe.curve.name in line][-LAST:]
        if lines:
            curve = self.recipe.curve
            mean = sum(line[curve.name] for line in lines) / len(lines)
            facts[curve.label] = f"{mean:.4g}, mean of the last {len(lines)} lines of the log"
        title = f"Run of {self.config.name} on {title_of(self.record.name)}"
        return in_html(title, facts, self.record.encoding, self.record.conditions)

    @classmethod
    def _of_folder(cls, folder: str | Path, device: str) -> LoadedRun:
        return load_run(folder, device)

    def _facts(self) -> dict[str, str]:
        record, facts = self.record, {"model": self.config.name, "step": f"{self.step:,}"}
        return facts | content_facts(record.encoding, record.conditions, record.event_shape)

    def history(self) -> list[dict[str, Any]]:
        """Returns losses and more by step, as in metrics.jsonl; none without a folder."""
        return [] if self.folder is None else read_metrics(RunDirectory(self.folder).metrics)

    @property
    def model(self) -> nn.Module:
        """The model itself: a DiffFlowSDE, DiNof, NFDM, DDPM or flow."""
        return self.recipe.module

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        given: Any = None,
        mask: Any = None,
        units: Literal["data", "training"] = "data",
        world: World | None = None,
        **options: Any,
    ) -> Tensor:
        """Returns n samples on the CPU: sample i depends only on the seed and i.

        Arguments:
            n: The number of samples.
            seed: The seed of the noise.
            num_steps: Steps of the sampler; None for the model's own number.
            given: What samples are conditioned on, which a run with conditions needs: a mapping of
                each name to the value of all samples, such as ``{"label": 3}`` or
                ``{"cut": "Ideal", "price": 500}``; or a row for each sample, of a table a data
                frame or an array of numbers, of images the classes, shape (n,), by their numbers
                or names. Of a run that was trained with masks the part that is seen: one row or
                image for all samples, or n of them, as for `impute`, with NaN where a value is
                missing, or a mapping of some columns; None for nothing.
            mask: Of a run that was trained with masks where the values of `given` are seen, bool:
                (columns,) or (n, columns), of images (H, W) or (n, H, W); None for all but NaN.
            units: "data" for float64 of shape (n, d) in the units of the data, or images in bytes,
                shape (n, C, H, W); "training" for float32 as the networks see them.
            world: The processes that share the work; all of them get all samples.
            options: Options of the model's sampler, see `recipe.sampler_options`; with conditions
                but masks also `guidance`, 1 by default, the weight w of
                :class:`diffflow_ext.engines.conditions.Guided`: more than 1 strengthens the
                condition. Samples with another weight than 1 no longer follow the density that
                `log_prob` states.

        Raises:
            TypeError: If a value of `given` isn't a number where the run has numbers.
            ValueError: If `given` is missing or has a wrong name, value or number of rows, `n` or
                `seed` isn't in its range, the samples don't fit in memory, the model's sampler has
                no such option, or `units` is another word.
        """
        if units not in ("data", "training"):
            raise ValueError(f"sample: units={units!r}: expected 'data' or 'training'")
        texts = self.record.encoding.texts if self.record.encoding else ()
        if texts and units == "data":
            raise ValueError(
                f"sample: expected columns of numbers, {listed(texts)} have texts; take"
                " sample_frame, or units='training'"
            )
        options |= {"seed": seed, "num_steps": num_steps, "world": world}
        samples, part = self._drawn(n, given, mask, options)
        if units == "training":
            return samples
        values = self.record.in_data_units(samples)
        return values if part is None else part.completed(values)

    def _drawn(
        self, n: int, given: Any, mask: Any, options: dict[str, Any]
    ) -> tuple[Tensor, Part | None]:
        """Returns samples in the units of training, and the part that is seen, if there is one."""
        checked("sample", "n", n, Annotated[int, whole(1, MAX_SAMPLES)])
        check_mask(self.record, given, mask)
        if given is None or not self._has_masks:
            recipe = self.recipe.given(self._conditions("sample", given, n))
            return draw(recipe, n, **options), None
        part = given_part("sample", self.record, given, mask).for_samples("sample", n)
        return fill(self.recipe, self.record, part, **options), part

    @property
    def _has_masks(self) -> bool:
        conditions = self.record.conditions
        return conditions is not None and conditions.masks is not None

    def sample_frame(
        self, n: int, *, given: Any = None, mask: Any = None, seed: int = 0, **options: Any
    ) -> Any:
        """Returns n samples of a table as a data frame of pandas.

        Its columns have the names, types and categories of the data; missing numbers are NaN.
        Conditions are columns after the others, with the values that were given; if `given` is a
        data frame, also with their types there, and the samples have its index. The samples and
        the options are those of `sample`.

        Raises:
            TypeError: If the run has images.
        """
        if self.record.encoding is None:
            raise TypeError("sample_frame: expected a run of a table, got one of images")
        samples, part = self._drawn(n, given, mask, {"seed": seed, **options})
        values, conditions = self.record.in_data_units(samples), self.record.conditions
        if part is not None:
            values = part.completed(values)
        known = None if part is None else ~part.stored.isnan()
        frame = to_frame(self.record.encoding, values, known)
        if conditions is None or self._has_masks:
            return frame
        return with_given(frame, conditions, given)

    def drawn_columns(
        self, n: int, given: Any, **options: Any
    ) -> tuple[Tensor, tuple[Column, ...], Tensor]:
        """Returns samples in the units of training, the columns of a table, and their values.

        Columns are those of the table and then of its conditions, none of images. Values are in
        the units of the data, float64, with indices of texts; those that are given are as they
        were. Arguments and errors are those of `sample`.
        """
        samples, part = self._drawn(n, given, None, options)
        encoding, conditions = self.record.encoding, self.record.conditions
        columns = () if encoding is None else encoding.columns
        values = self.record.in_data_units(samples)
        if part is not None:
            values = part.completed(values)
        if conditions is None or not conditions.columns:
            return samples, columns, values
        own = condition_values(conditions, given, len(samples))
        return samples, columns + conditions.columns, torch.cat([values, own], 1)

    def _conditions(self, op: str, given: Any, count: int) -> Tensor | None:
        """Returns the conditions of samples as the run stores them; None if it has none."""
        checked(op, "n", count, Annotated[int, whole(1, MAX_SAMPLES)])
        return stored_conditions(op, self.record.conditions, given, count)

    def log_prob(
        self,
        rows: Any,
        *,
        given: Any = None,
        estimator: str | None = None,
        num_steps: int | None = None,
        num_paths: int = 1,
        seed: int = 0,
        world: World | None = None,
    ) -> Tensor:
        """Returns the log-density of each row in nats, or a bound of it, float64 of shape (n,).

        Arguments:
            rows: Rows in the units of the data, shape (n, d): an array, a tensor, a table, or a
                data frame whose columns are found by their names and may be texts; or images in
                bytes, shape (n, C, H, W).
            given: What the rows are conditioned on, as for `sample`. By default their own columns
                of these names, if they are a data frame or a table. The density is that of the
                other columns given these.
            estimator: "exact", "ode", "bound" or "importance_weighted", if the model has it. By
                default an exact density or the ODE's; of images the bound.
            num_steps: Steps N of the model's bound; None for its own.
            num_paths: Paths of the importance-weighted bound, which is taken if there are 2 or
                more.
            seed: Seed of all noise, which for a row also depends on its index. A bound is a random
                number: rows that differ by less than its scatter over seeds are not ranked by it.
            world: The processes that share the work; all of them get all numbers.

        Returns:
            Log-densities in the units of the data, log-probabilities of the values of discrete
            columns and of the bytes of images. With such columns, or missing values, they are
            bounds with one draw of noise (see `data.encoding`), also if the density is exact.

        Raises:
            TypeError: If the rows are not numbers.
            ValueError: If a shape, a column or a value is wrong, or there is no such estimator.
        """
        check_options("score", self.recipe, num_steps, {})
        settings = EvaluationSettings(num_steps, num_paths)
        stored, encoding = stored_rows(self.record, rows), self.record.encoding
        recipe = self.recipe.given(self._own_conditions("score", rows, given, len(stored)))
        chosen = pick_estimator(recipe, estimator, settings)
        density, weight = log_probs(recipe, chosen, encoding, stored, seed, world or World())
        return density + weight

    def _own_conditions(self, op: str, rows: Any, given: Any, count: int) -> Tensor | None:
        """Returns the conditions of rows: those given, or else the rows' own columns."""
        conditions = self.record.conditions
        has_columns = conditions is not None and conditions.encoding is not None
        if given is None and has_columns and (is_frame(rows) or isinstance(rows, Table)):
            given = rows
        return self._conditions(op, given, count)

    def impute(
        self,
        rows: Any,
        n: int = 1,
        *,
        given: Any = None,
        candidates: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> list[Any]:
        """Returns n copies of rows whose missing values are drawn given the others of the row.

        A run that was trained with masks (``condition="masks"``) has the distribution of the
        missing part given the rest, and draws from it: see `evaluation.filling`. Of any other run
        of a table candidates are weighed by the model's density, see `evaluation.imputation`: the
        limit for many candidates is the model's own conditional distribution. It takes 10,000
        samples of the model, and one evaluation of the density for each candidate of a row with
        gaps. Images need a run with masks.

        Arguments:
            rows: Rows of a table as for `log_prob`, NaN (in a column of texts None) where a value
                is missing. Or images, whole numbers from 0 to 255 of shape (n, C, H, W), NaN where
                a pixel is missing. One row n times gives samples of a conditional distribution.
            n: The number of copies.
            given: What the rows are conditioned on, as for `log_prob`, of a run with such
                conditions; by default their own columns.
            candidates: Candidates of each row, at least 2, of a run without masks; None for 256.
            seed: The seed.
            options: Steps and options of the sampler, as for `sample`, of a run with masks.

        Returns:
            Data frames, with the columns of the run and the index of `rows`, if that is one, else
            float64 tensors, or images in bytes. Values that were there are as they were.

        Warns:
            UserWarning: If few candidates of a row count, or numbers lie far outside of those of
                training.

        Raises:
            TypeError: If the rows are no numbers.
            ValueError: If a shape, a column, a value, a number or an option is wrong, a condition
                is missing, the run has images and no masks, a row lies where the model has no
                density, or the ODE of the model has too many coordinates.
        """
        _, copies, known = self.completed(
            rows, n, given=given, candidates=candidates, seed=seed, options=options
        )
        encoding, conditions = self.record.encoding, self.record.conditions
        if encoding is None:
            return copies
        copies = [copy[:, : len(encoding.columns)] for copy in copies]
        if not (is_frame(rows) or encoding.texts):
            return copies
        frames = [to_frame(encoding, copy, known) for copy in copies]
        index = getattr(rows, "index", None)
        if conditions is not None and conditions.columns:
            own = rows if given is None else given
            frames = [with_given(frame, conditions, own) for frame in frames]
        return frames if index is None else [frame.set_axis(index) for frame in frames]

    def completed(
        self, rows: Any, n: int, *, given: Any, candidates: int | None, seed: int,
        options: dict[str, Any],
    ) -> tuple[tuple[Column, ...], list[Tensor], Tensor]:  # fmt: skip
        """Returns the columns of a table and its conditions, copies of rows, and what was there.

        The copies are in the units of the data, with indices of texts; of images there are no
        columns. Arguments and errors are those of `impute`.
        """
        checked("impute", "n", n, Annotated[int, whole(1)])
        check_imputation(self.record, candidates, options)
        part, encoding = given_part("impute", self.record, rows, name="rows"), self.record.encoding
        stored = self._own_conditions("impute", rows, given, len(part.stored))
        if self._has_masks:
            every = part.repeated(n)
            samples = fill(self.recipe, self.record, every, seed=seed, **options)
            drawn = self.record.in_data_units(samples).split(len(part.stored))
        else:
            candidates = candidates or CANDIDATES
            drawn = weighed(self.recipe, encoding, part.stored, stored, n, candidates, seed)
        copies, known = [part.completed(copy) for copy in drawn], ~part.stored.isnan()
        columns, conditions = () if encoding is None else encoding.columns, self.record.conditions
        if conditions is None or not conditions.columns:
            return columns, copies, known
        own = condition_values(conditions, rows if given is None else given, len(part.stored))
        return columns + conditions.columns, [torch.cat([c, own], 1) for c in copies], known


def load_run(path: str | Path, device: str = "cpu") -> LoadedRun:
    """Returns the model of a run with its averaged weights, ready to sample.

    Arguments:
        path: The run directory, or ``"examples:rings"`` or ``"examples:magic"``, which come with
            the package.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: If there is no run.
        CheckpointError: If it has no whole checkpoint.
        ImportError: If the model needs a package that is missing.
    """
    folder = RunDirectory(path).root.absolute()
    return replace(run_of(read_run(path), device, path), folder=folder)


def run_of(checkpoint: Checkpoint, device: str, source: str | Path) -> LoadedRun:
    """Returns the run of a checkpoint from `source`; errors are those of `load_run`."""
    record, config = recorded(checkpoint)
    try:
        config = resolve(config, is_image=record.is_image)
        recipe = build_recipe(
            config, record.event_shape, room_of(checkpoint.ema), record.conditions
        )
        recipe.module.load_state_dict(dict(checkpoint.ema))
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its checkpoint of step {checkpoint.step} doesn't fit its configuration:"
            f" {error}; train again"
        ) from error
    recipe.module.to(pick_device(device, local_rank())).eval()
    return LoadedRun(recipe, config, record, checkpoint.step)
