"""The training loop.

A step is a pure function of the state before it and of (seed, step): the order of the data, the
time grid and the noise are computed from these two numbers and never stored. A run that was cut
off and resumed therefore ends, on a CPU with the same number of threads, with the same bits.
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffflow_ext._backend import build_info
from diffflow_ext.training.batches import Batches, open_data
from diffflow_ext.training.captured import CapturedTraining, Metrics
from diffflow_ext.training.checkpoint import (
    CheckpointError,
    load_latest,
    save_checkpoint,
    step_directories,
    sweep,
)
from diffflow_ext.training.config import TrainConfig
from diffflow_ext.training.dataset_record import DatasetRecord
from diffflow_ext.training.defaults import resolve, same_choice
from diffflow_ext.training.device import pick_device
from diffflow_ext.training.recipes import Part, Recipe, build_recipe
from diffflow_ext.training.rules import field_rule
from diffflow_ext.training.runs import MetricsLog, RunDirectory, replace_text
from diffflow_ext.training.schedules import learning_rate_at
from diffflow_ext.training.session import own_generator, signals, threads
from diffflow_ext.training.state import TrainState

__all__ = [
    "Interrupted",
    "LoadedRun",
    "TrainResult",
    "TrainingError",
    "load_run",
    "train",
]


# Spreads seeds over the 32 bits that torch's generator takes, apart from the step numbers.
SEED_FACTOR = 0x9E3779B1


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
        elapsed: Seconds of training, over all sessions of the run.
        checkpoint: The newest checkpoint.
    """

    step: int
    elapsed: float
    checkpoint: Path


#: Fewer are a trial of the installation, of which no learning is expected.
FEW_STEPS = 20


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> TrainResult:
    """Trains a model and leaves a run directory.

    Arguments:
        config: What to train.
        out: The run directory; it's made where missing.
        resume: Go on with the run in `out` if there is one. The result equals that of an
            uninterrupted run.
        overwrite: Remove the run in `out` first.
        progress: Show a bar on stderr; by default only on a terminal.

    Raises:
        ValueError: If `out` holds a run and neither `resume` nor `overwrite` is given, the run
            there has another configuration or other data, or another process trains there.
        OSError: If `out` can't be written to, or the data can't be read.
        CheckpointError: If a checkpoint can't be written, or none of those there is whole.
        TrainingError: If the loss or its gradient isn't finite. The step isn't taken.
        Interrupted: After SIGINT or SIGTERM, when the state is saved.
    """
    run = RunDirectory(out)
    if config.warmup > config.steps / 2 and config.steps >= FEW_STEPS:
        warnings.warn(
            f"train: the learning rate rises for warmup={config.warmup} steps, most of the "
            f"steps={config.steps} that there are; lower warmup",
            stacklevel=2,
        )
    with run.opened(), threads(config.threads):
        _check_directory(run, config, resume=resume, overwrite=overwrite)
        device = pick_device(config.device)
        trainer = _Trainer(config, run, device)
        if overwrite:
            run.clear()
        sweep(run.checkpoints)
        if step_directories(run.checkpoints):
            trainer.restore()
        replace_text(run.config, trainer.config.to_toml())
        return trainer.run_to_end(progress)


@dataclass(frozen=True)
class LoadedRun:
    """A run, ready to sample and to be scored.

    Arguments:
        recipe: The model with its averaged weights, and how it samples and is scored.
        config: The configuration with which it was trained.
        record: What it knows of its data.
        step: Completed training steps.
    """

    recipe: Recipe[Any]
    config: TrainConfig
    record: DatasetRecord
    step: int

    @property
    def model(self) -> nn.Module:
        """The model itself: a DiffFlowSDE, DiNof, DDPM or flow."""
        return self.recipe.module


def load_run(path: str | Path, device: str = "cpu") -> LoadedRun:
    """Returns the model of a run with its averaged weights, ready to sample.

    Arguments:
        path: The run directory.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: If no run is there.
        CheckpointError: If it has no whole checkpoint.
        ImportError: If the model needs a package that is missing.
    """
    run = RunDirectory(path)
    if not run.holds_run():
        raise ValueError(f"{path}: no run there; diffflow train DATA --out {path} makes one")
    checkpoint = load_latest(run.checkpoints)
    try:
        record = DatasetRecord.from_meta(checkpoint.meta["data"])
        config = TrainConfig.from_dict(checkpoint.meta["config"])
        config = resolve(config, is_image=record.is_image)
        recipe = build_recipe(config, record.event_shape)
        recipe.module.load_state_dict(dict(checkpoint.ema))
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its checkpoint doesn't fit: {error}") from error
    recipe.module.to(pick_device(device)).eval()
    return LoadedRun(recipe, config, record, checkpoint.step)


class _Trainer:
    """One session of a run: data and state in memory, and the loop over steps."""

    def __init__(self, config: TrainConfig, run: RunDirectory, device: torch.device) -> None:
        dataset = open_data(config)
        config = resolve(config, is_image=dataset.is_image, flip=dataset.flip)
        self.config, self.run, self.device = config, run, device
        self.dataset, self.record = dataset, DatasetRecord.of(dataset)
        self.batches = Batches(config, dataset.train, device)
        self.recipe = build_recipe(config, dataset.event_shape)
        module = self.recipe.module.to(device)
        self.state = TrainState(config, module, self.recipe.parts)
        self.saved: Path | None = None
        self.captured: CapturedTraining | None = None

    def restore(self) -> None:
        """Takes over the newest whole checkpoint."""
        checkpoint = load_latest(self.run.checkpoints)
        DatasetRecord.from_meta(checkpoint.meta["data"]).require(self.dataset)
        if checkpoint.step > self.config.steps:
            raise ValueError(
                f"train: steps={self.config.steps}: the run is at step {checkpoint.step} already"
            )
        self.state.restore(checkpoint)
        self.saved = self.run.checkpoints / f"step-{checkpoint.step:08d}"

    def run_to_end(self, progress: bool | None) -> TrainResult:
        """Trains up to the last step, with a log, a bar, checkpoints and an ear for signals."""
        disabled = None if progress is None else not progress
        if self.config.cuda_graph:
            self.captured = CapturedTraining(self.config, self.recipe, self.state)
        with (
            MetricsLog(self.run.metrics, self.state.step) as log,
            tqdm(
                total=self.config.steps, initial=self.state.step, disable=disabled, unit="step"
            ) as bar,
            signals() as received,
            own_generator(self.device),
        ):
            self._loop(log, bar, received)
        assert self.saved is not None
        return TrainResult(self.state.step, self.state.elapsed, self.saved)

    def _loop(self, log: MetricsLog, bar: tqdm[Any], received: list[int]) -> None:
        config, state = self.config, self.state
        rate = _Rate(state, config.batch_size)
        while state.step < config.steps:
            line = self._step()
            bar.update()
            if state.step % config.log_every == 0 or state.step == config.steps:
                line |= self.recipe.reading(state.step - 1, line["loss"]) | rate.measure()
                log.write(line)
                bar.set_postfix_str(self._bar_text(line))
            last = state.step == config.steps or bool(received)
            if last or state.step % config.save_every == 0:
                rate.tick()
                log.sync()
                self._save()
            if received and self.saved is not None:
                raise Interrupted(received[0], self.saved)

    def _step(self) -> dict[str, float]:
        """Takes one training step and returns its metrics."""
        config, step = self.config, self.state.step
        # Networks that draw (dropout) and estimators of flows draw the same after a resume.
        torch.manual_seed((config.seed * SEED_FACTOR + step) % 2**32)
        x0 = self.batches(step)
        rates = [learning_rate_at(config, step, part.learning_rate) for part in self.recipe.parts]
        take = self._plain if self.captured is None else self.captured
        metrics = take(x0, step, rates, self._finite)
        return {"step": step + 1, **metrics, "lr": rates[0]}

    def _plain(
        self, x0: Tensor, step: int, rates: list[float], finite: Callable[[Tensor], Metrics]
    ) -> Metrics:
        """Takes a step in PyTorch's usual way; not at all where a number isn't finite."""
        self.state.optimiser.zero_grad(set_to_none=True)
        values = [value for part in self.recipe.parts for value in self._backward(part, x0, step)]
        metrics = finite(torch.stack(values))
        self.state.update(rates)
        return metrics

    def _backward(self, part: Part, x0: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns the loss of a part and the length of its gradient, which is clipped then."""
        lower = self.config.autocast == "bf16" and part.autocast
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
            loss = part.loss(x0, step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(part.parameters, part.clip_norm)
        return loss.detach().double(), norm.double()

    def _finite(self, found: Tensor) -> Metrics:
        """Returns the loss and the gradient's length of each part, if they are finite."""
        values = found.tolist()
        parts = self.recipe.parts
        of = [""] if len(parts) == 1 else [f" of {part.name}" for part in parts]
        names = [f"{name}{part}" for part in of for name in ("loss", "gradient norm")]
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                kept = f"the last good checkpoint is {self.saved}" if self.saved else "none saved"
                raise TrainingError(
                    f"train: the {name} is {value} at step {self.state.step + 1}; the step"
                    f" wasn't taken; {kept}; try a lower learning_rate or a longer warmup"
                )
        losses, norms = values[::2], values[1::2]
        metrics = {"loss": sum(losses), "grad_norm": math.hypot(*norms)}
        if len(parts) > 1:
            for part, loss, norm in zip(parts, losses, norms, strict=True):
                metrics |= {f"{part.name}_loss": loss, f"{part.name}_grad_norm": norm}
        return metrics

    def _bar_text(self, line: dict[str, float]) -> str:
        speed = f"{line['samples_per_second']:.0f} samples/s"
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
        checkpoint = self.state.to_checkpoint(meta)
        keep = self.config.keep_checkpoints
        self.saved = save_checkpoint(self.run.checkpoints, checkpoint, keep)


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


def _check_directory(
    run: RunDirectory, config: TrainConfig, *, resume: bool, overwrite: bool
) -> None:
    if resume and overwrite:
        raise ValueError("train: expected resume or overwrite, got both")
    if overwrite or not run.holds_run():
        return
    if not resume:
        raise ValueError(f"{run.root}: holds a run already; give --resume or --overwrite")
    if run.config.exists():
        _check_same_run(TrainConfig.load(run.config), config)


def _check_same_run(old: TrainConfig, new: TrainConfig) -> None:
    """Refuses to go on with a run under another configuration."""
    for item in fields(TrainConfig):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if not same_choice(item.name, before, after) and not field_rule(item).on_resume:
            raise ValueError(
                f"train: {item.name}={after!r}: the run to resume has {before!r}; start another"
                " run to change it"
            )
