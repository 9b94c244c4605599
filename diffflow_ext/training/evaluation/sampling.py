"""Samples of a run, the same ones however many are drawn at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffflow_ext.functional.noise import NoiseKey

from ..parallel.distributed import World
from .loaded_run import LoadedRun

# Streams of training are its iterations: far above them, no draw is used twice.
EVALUATION_STREAM = 2**31
# Processes share chunks: what a network is given at a time does not depend on their number.
VECTORS_AT_A_TIME = 2048
IMAGES_AT_A_TIME = 128


def chunk_size(run: LoadedRun) -> int:
    """Returns how many samples a network is given at a time."""
    return IMAGES_AT_A_TIME if run.record.is_image else VECTORS_AT_A_TIME


def draw_samples(
    run: LoadedRun,
    n: int,
    *,
    seed: int,
    num_steps: int | None = None,
    world: World | None = None,
    **options: Any,
) -> Tensor:
    """Returns n samples in the units of training, shape (n, *event), on the CPU.

    Sample i depends on the seed and i alone, not on n.

    Arguments:
        run: The run.
        n: How many.
        seed: The seed of the noise.
        num_steps: Steps of the sampler; None for the model's own number.
        world: The processes that share the work; all of them get all samples.
        options: Those of the model's sampler, `run.recipe.sampler_options`.

    Raises:
        ValueError: If `n` is less than 1, or the model's sampler has no such option.
    """
    if n < 1:
        raise ValueError(f"draw_samples: n={n}: expected at least 1")
    check_options(run, num_steps, options)
    key, size = NoiseKey(seed, stream=EVALUATION_STREAM), chunk_size(run)
    world, parts = world or World(), list[Tensor | tuple[int, ...]]()
    for number, start in enumerate(range(0, n, size)):
        shape = (min(size, n - start), *run.record.event_shape)
        parts.append(shape)
        if world.owns(number):
            with torch.no_grad():
                parts[-1] = run.recipe.draw(
                    shape, key, num_steps=num_steps, sample_offset=start, **options
                )
    return world.gathered(parts, torch.float32)


def check_options(run: LoadedRun, num_steps: int | None, options: dict[str, Any]) -> None:
    """Checks that a model's sampler has some options.

    Raises:
        ValueError: If it doesn't; the message names the model and what its sampler has.
    """
    model, known = run.config.name, run.recipe.sampler_options
    given = {"num_steps": num_steps, **options} if num_steps is not None else options
    if run.recipe.num_steps() is not None:
        known = ("num_steps", *known)
    for name, value in given.items():
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ValueError(
                f"sample: {name}={value!r}: the sampler of {model} {has}; leave {name} out"
            )
