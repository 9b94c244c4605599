"""Checks and warnings at the start of a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diffflow_ext.data import describe_sets
from diffflow_ext.functional.memory import require_memory

from ..config.fields import MAY_CHANGE, Config, DiffFlowConfig
from ..config.files import ONCE, load_config
from ..config.schedules import learning_rate_at, progressive_grid
from ..parallel.device import slow_in_bfloat16
from ..parallel.distributed import World, restarts, restarts_share_store
from ..parallel.sharding import can_shard
from ..recipes.base import Recipe
from ..store.directory import RunDirectory

#: Shorter runs only try the installation, and get no warning.
FEW_STEPS = 20


def doubts(config: Config, world: World, device: torch.device) -> Iterator[str]:
    """Yields warnings of options that are allowed but probably not intended."""
    steps, warmup = config.optimiser.steps, config.optimiser.warmup
    if warmup > steps / 2 and steps >= FEW_STEPS:
        yield (
            f"train: warmup={warmup}: expected at most half of steps={steps}, during which the"
            " learning rate rises; lower warmup"
        )
    if config.run.shard and world.size == 1:
        yield "train: shard=True has no effect in one process; start several by torchrun"
    graph = isinstance(config, DiffFlowConfig) and config.run.cuda_graph == "on"
    if graph and device.type == "cpu":
        yield "train: cuda_graph='on' has no effect on a CPU; take 'off', or leave it out"
    if config.run.autocast == "bf16" and slow_in_bfloat16(device):
        yield (
            "train: autocast='bf16' makes this processor many times slower, because it has no"
            " AVX-512; take 'off'"
        )
    if restarts() and restarts_share_store():
        yield (
            "train: processes that torchrun restarts may look for those that ended, because they"
            " share a store (pytorch issue 135712); set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for"
            " torchrun"
        )


def check_directory(run: RunDirectory, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Refuses a directory in which the run can't start, resume, or be restarted by torchrun."""
    if resume and overwrite:
        raise ValueError("train: expected resume or overwrite, got both")
    if restarts() and not resume:
        raise ValueError(
            f"train: torchrun may start this command again {restarts()} times; give --resume,"
            " which starts a run where there is none and goes on with it after a restart,"
            " and remove what is to be overwritten before"
        )
    if not run.holds_run():
        _check_no_run(run, overwrite)
    elif not resume and not overwrite:
        raise ValueError(f"{run.root}: holds a run already; give --resume or --overwrite")
    elif resume and run.config.exists():
        check_same_run(load_config(run.config), config)


def check_outside(run: RunDirectory, config: Config) -> None:
    """Refuses a new run inside of the folder of its images, before any folder is made."""
    name, root = config.data.data, run.root.resolve()
    if not name or name in describe_sets() or not os.path.isdir(name):
        return
    if Path(name).resolve() in (root, *root.parents) and not run.holds_run():
        raise ValueError(
            f"train: expected a run outside of its data, got {str(run.root)!r} in {name!r}, where"
            " the next run would read its pictures as data; choose another --out"
        )


def _check_no_run(run: RunDirectory, overwrite: bool) -> None:
    """Refuses to replace files of others, and to overwrite what is no run."""
    foreign = run.foreign()
    if foreign:
        raise ValueError(
            f"{run.root}: expected a run of diffflow, or a folder without {foreign[0].name}, got"
            f" {str(foreign[0])!r} of something else; move it away, or choose another --out"
        )
    if overwrite and not run.is_new:
        others = ", ".join(run.others()[:3]) or "an empty folder"
        raise ValueError(
            f"{run.root}: expected a run of diffflow to overwrite, got {others}; leave out"
            " --overwrite to start a run there, or choose another --out"
        )


def warn_of_other_end(steps: int, step: int, config: Config) -> None:
    """Warns if another number of steps changes the learning rate or N of a resumed run."""
    both = (config.replaced(steps=steps), config)
    old, new = (learning_rate_at(c, step, c.optimiser.learning_rate) for c in both)
    changed, differs = [f"the learning rate goes from {old:.2g} to {new:.2g}"], old != new
    if isinstance(config, DiffFlowConfig):
        old, new = (progressive_grid(c)(step) for c in both if isinstance(c, DiffFlowConfig))
        changed.append(f"N from {old} to {new}")
        differs |= old != new
    if differs:
        warnings.warn(
            f"train: steps={config.optimiser.steps} where the run had {steps}: what follows the"
            f" end of a run starts from the new one: {' and '.join(changed)} at step {step}",
            stacklevel=5,
        )


def check_world(world: World, config: Config, recipe: Recipe[Any, Any]) -> None:
    """Refuses options that do not work with several processes."""
    if world.size > 1 and not recipe.separable:
        raise ValueError(
            f"train: model={config.name!r} trains in one process, because its solver looks at the"
            f" whole batch; there are {world.size}"
        )
    graph = isinstance(config, DiffFlowConfig) and config.run.cuda_graph == "on"
    if world.size > 1 and graph:
        raise ValueError(
            "train: cuda_graph='on' is for one process, because a graph holds no exchange of"
            f" gradients; there are {world.size}"
        )
    if world.size > 1 and config.run.shard and not can_shard():
        raise ValueError(
            f"train: shard=True: expected torch 2.6 or newer, got {torch.__version__}; leave it"
            " out or update torch"
        )
    if world.size > config.optimiser.batch_size:
        raise ValueError(
            f"train: batch_size={config.optimiser.batch_size}: expected at least one sample for"
            f" each of the {world.size} processes"
        )


def check_batch(world: World, config: Config, dim: int) -> None:
    """Refuses batches whose rows alone, float32 with an index each, are larger than the memory."""
    size = config.optimiser.batch_size
    needed = len(world.share(size)) * (4 * dim + 8)
    require_memory("train", f"batch_size={size}", needed, "take a smaller batch_size")


def check_same_run(old: Config, new: Config) -> None:
    """Refuses to resume with another configuration; None stands for the value of the run."""
    before, after = ({"model": config.name, **config.values()} for config in (old, new))
    # The file of a run of earlier versions has no such fields.
    before |= {name: v for name, v in ONCE.items() if name in before and before[name] is None}
    for name, value in after.items():
        if value not in (None, before.get(name)) and name not in MAY_CHANGE:
            raise ValueError(
                f"train: {name}={value!r}: the run to resume has {before.get(name)!r}; start"
                " another run to change it"
            )
