"""Weights split among processes: torch's FSDP2 around the losses of a recipe.

The weights are gathered for a loss and its backward pass and split again after it. Moments of Adam
and averages are never gathered in training. A path evaluates a network at every step, so gathering
layer by layer would move the weights N times; here they move once.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from ..recipes.base import Recipe
from .distributed import Loss


class ShardedLosses(nn.Module):
    """Splits the weights of a recipe's module, and computes its losses.

    The recipe's objectives are replaced. `device` is that of the share.
    """

    def __init__(self, recipe: Recipe[Any, Any], device: torch.device) -> None:
        super().__init__()
        self.module, self.recipe = recipe.module, recipe
        shard(self, device)
        recipe.objectives = recipe.make_objectives()

    def forward(self, index: int, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the loss of an objective; FSDP2 gathers weights around `forward`."""
        return self.recipe.objectives[index].loss(x0, step, offset)

    def losses(self) -> list[Loss]:
        """Returns the loss of each objective."""
        return [partial(self, index) for index in range(len(self.recipe.objectives))]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Gathers the weights in all processes, for computations other than losses."""
        self.unshard()  # pyright: ignore[reportCallIssue]: fully_shard gives it to the module
        try:
            yield
        finally:
            self.reshard()  # pyright: ignore[reportCallIssue]


def shard(module: nn.Module, device: torch.device) -> None:
    """Reduces a module's parameters to the share of this process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=init_device_mesh(device.type, (distributed.get_world_size(),)))


def can_shard() -> bool:
    """Returns whether this torch has FSDP2, as it has from 2.6 on."""
    return importlib.util.find_spec("torch.distributed.fsdp._fully_shard") is not None


def in_full(tensor: Tensor) -> Tensor:
    """Returns a tensor gathered from its shares, if any; all processes must call this."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns an optimiser's state of a parameter, given in full, in shares if the parameter is.

    State of another shape than the parameter is a counter and is not split.
    """
    if not _is_shared(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import DTensor

    # Every process has the full tensor and copies its part, so that the rest can be freed.
    mesh = parameter.device_mesh
    parts = [*tensor.chunk(mesh.size()), *[tensor[:0]] * mesh.size()]
    mine = parts[mesh.get_local_rank()].clone().to(parameter.device)
    return DTensor.from_local(
        mine,
        mesh,
        parameter.placements,
        run_check=False,
        shape=tensor.shape,
        stride=parameter.stride(),
    )


def _is_shared(tensor: Tensor) -> TypeGuard[Any]:
    """Returns whether it is a DTensor, without the slow import of that class."""
    return hasattr(tensor, "full_tensor")
