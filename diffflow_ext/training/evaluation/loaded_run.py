"""Trained runs, loaded for sampling and evaluation."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from diffflow_ext.data.column import Column
from diffflow_ext.data.display import content_facts, in_a_line, in_html
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import listed
from diffflow_ext.data.formats.frames import is_frame
from diffflow_ext.data.formats.tables import Table
from diffflow_ext.engines.ode.solver import EXACT_DIMENSIONS

from ..config.defaults import resolve
from ..config.fields import Config
from ..config.rules import checked, whole
from ..parallel.device import pick_device
from ..parallel.distributed import World, local_rank
from ..recipes.base import EvaluationSettings, Recipe
from ..recipes.build import build_recipe, room_of
from ..store.checkpoint import Checkpoint, CheckpointError, load_latest, step_directories
from ..store.dataset import DatasetRecord, recorded
from ..store.directory import RunDirectory, read_metrics
from .given import condition_values, stored_conditions, warn_of_far
from .imputation import POOL, complete, warn_of_few
from .sample_file import to_frame, with_given
from .sampling import MAX_SAMPLES, check_options, draw
from .scoring import log_probs, pick_estimator, stored_rows, table_with

#: Lines of the log whose mean is shown.
LAST = 10


@dataclass(frozen=True)
class LoadedRun:
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
        facts["parameters"] = f"{sum(p.numel() for p in self.model.parameters()):,}"
        lines = [line for line in self.history() if self.recipe.curve[0] in line][-LAST:]
        if lines:
            name, label = self.recipe.curve
            mean = sum(line[name] for line in lines) / len(lines)
            facts[label] = f"{mean:.4g}, mean of the last {len(lines)} lines of the log"
        title = f"Run of {self.config.name} on {self.record.name}"
        return in_html(title, facts, self.record.encoding, self.record.conditions)

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
                or names.
            units: "data" for float64 of shape (n, d) in the units of the data, or images in bytes,
                shape (n, C, H, W); "training" for float32 as the networks see them.
            world: The processes that share the work; all of them get all samples.
            options: Options of the model's sampler, see `recipe.sampler_options`; with conditions
                also `guidance`, 1 by default, the weight w of
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
        recipe = self.recipe.given(self._conditions("sample", given, n))
        samples = draw(recipe, n, seed=seed, num_steps=num_steps, world=world, **options)
        return samples if units == "training" else self.record.in_data_units(samples)

    def sample_frame(self, n: int, *, given: Any = None, **options: Any) -> Any:
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
        samples = self.sample(n, given=given, units="training", **options)
        frame = to_frame(self.record.encoding, self.record.in_data_units(samples))
        conditions = self.record.conditions
        return frame if conditions is None else with_given(frame, conditions, given)

    def with_conditions(self, samples: Tensor, given: Any) -> tuple[tuple[Column, ...], Tensor]:
        """Returns the columns of a table and of its conditions, and their values, float64.

        Arguments:
            samples: Samples of a table in the units of training.
            given: What they are conditioned on, as for `sample`.
        """
        columns = () if self.record.encoding is None else self.record.encoding.columns
        values, conditions = self.record.in_data_units(samples), self.record.conditions
        if conditions is None:
            return columns, values
        own = condition_values(conditions, given, len(samples))
        return columns + conditions.columns, torch.cat([values, own], 1)

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
        own = given is None and self.record.conditions is not None and encoding is not None
        if own and (is_frame(rows) or isinstance(rows, Table)):
            given = rows
        recipe = self.recipe.given(self._conditions("score", given, len(stored)))
        chosen = pick_estimator(recipe, estimator, settings)
        density, weight = log_probs(recipe, chosen, encoding, stored, seed, world or World())
        return density + weight

    def impute(self, rows: Any, n: int = 1, *, candidates: int = 256, seed: int = 0) -> list[Any]:
        """Returns n copies of rows whose missing values are drawn given the others of the row.

        See `evaluation.imputation`: the limit for many candidates is the model's own conditional
        distribution. It takes 10,000 samples of the model, and one evaluation of the density for
        each candidate of a row with gaps.

        Arguments:
            rows: Rows of a table as for `log_prob`, NaN (in a column of texts None) where a value
                is missing. One row n times gives samples of a conditional distribution.
            n: The number of copies.
            candidates: Candidates of each row, at least 2.
            seed: The seed.

        Returns:
            Data frames, with the columns of the run and the index of `rows`, if that is one, else
            float64 tensors. Values that were there are as they were.

        Warns:
            UserWarning: If few candidates of a row count, or numbers lie far outside of those of
                training.

        Raises:
            TypeError: If the run has images, or rows are no numbers.
            ValueError: If a shape, a column, a value or a number is wrong, a row lies where the
                model has no density, or the ODE of the model has too many coordinates.
        """
        encoding = self.record.encoding
        if encoding is None:
            raise TypeError("impute: expected a run of a table, got one of images")
        if self.record.conditions is not None:
            raise ValueError(
                "impute: expected a run without conditions, which this has:"
                f" {listed(self.record.conditions.names)}; train one whose columns are all data"
            )
        checked("impute", "n", n, Annotated[int, whole(1)])
        checked("impute", "candidates", candidates, Annotated[int, whole(2)])
        table = table_with(encoding, rows, "impute")
        stored = encoding.stored(table, "impute", gaps=True)
        warn_of_far("impute", encoding.columns, table.values)
        copies = self._completed(encoding, stored, n, candidates, seed)
        texts = torch.tensor([column.is_text for column in encoding.columns])
        given = torch.where(texts, stored.double(), torch.from_numpy(table.values))
        values = [torch.where(stored.isnan(), copy, given) for copy in copies]
        if not (is_frame(rows) or encoding.texts):
            return values
        frames, index = [to_frame(encoding, part) for part in values], getattr(rows, "index", None)
        return frames if index is None else [frame.set_axis(index) for frame in frames]

    def _completed(
        self, encoding: Encoding, stored: Tensor, n: int, candidates: int, seed: int
    ) -> Tensor:
        """Returns decoded copies of stored rows, shape (n, rows, columns)."""
        estimator = pick_estimator(self.recipe, None, EvaluationSettings())
        if encoding.dim > EXACT_DIMENSIONS and estimator.name == "ode":
            raise ValueError(
                f"impute: expected at most {EXACT_DIMENSIONS} coordinates, beyond which densities"
                f" of an ODE are random estimates, the run has {encoding.dim}; take the model flow"
            )
        gaps = stored.isnan().any(1)
        copies = torch.zeros(n, *stored.shape, dtype=torch.float64)
        if not bool(gaps.any()):
            return copies
        pool = self.sample(POOL, seed=seed, units="training")
        device = next(self.model.parameters()).device
        found = complete(encoding, estimator, pool, stored[gaps], n, candidates, seed, device)
        warn_of_few(found.effective)
        copies[:, gaps] = torch.stack([encoding.decoded(x) for x in found.inputs])
        return copies


def _holds_run(path: Path) -> bool:
    return RunDirectory(path).holds_run()


def load_run(path: str | Path, device: str = "cpu") -> LoadedRun:
    """Returns the model of a run with its averaged weights, ready to sample.

    Arguments:
        path: The run directory.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: If there is no run.
        CheckpointError: If it has no whole checkpoint.
        ImportError: If the model needs a package that is missing.
    """
    return replace(run_of(read_run(path), device, path), folder=Path(path).absolute())


def read_run(path: str | Path) -> Checkpoint:
    """Returns the newest whole checkpoint of a run; errors are those of `load_run`."""
    run = RunDirectory(path)
    if run.root.is_file():
        raise ValueError(f"{path}: expected the folder of a run, got a file; name the folder")
    if not run.holds_run() and not step_directories(run.checkpoints):
        above = [parent for parent in run.root.absolute().parents[:2] if _holds_run(parent)]
        hint = f"diffflow train DATA --out {shlex.quote(str(path))} makes one"
        hint = f"the run is {shlex.quote(str(above[0]))}" if above else hint
        raise ValueError(f"{path}: no run there; {hint}")
    return load_latest(run.checkpoints)


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
