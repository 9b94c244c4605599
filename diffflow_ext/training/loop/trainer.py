"""The training loop.

A step is a pure function of the state before it and of (seed, step): the order of the data, the
time grid and the noise are computed from these two numbers and never stored. A run that was cut
off and resumed therefore ends, on a CPU with the same number of threads, with the same bits.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffflow_ext.functional.core import build_info

from ..config.defaults import resolve
from ..config.fields import TrainConfig
from ..config.schedules import learning_rate_at
from ..parallel.device import pick_device
from ..parallel.distributed import Loss, World, local_rank
from ..parallel.sharding import ShardedLosses, in_full
from ..recipes import build_recipe
from ..recipes.base import Part
from ..store.checkpoint import CheckpointError, load_latest
from ..store.dataset import DatasetRecord, open_data
from ..store.directory import MetricsLog, NoLog, RunDirectory
from ..store.saver import Saver
from .batches import Batches
from .captured import CapturedTraining
from .diagnosis import diagnose
from .session import own_generator, signals
from .starting import check_world, warn_of_other_end
from .state import TrainState

__all__ = ["Interrupted", "TrainResult", "TrainingError"]


# Spreads seeds over the 32 bits that torch's generator takes, apart from the step numbers.
SEED_FACTOR = 0x9E3779B1


# The same for processes; odd, and far from the numbers of steps.
RANK_FACTOR = 0x85EBCA6B


class TrainingError(RuntimeError):
    """Training can't go on: the loss or its gradient isn't finite."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the state was saved first.

    Arguments:
        signum: Which signal.
        saved: The checkpoint.
    """

    def __init__(self, signum: int, saved: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; saved {saved}")
        self.signum = signum


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Arguments:
        step: Completed steps.
        taken: How many of them now, and not before a resume.
        elapsed: Seconds of training, over all sessions of the run.
        checkpoint: The newest checkpoint.
    """

    step: int
    taken: int
    elapsed: float
    checkpoint: Path


Metrics = dict[str, float]


#: More steps in a row that aren't finite are no accident.
MAX_SKIPPED = 100


class _Trainer:
    """One session of a run: data and state in memory, and the loop over steps."""

    def __init__(self, config: TrainConfig, run: RunDirectory, world: World) -> None:
        device = pick_device(config.device, local_rank())
        dataset = open_data(config)
        config = resolve(config, is_image=dataset.is_image, flip=dataset.flip)
        self.config, self.run, self.device, self.world = config, run, device, world
        self.dataset, self.record = dataset, DatasetRecord.of(dataset)
        self.part = world.share(config.batch_size)
        self.batches = Batches(config, dataset.train, device, self.part)
        self.recipe = build_recipe(config, dataset.event_shape)
        check_world(world, config, self.recipe)
        self.shares = config.shard and world.size > 1
        # What will lie in shares need not fit into a GPU before.
        module = self.recipe.module.to("cpu" if self.shares else device)
        self.losses: list[Loss] = []
        self.sharded: ShardedLosses | None = None
        self.state = TrainState(config, module, self.recipe.parts)
        self.saved: Path | None = None
        self.saver = Saver(run.checkpoints, config.keep_checkpoints, beside=config.async_save)
        self.captured: CapturedTraining | None = None
        self.received: list[int] = []

    def restore(self) -> None:
        """Takes over the newest whole checkpoint."""
        checkpoint = load_latest(self.run.checkpoints)
        DatasetRecord.from_meta(checkpoint.meta["data"]).require(self.dataset)
        if checkpoint.step > self.config.steps:
            raise ValueError(
                f"train: steps={self.config.steps}: the run is at step {checkpoint.step} already;"
                " give more, or overwrite it to start anew"
            )
        self.state.restore(checkpoint)
        if self.world.writes:
            steps = checkpoint.meta["config"]["steps"]
            warn_of_other_end(steps, checkpoint.step, self.config)
        self.saved = self.run.checkpoints / f"step-{checkpoint.step:08d}"

    def share_out(self) -> None:
        """Lets the processes average gradients, and keep shares of the state where asked for."""
        if self.shares:
            self.state.shard(self._shard, self.device)
            assert self.sharded is not None
            self.losses = self.sharded.each()
        else:
            self.losses = [self.world.reduced(part) for part in self.recipe.parts]

    def _shard(self) -> Sequence[Part]:
        self.sharded = ShardedLosses(self.recipe, self.device)
        return self.recipe.parts

    def run_to_end(self, progress: bool | None) -> TrainResult:
        """Trains up to the last step, with a log, a bar, checkpoints and an ear for signals."""
        disabled, before = None if progress is None else not progress, self.state.step
        if self.config.cuda_graph:
            self.captured = CapturedTraining(self.config, self.recipe, self.state)
        if not self.world.writes:
            disabled = True
        with (
            self._log() as log,
            tqdm(
                total=self.config.steps, initial=self.state.step, disable=disabled, unit="step"
            ) as bar,
            signals() as self.received,
            own_generator(self.device),
        ):
            self._loop_and_save(log, bar)
        assert self.saved is not None
        step = self.state.step
        return TrainResult(step, step - before, self.state.elapsed, self.saved)

    def _loop_and_save(self, log: MetricsLog, bar: tqdm[Any]) -> None:
        """Trains, and ends when everything is written.

        Errors that all processes have at one step may wait for one another; at any other error
        this process must end, and the others with it.
        """
        try:
            self._loop(log, bar)
        except (TrainingError, Interrupted):
            self.world.on_first(self.saver.wait)
            raise
        except BaseException:
            with contextlib.suppress(CheckpointError):
                self.saver.wait()
            raise
        self.world.on_first(self.saver.wait)
        if 2 * self.state.skipped > self.config.steps and self.world.writes:
            warnings.warn(
                f"train: {self.state.skipped} of {self.config.steps} steps were skipped because"
                " they weren't finite: the model has hardly trained; lower learning_rate",
                stacklevel=2,
            )

    def start_flows(self) -> None:
        """Shows the whole first batch to layers that take their scale from it.

        In every process, which would show its part of it otherwise, and before the first step,
        which may be left out.
        """
        layers = [m for m in self.recipe.module.modules() if hasattr(m, "initialised")]
        if all(layer.initialised for layer in layers):
            return
        device = next(self.recipe.module.parameters()).device
        whole = Batches(self.config, self.dataset.train, device)(0)
        torch.manual_seed(self._seed(0))
        with torch.no_grad():
            self.recipe.each(whole, 0, 0)
        if not all(p.isfinite().all() for layer in layers for p in layer.parameters()):
            raise TrainingError(
                "train: the first batch gives the flow a scale that isn't finite; check the data,"
                " or change diffusion_end or batch_size"
            )

    def _seed(self, step: int) -> int:
        """Returns the seed of torch's generator in a step: apart in each process."""
        return (self.config.seed * SEED_FACTOR + step + self.world.rank * RANK_FACTOR) % 2**32

    def _log(self) -> MetricsLog:
        return MetricsLog(self.run.metrics, self.state.step) if self.world.writes else NoLog()

    def _loop(self, log: MetricsLog, bar: tqdm[Any]) -> None:
        config, state = self.config, self.state
        rate = _Rate(state, config.batch_size)
        while state.step < config.steps:
            line, signum = self._step()
            bar.update()
            if state.step % config.log_every == 0 or state.step == config.steps:
                if "loss" in line:
                    line |= self.recipe.reading(state.step - 1, line["loss"])
                line |= rate.measure()
                log.write(line)
                bar.set_postfix_str(self._bar_text(line))
            last = state.step == config.steps or signum > 0
            if last or state.step % config.save_every == 0:
                rate.tick()
                log.sync()
                self._save()
            if signum and self.saved is not None:
                raise Interrupted(signum, self.saved)

    def _step(self) -> tuple[dict[str, float], int]:
        """Takes one training step; returns its metrics, and a signal that has come or 0."""
        config, step = self.config, self.state.step
        # Networks that draw (dropout) and estimators of flows draw the same after a resume.
        torch.manual_seed(self._seed(step))
        x0 = self.batches(step)
        rates = [learning_rate_at(config, step, part.learning_rate) for part in self.recipe.parts]
        take = self._plain if self.captured is None else self._graphed
        metrics, signum = take(x0, step, rates)
        return {"step": step + 1, **metrics, "lr": rates[0]}, signum

    def _plain(self, x0: Tensor, step: int, rates: list[float]) -> tuple[Metrics, int]:
        """Takes a step in PyTorch's usual way; not at all where a number isn't finite."""
        self.state.optimiser.zero_grad(set_to_none=True)
        parts = zip(self.recipe.parts, self.losses, strict=True)
        values = [value for part, loss in parts for value in self._backward(part, loss, x0, step)]
        # A signal may come to one process alone, and all have to stop at one step.
        signum = values[0].new_tensor(float(self.received[0]) if self.received else 0.0)
        *means, signum = self.world.mean(torch.stack([*values, signum])).tolist()
        reason = self._not_finite(means)
        if reason and self.config.on_nonfinite == "skip":
            return self._skipped(reason), self._agreed(signum)
        if reason:
            raise TrainingError(
                f"{reason}; the step wasn't taken; {self._why(x0, step)}; {self._kept()}, and"
                " on_nonfinite='skip' leaves such steps out"
            )
        self.state.update(rates)
        return self._metrics(means), self._agreed(signum)

    def _skipped(self, reason: str) -> Metrics:
        """Leaves weights, averages and moments as they are."""
        state = self.state
        state.skip()
        if state.skipped_in_a_row > MAX_SKIPPED:
            raise TrainingError(
                f"{reason}, and neither was any of the {MAX_SKIPPED} before; {self._kept()}"
            )
        return {"skipped": state.skipped}

    def _why(self, x0: Tensor, step: int) -> str:
        """Returns what is not finite in a step that was not taken."""
        lower, rows = self.config.autocast == "bf16", self.batches.rows(step)
        try:
            whole = self.sharded.gathered() if self.sharded else contextlib.nullcontext()
            with whole, torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
                text = diagnose(self.recipe, x0, rows, step, self.part.start, self._seed(step))
        except Exception as error:  # Solvers fail on such numbers; the first failure is the news.
            text = f"where could not be found: {error}"
        found = [text for text in self.world.everyones(text) if text]
        return found[0] if found else "each sample's loss and each gradient is finite by itself"

    def _kept(self) -> str:
        saved = f"the last good checkpoint is {self.saved}" if self.saved else "none saved"
        rate = self.config.learning_rate
        return f"{saved}; a learning_rate below {rate:g} or a longer warmup may help"

    def _graphed(self, x0: Tensor, step: int, rates: list[float]) -> tuple[Metrics, int]:
        """Takes a step that may be a graph; one that isn't finite spoils the state unsaved."""
        assert self.captured is not None
        values = self.captured(x0, step, rates)
        if reason := self._not_finite(values):
            raise TrainingError(
                f"{reason}; the weights in memory have changed, and aren't saved; {self._kept()}"
            )
        self.state.step += 1
        return self._metrics(values), self._agreed(0)

    def _agreed(self, mean: float) -> int:
        """Returns the signal that all processes know of; one that came since waits a step."""
        if self.world.size == 1:
            return self.received[0] if self.received else 0
        if not mean:
            return 0
        return self.received[0] if self.received else signal.SIGTERM

    def _backward(self, part: Part, loss_of: Loss, x0: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the loss of a part and the length of its gradient, which is clipped then.

        Of several processes each returns its share of the loss, of which the mean is that of the
        batch.
        """
        lower = self.config.autocast == "bf16" and part.autocast
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
            loss = loss_of(x0, step, self.part.start)
        if self.world.size > 1:
            loss = loss * (len(self.part) * self.world.size / self.config.batch_size)
        loss.backward()
        norm = in_full(torch.nn.utils.clip_grad_norm_(part.parameters, part.clip_norm))
        return loss.detach().double(), norm.double()

    def _not_finite(self, values: list[float]) -> str:
        """Returns which loss or gradient's length isn't finite, "" if all are."""
        parts = self.recipe.parts
        of = [""] if len(parts) == 1 else [f" of {part.name}" for part in parts]
        names = [f"{name}{part}" for part in of for name in ("loss", "gradient norm")]
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                step = self.state.step + 1
                return f"train: the {name} is {value} at step {step}"
        return ""

    def _metrics(self, values: list[float]) -> Metrics:
        """Returns the loss and the gradient's length of each part, by name."""
        parts = self.recipe.parts
        losses, norms = values[::2], values[1::2]
        metrics: Metrics = {"loss": sum(losses), "grad_norm": math.hypot(*norms)}
        if len(parts) > 1:
            for part, loss, norm in zip(parts, losses, norms, strict=True):
                metrics |= {f"{part.name}_loss": loss, f"{part.name}_grad_norm": norm}
        if self.state.skipped:
            metrics["skipped"] = self.state.skipped
        return metrics

    def _bar_text(self, line: dict[str, float]) -> str:
        speed = f"{line['samples_per_second']:.0f} samples/s"
        if "loss" not in line:
            return f"{line['skipped']:.0f} steps skipped, {speed}"
        name = self.recipe.curve[0]
        reading = "" if name == "loss" else f"{name} {line[name]:.3f} nats, "
        return f"loss {line['loss']:.3f}, {reading}{speed}"

    def _save(self) -> None:
        meta = {
            "package": build_info()["version"],
            "config": self.config.used(),
            "seed": self.config.seed,
            "data": self.record.to_meta(),
        }
        checkpoint = self.state.to_checkpoint(meta, keep=self.world.writes)
        self.world.on_first(lambda: self.saver.save(checkpoint))
        self.saved = self.run.checkpoints / f"step-{checkpoint.step:08d}"


class _Rate:
    """A stopwatch: time of the whole run, and speed since the last measurement."""

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
