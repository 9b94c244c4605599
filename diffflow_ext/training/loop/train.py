"""`train`: from a configuration to a run directory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffflow_ext.functional.checks import in_words

from ..config.fields import Config
from ..parallel.distributed import World, joined
from ..store.checkpoint import load_latest, step_directories
from ..store.dataset import describe_data
from ..store.directory import RunDirectory
from .callbacks import Callback, checked_callbacks
from .loggers import loggers_of
from .session import threads
from .starting import check_directory, check_outside, doubts
from .trainer import Trainer, TrainResult


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data: Any = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Trains a model into a run directory.

    Arguments:
        config: The configuration.
        out: The run directory, created if missing.
        resume: Whether to continue the run in `out`, if there is one. The result equals that of
            an uninterrupted run.
        overwrite: Whether to replace the run in `out`. Its files are removed when the first step
            of the new run is done, and those of others stay.
        data: Data in memory, for a configuration without a path: a data frame, an array or a
            tensor of shape (n, d), images in bytes, a dataset of torch with such items, or a
            :class:`diffflow_ext.data.Dataset`. A run keeps no copy: resuming and evaluating it
            need them again.
        progress: Whether to say what was read and to show a bar; by default a bar on a terminal
            and in a notebook, and elsewhere a line every half a minute (see `show_progress`).
            Lines go to the logger ``diffflow_ext`` where it takes the level INFO, else to stderr.
        callbacks: What follows the training, as the field `log_to` does; see :class:`Callback`.

    Raises:
        ValueError: If `out` holds a run and neither `resume` nor `overwrite` is given, the run
            there has another configuration or other data, another process trains there, `out`
            holds files of others that a run would replace, or `overwrite` finds no run.
        OSError: If `out` can't be written to, or the data can't be read.
        ImportError: If the package of `log_to` isn't installed.
        CallbackError: If a callback fails; the state is saved before.
        CheckpointError: If a checkpoint can't be written, or there is no whole one to resume from.
        TrainingError: If the loss or its gradient isn't finite. The step isn't taken, or, where
            steps are CUDA graphs, isn't saved.
        Interrupted: After SIGINT or SIGTERM, when the state is saved. A second signal ends the
            process without saving, after two seconds also in the middle of an operation (not in a
            notebook, where it raises a KeyboardInterrupt after the operation).
    """
    if data is not None and config.data.data:
        raise ValueError(
            f"train: data={in_words(config.data.data)}: expected a configuration without data"
            " beside data in memory; leave one of them out"
        )
    followers = [*checked_callbacks(callbacks), *loggers_of(config)]
    run = RunDirectory(out)
    check_outside(run, config)
    with joined(config.run.device) as world, _opened(run, world), threads(config.run.threads):
        world.on_first(lambda: check_directory(run, config, resume=resume, overwrite=overwrite))
        trainer = _trainer(config, run, world, data, followers, overwrite=overwrite)
        trainer.step.rehearse()
        _start(trainer)
        _warn(trainer)
        return trainer.run_to_end(progress, overwrite=overwrite)


def rehearse(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Does what `train` does before its first step, and writes nothing; says what was read.

    It opens the data, builds the model, and evaluates the loss of one sample; arguments, errors
    and warnings are those of `train`.
    """
    loggers_of(config)
    run = RunDirectory(out)
    check_outside(run, config)
    with joined(config.run.device) as world, threads(config.run.threads):
        world.on_first(lambda: check_directory(run, config, resume=resume, overwrite=overwrite))
        trainer = _trainer(config, run, world, overwrite=overwrite)
        trainer.step.rehearse()
        _warn(trainer)
        return describe_data(trainer.dataset)


def _trainer(
    config: Config,
    run: RunDirectory,
    world: World,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
    *,
    overwrite: bool,
) -> Trainer:
    """Returns a trainer, restored from the newest checkpoint if there is one to go on from."""
    resumes = not overwrite and bool(step_directories(run.checkpoints))
    checkpoint = load_latest(run.checkpoints) if resumes else None
    return Trainer(config, run, world, checkpoint, data, callbacks)


def _warn(trainer: Trainer) -> None:
    """Warns of doubts, in process 0."""
    if trainer.world.writes:
        for text in doubts(trainer.config, trainer.world, trainer.device):
            warnings.warn(text, stacklevel=3)


def _start(trainer: Trainer) -> None:
    """Makes the model and the step ready."""
    trainer.step.start_flows()
    if trainer.world.size > 1:
        trainer.world.require_same(trainer.state.fingerprint(), "what a process starts from")
    trainer.step.prepare()


@contextlib.contextmanager
def _opened(run: RunDirectory, world: World) -> Iterator[None]:
    """Locks the directory, in process 0."""
    with contextlib.ExitStack() as stack:
        world.on_first(lambda: stack.enter_context(run.opened()))
        yield
