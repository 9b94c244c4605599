"""Trained runs, loaded for sampling and evaluation."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..config.defaults import resolve
from ..config.fields import Config
from ..parallel.device import pick_device
from ..parallel.distributed import local_rank
from ..recipes.base import Recipe
from ..recipes.build import build_recipe, room_of
from ..store.checkpoint import CheckpointError, load_latest, step_directories
from ..store.dataset import DatasetRecord, recorded
from ..store.directory import RunDirectory


@dataclass(frozen=True)
class LoadedRun:
    """A run, loaded for sampling and evaluation.

    Arguments:
        recipe: The model with its averaged weights, its sampler and its estimators.
        config: The configuration with which it was trained.
        record: The record of its data.
        step: Completed training steps.
    """

    recipe: Recipe[Any, Any]
    config: Config
    record: DatasetRecord
    step: int

    @property
    def model(self) -> nn.Module:
        """The model itself: a DiffFlowSDE, DiNof, DDPM or flow."""
        return self.recipe.module


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
    run = RunDirectory(path)
    if run.root.is_file():
        raise ValueError(f"{path}: expected the folder of a run, got a file; name the folder")
    if not run.holds_run() and not step_directories(run.checkpoints):
        above = [parent for parent in run.root.absolute().parents[:2] if _holds_run(parent)]
        hint = f"diffflow train DATA --out {shlex.quote(str(path))} makes one"
        hint = f"the run is {shlex.quote(str(above[0]))}" if above else hint
        raise ValueError(f"{path}: no run there; {hint}")
    checkpoint = load_latest(run.checkpoints)
    record, config = recorded(checkpoint)
    try:
        config = resolve(config, is_image=record.is_image)
        recipe = build_recipe(config, record.event_shape, room_of(checkpoint.ema))
        recipe.module.load_state_dict(dict(checkpoint.ema))
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its checkpoint of step {checkpoint.step} doesn't fit its configuration:"
            f" {error}; train again"
        ) from error
    recipe.module.to(pick_device(device, local_rank())).eval()
    return LoadedRun(recipe, config, record, checkpoint.step)
