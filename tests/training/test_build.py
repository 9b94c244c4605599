"""Models are built in the room that there is for them, and not one byte more."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import Room, build_recipe, room_for_training, room_of

POINTS, IMAGES = (2,), (1, 16, 16)
#: Models, and values that make them too large for any checkpoint of theirs.
MODELS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("diffflow", POINTS, {"width": 65536}),
    ("diffflow", POINTS, {"depth": 4096, "width": 1024}),
    ("diffflow", IMAGES, {"unet_base": 65536}),
    ("diffflow", POINTS, {"prior": "flow", "flow_hidden": "65536,65536"}),
    ("dinof", POINTS, {"flow_hidden": "65536,65536,65536"}),
    ("dinof", IMAGES, {"glow_hidden": 65536}),
    ("nfdm", POINTS, {"forward_multiplier": 512.0}),
    ("nfdm", IMAGES, {"unet_base": 65536}),
    ("ddpm", POINTS, {"width": 65536}),
    ("ffjord", POINTS, {"width": 65536}),
    ("flow", POINTS, {"flow_hidden": "65536,65536"}),
]


def test_a_model_is_that_of_the_seed_in_any_room() -> None:
    for model, shape in dict.fromkeys((model, shape) for model, shape, _ in MODELS):
        config = resolve(configure(model), is_image=shape == IMAGES)
        free = build_recipe(config, shape).module.state_dict()
        bounded = build_recipe(config, shape, room_of(free)).module.state_dict()
        assert free.keys() == bounded.keys()
        assert all(torch.equal(free[name], bounded[name]) for name in free)


@pytest.mark.parametrize(("model", "shape", "values"), MODELS, ids=str)
def test_a_larger_model_than_the_checkpoint_s_is_not_built(
    model: str, shape: tuple[int, ...], values: dict[str, Any]
) -> None:
    resource = pytest.importorskip("resource")
    is_image = shape == IMAGES
    room = room_of(
        build_recipe(resolve(configure(model), is_image=is_image), shape).module.state_dict()
    )
    config = resolve(configure(model, **values), is_image=is_image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"takes more than .* its checkpoint has a smaller one"):
        build_recipe(config, shape, room)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB


def test_training_has_the_memory_of_the_machine() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    on_cpu, on_gpu = room_for_training("cpu"), room_for_training("cuda")
    assert on_cpu is not None
    assert on_gpu is not None
    assert (on_cpu.size, on_gpu.size) == (memory // 5, memory)


def test_bytes_are_those_of_the_tensors() -> None:
    """A perceptron's tensors by hand, with at least 64 KiB for each."""
    config = resolve(configure("ddpm", width=256, depth=1, timesteps=1), is_image=False)
    tensors = build_recipe(config, POINTS).module.state_dict()
    # Matrices (width, width) of the second and the embedding's second layer, (width, 2 width).
    assert sorted(4 * t.numel() for t in tensors.values())[-3:] == [2**18, 2**18, 2**19]
    needed = 2**20 + (len(tensors) - 3) * 2**16
    build_recipe(config, POINTS, Room(needed + 10 * 2**16, ""))
    with pytest.raises(ValueError, match=f"more than {needed - 1:,} bytes"):
        build_recipe(config, POINTS, Room(needed - 1, ""))
