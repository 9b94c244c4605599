"""Runs in several processes, started by `torchrun`.

The samples of a step have global indices 0 to B - 1, of which each process takes a consecutive
part. Noise, data order and dequantisation are functions of (seed, step, global index), so they do
not depend on the number of processes. torch's DistributedDataParallel averages gradients. Only
process 0 writes files.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..recipes.base import Objective
from .device import pick_device

Loss = Callable[[Tensor, int, int], Tensor]


class ProcessError(RuntimeError):
    """Another process of the run has failed."""


@dataclass(frozen=True)
class World:
    """The number of this process, and the number of processes of the run."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Returns the indices of 0 to total - 1 that belong to this process."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def reduced(self, objective: Objective) -> Loss:
        """Returns the loss of an objective, whose gradients are averaged over all processes."""
        if self.size == 1:
            return objective.loss
        return DistributedDataParallel(_LossModule(objective))

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.size

    def everyones(self, text: str) -> list[str]:
        """Returns the texts of all processes."""
        texts = [text] * self.size
        if self.size > 1:
            distributed.all_gather_object(texts, text)
        return texts

    def require_same(self, number: int, what: str) -> None:
        """Raises a ProcessError in all processes unless they have the same number below 2^62."""
        ends = torch.tensor([number, -number], device=_device_of_group(self.size))
        if self.size > 1:
            distributed.all_reduce(ends, distributed.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise ProcessError(
                f"process {self.rank}: {what} is not the same in all {self.size} processes; the"
                " run's folder must be on a disk that all see"
            )

    def on_first(self, work: Callable[[], object]) -> None:
        """Calls `work` in process 0; the others wait, and raise a ProcessError if it fails."""
        error: BaseException | None = None
        if self.writes:
            try:
                work()
            except BaseException as failure:
                error = failure
        if self.size > 1:
            failed = torch.tensor(float(error is not None), device=_device_of_group(self.size))
            distributed.broadcast(failed, 0)
            if error is None and failed:
                raise ProcessError(f"process {self.rank}: process 0 failed; its message says why")
        if error is not None:
            raise error

    def owns(self, number: int) -> bool:
        """Whether this process does a numbered piece of work."""
        return number % self.size == self.rank

    def gathered(self, parts: Sequence[Tensor | tuple[int, ...]], dtype: torch.dtype) -> Tensor:
        """Returns the concatenated pieces of all processes, in all processes.

        `parts` are the pieces that this process owns, and the shapes of the others.
        """
        device, pieces = _device_of_group(self.size), list[Tensor]()
        for number, part in enumerate(parts):
            if isinstance(part, Tensor):
                piece = part.to(device).contiguous()
            else:
                piece = torch.empty(part, dtype=dtype, device=device)
            if self.size > 1:
                distributed.broadcast(piece, number % self.size)
            pieces.append(piece.cpu())
        return torch.cat(pieces)


class _LossModule(nn.Module):
    """A module whose forward is the loss of an objective, for DistributedDataParallel."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.values = nn.ParameterList(objective.parameters)
        self.loss = objective.loss

    def forward(self, x0: Tensor, step: int, offset: int) -> Tensor:
        return self.loss(x0, step, offset)


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the process group of torchrun, if there is one, and leaves it at the end.

    A group that exists already is used. GPUs communicate by NCCL, CPUs by gloo.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield World(distributed.get_rank(), distributed.get_world_size())
        return
    if not _launched():
        yield World()
        return
    if device.startswith("cuda:"):
        raise ValueError(
            f"device={device!r}: of several processes each takes the GPU of its own number; use"
            " auto or cuda"
        )
    chosen = pick_device(device, local_rank())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # If torch loads it later, the defaults of its arguments keep the group, whose threads then
    # outlive the interpreter and abort the process.
    importlib.import_module("torch.distributed.nn")
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    # After an error the group stays until the process ends: the traceback holds objects that use
    # it. A process that ends with its group can be aborted by a thread of gloo.
    atexit.register(_leave)
    yield World(distributed.get_rank(), distributed.get_world_size())
    atexit.unregister(_leave)
    _leave()


def _leave() -> None:
    """Leaves the process group."""
    # A DistributedDataParallel that is freed after its group can hang.
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_first() -> bool:
    """Returns whether this process prints."""
    return not _launched() or os.environ["RANK"] == "0"


def _launched() -> bool:
    """Returns whether torchrun has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def restarts() -> int:
    """Returns how many times torchrun may restart this command."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def restarts_share_store() -> bool:
    """Returns whether restarts by torchrun use the same store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def local_rank() -> int:
    """Returns the number of this process on its machine, the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device_of_group(size: int) -> torch.device:
    if size > 1 and distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
