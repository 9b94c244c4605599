"""What a run must be allowed to start with, and what is allowed and hardly meant."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch

from ..config.defaults import same_choice
from ..config.fields import TrainConfig
from ..config.rules import field_rule
from ..config.schedules import learning_rate_at, progressive_grid
from ..parallel.distributed import World, restarts, restarts_share_store
from ..parallel.sharding import can_shard
from ..recipes.base import Recipe
from ..store.directory import RunDirectory

__all__ = ["check_directory", "check_world", "doubts", "warn_of_other_end"]


#: Fewer are a trial of the installation, of which no learning is expected.
FEW_STEPS = 20


def doubts(config: TrainConfig, world: World) -> Iterator[str]:
    """Yields what is allowed and hardly meant."""
    if config.warmup > config.steps / 2 and config.steps >= FEW_STEPS:
        yield (
            f"train: warmup={config.warmup}: expected at most half of steps={config.steps}, during"
            " which the learning rate rises; lower warmup"
        )
    if config.shard and world.size == 1:
        yield "train: shard=True has no effect in one process; start several by torchrun"
    if restarts() and restarts_share_store():
        yield (
            "train: processes that torchrun restarts may look for those that ended, because they"
            " share a store (pytorch issue 135712); set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for"
            " torchrun"
        )


def check_directory(
    run: RunDirectory, config: TrainConfig, *, resume: bool, overwrite: bool
) -> None:
    """Refuses a directory in which the run can't start, go on, or be started again by torchrun."""
    if resume and overwrite:
        raise ValueError("train: expected resume or overwrite, got both")
    if restarts() and not resume:
        raise ValueError(
            f"train: torchrun may start this command again {restarts()} times; give --resume,"
            " which starts a run where there is none and goes on with it after a restart,"
            " and remove what is to be overwritten before"
        )
    if overwrite or not run.holds_run():
        return
    if not resume:
        raise ValueError(f"{run.root}: holds a run already; give --resume or --overwrite")
    if run.config.exists():
        _check_same_run(TrainConfig.load(run.config), config)


def warn_of_other_end(steps: int, step: int, config: TrainConfig) -> None:
    """Says what another number of steps changes in a resumed run beside its end."""
    before = replace(config, steps=steps)
    rates, counts = zip(
        *(
            (learning_rate_at(c, step, c.learning_rate), progressive_grid(c)(step))
            for c in (before, config)
        ),
        strict=True,
    )
    changed = [f"the learning rate goes from {rates[0]:.2g} to {rates[1]:.2g}"]
    if config.model == "diffflow":
        changed.append(f"N from {counts[0]} to {counts[1]}")
    if rates[0] != rates[1] or counts[0] != counts[1]:
        warnings.warn(
            f"train: steps={config.steps} where the run had {steps}: what follows the end of a run"
            f" starts from the new one: {' and '.join(changed)} at step {step}",
            stacklevel=5,
        )


def check_world(world: World, config: TrainConfig, recipe: Recipe[Any]) -> None:
    """Refuses what several processes can't share."""
    if world.size > 1 and not recipe.separable:
        raise ValueError(
            f"train: model={config.model!r} trains in one process, because its solver looks at the"
            f" whole batch; there are {world.size}"
        )
    if world.size > 1 and config.cuda_graph:
        raise ValueError(
            "train: cuda_graph=True is for one process, because a graph holds no exchange of"
            f" gradients; there are {world.size}"
        )
    if world.size > 1 and config.shard and not can_shard():
        raise ValueError(
            f"train: shard=True: expected torch 2.6 or newer, got {torch.__version__}; leave it"
            " out or update torch"
        )
    if world.size > config.batch_size:
        raise ValueError(
            f"train: batch_size={config.batch_size}: expected at least one sample for each of the"
            f" {world.size} processes"
        )


def _check_same_run(old: TrainConfig, new: TrainConfig) -> None:
    """Refuses to go on with a run under another configuration."""
    for item in fields(TrainConfig):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if not same_choice(item.name, before, after) and not field_rule(item).on_resume:
            raise ValueError(
                f"train: {item.name}={after!r}: the run to resume has {before!r}; start another"
                " run to change it"
            )
