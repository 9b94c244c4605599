"""CUDA graphs without a GPU: what torch and kernels have done, done again on the same memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from helpers import replace_everywhere
from ptx_device import Misuse, PtxDevice
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from diffflow_ext.functional.tensors import is_traced


@dataclass(frozen=True)
class Borrowed:
    """A tensor from before a capture: its memory, which a graph does not keep alive."""

    owner: StorageWeakRef
    alias: Tensor

    @staticmethod
    def of(x: Tensor) -> Borrowed:
        storage = x.untyped_storage()
        memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
        alias = torch.frombuffer(memory, dtype=x.dtype)
        return Borrowed(
            StorageWeakRef(storage), alias.as_strided(x.shape, x.stride(), x.storage_offset())
        )

    def tensor(self) -> Tensor:
        if self.owner.expired():
            raise Misuse("a graph reads the memory of a tensor that is gone")
        return self.alias


class Graph(TorchDispatchMode):
    """Records torch's operations and the launches of kernels while it is entered.

    As in the capture of a CUDA graph, kernels are not run, and torch is told that its stream is
    capturing. Torch's operations are run, on what is in memory.

    Arguments:
        device: The device, in `PtxDevice.running`.
    """

    def __init__(self, device: PtxDevice) -> None:
        super().__init__()
        self.device = device
        self.steps: list[Callable[[], None]] = []
        self._own: set[int] = set()

    def __enter__(self) -> Graph:
        self._undo = ExitStack()
        patch = self._undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        # Ops launch their kernels, although a mode watches.
        replace_everywhere(patch, is_traced, lambda: False)
        self._undo.enter_context(self.device.recording(self.steps))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def replay(self) -> None:
        """Does all again."""
        with torch.no_grad():
            for step in self.steps:
                step()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        tensors = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if function is torch.ops.aten.lift_fresh.default:  # the end of torch.tensor()
            given = set()
        made = [None if _address(x) in given else x for x in tensors]
        self._own |= {_address(x) for x in made if x is not None}
        if tensors or function._schema.is_mutable:  # and not what only answers Python
            held = tree_map(self._held, (args, kwargs))
            self.steps.append(partial(_repeat, function, *held, made))
        return results

    def _held(self, x: Any) -> Any:
        """Memory of the graph lives as long as the graph; other memory does not."""
        outside = isinstance(x, Tensor) and x.numel() > 0 and _address(x) not in self._own
        return Borrowed.of(x) if outside else x


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _repeat(function: Any, args: Any, kwargs: Any, made: list[Tensor | None]) -> None:
    def usable(x: Any) -> Any:
        return x.tensor() if isinstance(x, Borrowed) else x

    args, kwargs = tree_map(usable, (args, kwargs))
    results = tree_leaves(function(*args, **kwargs))
    tensors = [x for x in results if isinstance(x, Tensor)]
    for x, new in zip(made, tensors, strict=True):
        if x is not None:
            x.copy_(new)
