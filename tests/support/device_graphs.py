"""CUDA graphs without a GPU: what torch and kernels have done, done again on the same memory.

A replay repeats each operation with the numbers that Python gave at the capture. So a number that
should have been in device memory is found by its old value, and memory that was freed by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from helpers import replace_everywhere
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from diffflow_ext.engines.adjoint.replay import random_states
from diffflow_ext.engines.cuda_graph import CapturedStep, _make_capturable
from diffflow_ext.functional.core import core, device_and_stream
from diffflow_ext.functional.tensors import is_traced
from diffflow_ext.processes.grids import TimeGrid

#: Operations by which a graph would wait for a value, or draw.
REFUSED = {"_local_scalar_dense", "nonzero", "bernoulli_", "normal_", "randn_like"}
#: What a capture does with the launches of kernels: it keeps them in a list, and runs none.
Recording = Callable[[list[Callable[[], None]]], AbstractContextManager[object]]


class FreedMemory(Exception):
    """A graph reads the memory of a tensor that is gone."""


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
            raise FreedMemory
        return self.alias


class Graph(TorchDispatchMode):
    """Records torch's operations and the launches of kernels while it is entered.

    As in the capture of a CUDA graph, kernels are not run, torch is told that its stream is
    capturing, and memory is afterwards as it was.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self.steps: list[Callable[[], None]] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Graph:
        self._undo = ExitStack()
        patch = self._undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        # Ops launch their kernels, although a mode watches.
        replace_everywhere(patch, is_traced, lambda: False)
        replace_everywhere(patch, random_states, lambda device: ())
        patch.setattr(TimeGrid, "steps", _on_the_host(TimeGrid.steps))
        self._undo.enter_context(self.recording(self.steps))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()
        with torch.no_grad():
            for x, old in self._before.values():
                x.copy_(old)

    def replay(self) -> None:
        """Does all again."""
        with torch.no_grad():
            for step in self.steps:
                step()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket.__name__ in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
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

    def _keep(self, written: object) -> None:
        for x in tree_leaves(written):
            if isinstance(x, Tensor) and _address(x) not in self._own:
                self._before.setdefault(_address(x), (x.detach(), x.detach().clone()))

    def _held(self, x: Any) -> Any:
        """Memory of the graph lives as long as the graph; other memory does not."""
        outside = isinstance(x, Tensor) and x.numel() > 0 and _address(x) not in self._own
        return Borrowed.of(x) if outside else x


def _on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function whose operations are none of the device's."""

    def unseen(*args: Any) -> Any:
        with _disable_current_modes():
            return function(*args)

    return unseen


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


class RecordedCore:
    """The compiled core; while a graph is captured its calls are kept, and not made."""

    steps: list[Callable[[], None]] | None = None

    def __getattr__(self, name: str) -> Any:
        function = getattr(core, name)
        if isinstance(function, type) or name.startswith(("num_", "instructions", "gpu_")):
            return function

        def call(*args: Any) -> Any:
            if self.steps is None:
                return function(*args)
            return self.steps.append(lambda: function(*args))

        return call

    @contextlib.contextmanager
    def recording(self, steps: list[Callable[[], None]]) -> Iterator[None]:
        self.steps = steps
        try:
            yield
        finally:
            self.steps = None


class CapturedOnCpu(CapturedStep):
    """A step that is captured on the CPU, with torch.cuda stood in for by `stand_in`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uses_graphs, self._side, self._pool = True, torch.cuda.Stream(self.device), (0, 0)
        _make_capturable(self.optimizer, self.device)


class Stream:
    """A stream of a device on which everything is done at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        assert self.device == other.device


def stand_in(monkeypatch: pytest.MonkeyPatch, recording: Recording | None = None) -> None:
    """Makes torch.cuda's streams and graphs work on the CPU, as far as captured steps need.

    By default kernels are those of the CPU.
    """
    if recording is None:
        recorder = RecordedCore()
        # The code takes its ways for a GPU, and the core computes on the CPU.
        monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True), raising=False)
        replace_everywhere(monkeypatch, device_and_stream, lambda x: (-1, 0))
        replace_everywhere(monkeypatch, core, recorder)
        recording = recorder.recording
    for name, fake in _streams_and_graphs(recording).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, one: None)
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *a, **k: ["cpu"])


def _streams_and_graphs(recording: Recording) -> dict[str, Any]:
    current = [Stream(torch.device("cpu"))]

    @contextlib.contextmanager
    def stream(one: Stream) -> Iterator[None]:
        before, current[0] = current[0], one
        yield
        current[0] = before

    @contextlib.contextmanager
    def graph(one: Graph, *, pool: object, stream: Stream) -> Iterator[None]:
        before, current[0] = current[0], stream
        with one:
            yield
        current[0] = before

    return {
        "Stream": Stream, "stream": stream, "graph": graph,
        "CUDAGraph": lambda: Graph(recording),
        "current_stream": lambda device=None: current[0], "set_stream": lambda one: None,
        "graph_pool_handle": lambda: (0, 0), "get_rng_state": lambda device: torch.zeros(1),
        "is_current_stream_capturing": lambda: False,
    }  # fmt: skip
