"""Samples of a trained model, which do not depend on their number."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from diffflow_ext.functional.memory import require_memory
from diffflow_ext.functional.noise import NoiseKey

from ..config.rules import SEED, checked, whole
from ..parallel.distributed import World
from ..parallel.progress import tracked
from ..recipes.base import Recipe

# Streams below belong to training steps.
EVALUATION_STREAM = 2**31
# Chunks are distributed among processes: their size does not depend on the number of processes.
VECTORS_AT_A_TIME = 2048
IMAGES_AT_A_TIME = 128
#: Noise counts samples in 32 bits.
MAX_SAMPLES = 2**32


def chunk_size(recipe: Recipe[Any, Any]) -> int:
    """Returns the number of samples in a call of the model."""
    return IMAGES_AT_A_TIME if recipe.is_image else VECTORS_AT_A_TIME


def draw(
    recipe: Recipe[Any, Any],
    n: int,
    *,
    seed: int,
    num_steps: int | None = None,
    world: World | None = None,
    stream: int = EVALUATION_STREAM,
    **options: Any,
) -> Tensor:
    """Returns n samples in the units of training, shape (n, *event), float32, on the CPU.

    Sample i depends only on the seed, the stream and i. Other arguments and errors are those of
    `LoadedRun.sample`.
    """
    checked("sample", "n", n, Annotated[int, whole(1, MAX_SAMPLES)])
    checked("sample", "seed", seed, Annotated[int, SEED])
    floats = n * math.prod(recipe.event_shape)
    require_memory("sample", f"n={n}", 4 * floats, "draw fewer, and more with other seeds")
    check_options("sample", recipe, num_steps, options)
    key, size = NoiseKey(seed, stream=stream), chunk_size(recipe)
    world, parts = world or World(), list[Tensor | tuple[int, ...]]()
    starts = tracked(range(0, n, size), n, "sample", shown=world.writes)
    for number, start in enumerate(starts):
        shape = (min(size, n - start), *recipe.event_shape)
        parts.append(shape)
        if world.owns(number):
            with torch.no_grad():
                parts[-1] = recipe.draw(
                    shape, key, num_steps=num_steps, sample_offset=start, **options
                )
    return world.gathered(parts, torch.float32)


def _check_guidance(op: str, recipe: Recipe[Any, Any], weight: Any) -> None:
    """Refuses a weight that needs samples trained without their condition, if there were none."""
    if weight != 1 and not recipe.config.optimiser.label_dropout:
        raise ValueError(
            f"{op}: guidance={weight!r}: expected a run that was trained with label_dropout above"
            " 0, so that its network knows no condition; leave guidance at 1, or train another one"
        )


def check_options(
    op: str, recipe: Recipe[Any, Any], num_steps: int | None, options: dict[str, Any]
) -> None:
    """Refuses options that a model's sampler does not have."""
    model, known = recipe.config.name, recipe.sampler_options
    given = {"num_steps": num_steps, **options} if num_steps is not None else options
    if recipe.num_steps() is not None:
        known = ("num_steps", *known)
    # Without what is seen, a network does not know which part of x is hidden.
    if recipe.conditions is not None and recipe.conditions.masks is None:
        known = (*known, "guidance")
        _check_guidance(op, recipe, options.get("guidance", 1))
    for name, value in given.items():
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ValueError(
                f"{op}: {name}={value!r}: the sampler of {model} {has}; leave {name} out"
            )
