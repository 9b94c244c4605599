"""The training loop.

On a CPU with the same number of threads, a run that was interrupted and resumed ends with the same
bits, because a step depends only on the state and on (seed, step).
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffflow_ext.data import Dataset
from diffflow_ext.functional.core import build_info

from ..config.defaults import completed_from, resolve
from ..config.fields import Config
from ..config.files import to_record, to_toml
from ..config.schedules import is_logged, is_saved
from ..parallel.device import pick_device
from ..parallel.distributed import World, local_rank
from ..parallel.progress import Progress
from ..recipes.base import Recipe
from ..recipes.build import build_recipe, room_for_training, room_of
from ..recipes.contexts import BatchContexts, Contexts, MaskContexts
from ..store.checkpoint import Checkpoint, CheckpointError
from ..store.dataset import DatasetRecord, describe_data, open_data, recorded
from ..store.directory import MetricsLog, RunDirectory
from ..store.saver import Saver
from .batches import Batches
from .callbacks import Callback, Callbacks
from .session import Interrupted, own_generator, signals
from .starting import check_batch, check_world, warn_of_other_end
from .state import TrainState
from .step import TrainingError, TrainingStep

#: What a step returns: its metrics, and the signal at which training stops, or 0.
Taken = tuple[dict[str, float], int]


@dataclass(frozen=True)
class TrainResult:
    """The end of a run.

    Arguments:
        step: Completed steps.
        taken: Steps taken in this session.
        elapsed: Seconds of training, over all sessions of the run.
        checkpoint: The newest checkpoint.
    """

    step: int
    taken: int
    elapsed: float
    checkpoint: Path


class Trainer:
    """One session of a run: data and state in memory, and the loop over steps."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        world: World,
        checkpoint: Checkpoint | None,
        rows: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        device = pick_device(config.run.device, local_rank())
        if checkpoint is not None:
            config = completed_from(config, recorded(checkpoint)[1])
        dataset = open_data(config, rows, warn=world.writes)
        config = resolve(config, is_image=dataset.is_image, flip=dataset.flip)
        self.config, self.run, self.device, self.world = config, run, device, world
        self.callbacks = Callbacks(callbacks if world.writes else ())
        self.dataset, self.record = dataset, DatasetRecord.of(dataset)
        self.recipe = self._build(checkpoint)
        check_world(world, config, self.recipe)
        check_batch(world, config, self.record.dim)
        # With shares, the whole model may be too large for one GPU.
        shares = config.run.shard and world.size > 1
        module = self.recipe.module.to("cpu" if shares else device)
        self.state = TrainState(config, module, self.recipe.objectives)
        part = world.share(config.optimiser.batch_size)
        self.recipe.contexts = _contexts(config, dataset, device)
        batches = Batches(config, dataset.train, device, part, dataset.encoding)
        self.step = TrainingStep(config, self.recipe, self.state, batches, world)
        keep = config.run.keep_checkpoints
        self.saver = Saver(run.checkpoints, keep, beside=config.run.async_save)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _build(self, checkpoint: Checkpoint | None) -> Recipe[Any, Any]:
        """Returns the recipe, or refuses one that is larger than the checkpoint or the memory."""
        config, shape = self.config, self.dataset.event_shape
        if checkpoint is None:
            room = room_for_training(self.device.type)
            return build_recipe(config, shape, room, self.record.conditions)
        record, _ = recorded(checkpoint)
        record.require(self.dataset)
        return build_recipe(config, shape, room_of(checkpoint.model), record.conditions)

    def _restore(self, checkpoint: Checkpoint) -> None:
        steps = self.config.optimiser.steps
        if checkpoint.step > steps:
            raise ValueError(
                f"train: steps={steps}: the run is at step {checkpoint.step} already; give more,"
                " or overwrite it to start anew"
            )
        self.state.restore(checkpoint)
        if self.world.writes:
            _, before = recorded(checkpoint)
            warn_of_other_end(before.optimiser.steps, checkpoint.step, self.config)
        self.state.saved = self.run.checkpoints / f"step-{checkpoint.step:08d}"

    def run_to_end(self, progress: bool | None, *, overwrite: bool = False) -> TrainResult:
        """Trains up to the last step, with a log, a bar and checkpoints; signals end it early.

        First it says what was read. Callbacks follow all of it.
        With `overwrite`, the run in the directory is replaced when the first step is done.
        """
        before, steps = self.state.step, self.config.optimiser.steps
        shown = progress if self.world.writes else False
        with (
            self._followed(),
            Progress("step", steps, before, shown=shown) as bar,
            signals(announce=self.world.writes) as received,
            own_generator(self.device),
        ):
            bar.say(describe_data(self.dataset))
            self.rate = _Rate(self.state, self.config.optimiser.batch_size)
            first = self._begin(received, overwrite=overwrite)
            with self._opened_log() as self.log:
                self._loop_and_save(bar, received, first)
        assert self.state.saved is not None
        step = self.state.step
        return TrainResult(step, step - before, self.state.elapsed, self.state.saved)

    @contextlib.contextmanager
    def _followed(self) -> Iterator[None]:
        """Starts the callbacks, and ends them with the error of the training, if any."""
        config, out, step = self.config, self.run.root, self.state.step
        try:
            self.world.on_first(lambda: self.callbacks.on_start(config, out, step))
            yield
        except BaseException as error:
            self.callbacks.on_end(error)
            raise
        self.callbacks.on_end(None)

    def _begin(self, received: list[int], *, overwrite: bool) -> Taken | None:
        """Writes the configuration.

        With `overwrite` it takes the first step before; then it removes the old run, whose place
        the new one takes.
        """
        first = self.step.take(received) if overwrite else None

        def begin() -> None:
            if overwrite:
                self.run.clear()
            self.run.begin(to_toml(self.config))

        self.world.on_first(begin)
        return first

    def _loop_and_save(self, bar: Progress, received: list[int], first: Taken | None) -> None:
        """Trains, and returns when everything is written.

        After errors that all processes have at the same step they can wait for one another; after
        any other error this process must end at once, so that the others end too.
        """
        try:
            self._loop(bar, received, first)
        except (TrainingError, Interrupted):
            self.world.on_first(self.saver.wait)
            raise
        except BaseException:
            with contextlib.suppress(CheckpointError):
                self.saver.wait()
            raise
        self.world.on_first(self.saver.wait)
        skipped, steps = self.state.skipped, self.config.optimiser.steps
        if 2 * skipped > steps and self.world.writes:
            warnings.warn(
                f"train: {skipped} of {steps} steps were skipped because they weren't finite: the"
                " model has hardly trained; lower learning_rate",
                stacklevel=2,
            )

    def _opened_log(self) -> contextlib.AbstractContextManager[MetricsLog | None]:
        if not self.world.writes:
            return contextlib.nullcontext()
        return MetricsLog(self.run.metrics, self.state.step)

    def _loop(self, bar: Progress, received: list[int], first: Taken | None) -> None:
        state, steps = self.state, self.config.optimiser.steps
        while first or state.step < steps:
            line, signum = first or self.step.take(received)
            first = None
            logged = is_logged(self.config, state.step)
            bar.update(1, self._tell(line) if logged else None)
            if signum or is_saved(self.config, state.step):
                self._save()
            if signum and state.saved is not None:
                raise Interrupted(signum, state.saved)

    def _tell(self, line: dict[str, float]) -> str:
        """Completes the line of a step for log, callbacks and bar; returns the bar's text.

        After an error the state is saved: all processes know of it at this step.
        """
        if "loss" in line:
            line |= self.recipe.reading(self.state.step - 1, line["loss"])
        line |= self.rate.measure()
        try:
            self.world.on_first(lambda: self._write(line))
        except Exception:
            self._save()
            self.world.on_first(self.saver.wait)
            raise
        return self._bar_text(line)

    def _write(self, line: dict[str, float]) -> None:
        assert self.log is not None
        self.log.write(line)
        self.callbacks.on_log(line)

    def _bar_text(self, line: dict[str, float]) -> str:
        speed = f"{line['samples_per_second']:.0f} samples/s"
        if "loss" not in line:
            return f"{line['skipped']:.0f} steps skipped, {speed}"
        name = self.recipe.curve.name
        # The loss of a path grows with the number of its steps, which its bound does not.
        unit = "" if name == "loss" else " nats"
        return f"{name} {line[name]:.3f}{unit}, {speed}"

    def _save(self) -> None:
        self.rate.tick()
        meta = {
            "package": build_info()["version"],
            "config": to_record(self.config),
            "seed": self.config.run.seed,
            "data": self.record.to_meta(),
        }
        checkpoint = self.state.to_checkpoint(meta, keep=self.world.writes)
        self.world.on_first(lambda: self._write_state(checkpoint))
        self.state.saved = self.run.checkpoints / f"step-{checkpoint.step:08d}"

    def _write_state(self, checkpoint: Checkpoint) -> None:
        assert self.log is not None
        self.log.sync()
        self.saver.save(checkpoint)


def _contexts(config: Config, dataset: Dataset, device: torch.device) -> Contexts | None:
    conditions, stored = dataset.conditions, dataset.given_of("train")
    if conditions is not None and conditions.masks is not None:
        return MaskContexts(config, conditions.masks)
    if conditions is None or stored is None:
        return None
    return BatchContexts(config, conditions, stored, device)


class _Rate:
    """Measures the time of the whole run, and the speed since the last measurement."""

    def __init__(self, state: TrainState, batch_size: int) -> None:
        self.state, self.batch_size = state, batch_size
        self.tick_time = self.measured_time = time.perf_counter()
        self.measured_step = state.step

    def tick(self) -> float:
        """Adds the time since the last tick to the run's, and returns the present."""
        now = time.perf_counter()
        self.state.elapsed += now - self.tick_time
        self.tick_time = now
        return now

    def measure(self) -> dict[str, float]:
        """Returns the metrics that measure time."""
        now = self.tick()
        samples = (self.state.step - self.measured_step) * self.batch_size
        speed = samples / max(now - self.measured_time, 1e-9)
        self.measured_step, self.measured_time = self.state.step, now
        return {"samples_per_second": speed, "elapsed": self.state.elapsed}
