"""The recipe of each model, built in no more memory than there is for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffflow_ext.data.conditions import Conditions
from diffflow_ext.functional.memory import memory_of

from ..config.fields import Config
from .base import Recipe
from .ddpm import DDPMRecipe
from .diffflow import DiffFlowRecipe
from .dinof import DiNofRecipe
from .flows import FFJORDRecipe, FlowRecipe
from .nfdm import NFDMRecipe

RECIPES: dict[str, type[Recipe[Any, Any]]] = {
    "diffflow": DiffFlowRecipe,
    "dinof": DiNofRecipe,
    "nfdm": NFDMRecipe,
    "ddpm": DDPMRecipe,
    "ffjord": FFJORDRecipe,
    "flow": FlowRecipe,
}

#: Copies of the weights in training on a CPU: they, their gradient, average and two moments.
COPIES = 5
#: The smallest size that is counted for a tensor: small ones take memory for their modules too.
LEAST_BYTES = 2**16
#: Tensors that are used while a model is made, and that it doesn't save, such as a chain's times.
OTHER_BYTES = 2**29
#: Functions that make a tensor of a given size.
MAKERS: set[Callable[..., Tensor]] = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye,
    torch.arange, torch.linspace, torch.logspace,
}  # fmt: skip


class Room(NamedTuple):
    """The bytes that a model may take, and why no more."""

    size: int
    reason: str


def build_recipe(
    config: Config,
    event_shape: tuple[int, ...],
    room: Room | None = None,
    conditions: Conditions | None = None,
) -> Recipe[Any, Any]:
    """Returns the recipe of a resolved configuration, with an untrained model from its seed.

    A ValueError says that the model would take more than `room`, before it takes it.
    """
    with contextlib.nullcontext() if room is None else _Within(room):
        return RECIPES[config.name](config, event_shape, conditions)


def room_for_training(device: str) -> Room | None:
    """Returns the room that this machine has for a model; None if that isn't known."""
    memory = memory_of("cpu")
    if memory is None:
        return None
    copies = COPIES if device == "cpu" else 1
    return Room(
        memory // copies,
        f"training holds {copies} of it in {memory:,} bytes of memory; make the network smaller",
    )


def room_of(tensors: Mapping[str, Tensor]) -> Room:
    """Returns the room of a model with these tensors.

    Making a model takes little more than its tensors; one of another size may take far more.
    """
    saved = sum(max(tensor.nbytes, LEAST_BYTES) for tensor in tensors.values())
    return Room(2 * saved + OTHER_BYTES, "its checkpoint has a smaller one")


class _Within(TorchFunctionMode):
    """Counts the bytes of tensors before they are made, and refuses more than a room.

    torch's device "meta" would count them without making any, but the flows of zuko and normflows
    can't be made there.
    """

    def __init__(self, room: Room) -> None:
        super().__init__()
        self.room, self.left = room, float(room.size)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.left -= _bytes_made(func, args, kwargs)
        if self.left < 0:
            raise ValueError(
                f"train: the model takes more than {self.room.size:,} bytes: {self.room.reason}"
            )
        return func(*args, **kwargs)


def _bytes_made(func: Any, args: Any, kwargs: Any) -> float:
    """Returns the bytes of the tensor that a call makes, 0 for other calls."""
    try:
        if func in MAKERS:
            return max(func(*args, **{**kwargs, "device": "meta"}).nbytes, LEAST_BYTES)
        # A mask of zuko's layers is made by rows that repeat.
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor):
            rows, index = args
            repeats = 0 if index.dtype in (torch.bool, torch.uint8) else index.numel()
            return repeats * rows[:1].nbytes
    except RuntimeError:  # Its bytes can't even be counted.
        return float("inf")
    return 0
