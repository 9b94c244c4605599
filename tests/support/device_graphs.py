"""CUDA graphs stood in for on the CPU: what is captured is recorded, and replayed literally.

A replay repeats each operation on the very tensors of the capture, with the numbers that Python
gave then. So a number that should have been in device memory is found by its old value.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import replace_everywhere
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffflow_ext.functional.core import core, device_and_stream

#: Operations by which a graph would wait for a value, or draw.
REFUSED = {"_local_scalar_dense", "nonzero", "equal", "bernoulli_", "normal_", "randn_like"}


def tensors_of(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Graph(TorchDispatchMode):
    """Records the operations of torch and of the compiled core."""

    def __init__(self) -> None:
        super().__init__()
        self.record: list[Callable[[], object]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(tensors_of(value))
        result = func(*args, **kwargs)
        if not name.startswith(("empty", "new_empty")):
            self.record.append(lambda: self.repeat(func, args, kwargs, result))
        # The graph's memory.
        self.record.append(lambda: (args, result) and None)
        return result

    def keep(self, tensors: list[Tensor]) -> None:
        """Notes what tensors hold, because a capture computes nothing."""
        for x in tensors:
            self.before.setdefault(
                x.untyped_storage().data_ptr(), (x.detach(), x.detach().clone())
            )

    def undo(self) -> None:
        """Gives tensors the values that they had before the capture."""
        for x, old in self.before.values():
            x.copy_(old)

    @staticmethod
    def repeat(func: Any, args: Any, kwargs: Any, result: Any) -> None:
        for old, new in zip(tensors_of(result), tensors_of(func(*args, **kwargs)), strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)

    def replay(self) -> None:
        with torch.no_grad():
            for operation in self.record:
                operation()


class RecordedCore:
    """The compiled core, whose calls go into the graph that is being captured."""

    capturing: Graph | None = None

    def __getattr__(self, name: str) -> Any:
        function = getattr(core, name)
        if isinstance(function, type) or name.startswith(("num_", "instructions", "gpu_")):
            return function

        def call(*args: Any) -> Any:
            if self.capturing is not None:
                self.capturing.record.append(lambda: function(*args))
            return function(*args)

        return call


class Stream:
    """A stream of a device on which everything is done at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        assert self.device == other.device


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch.cuda's streams and graphs work on the CPU, as far as captured steps need."""
    recorder = RecordedCore()
    current = [Stream(torch.device("cpu"))]

    @contextlib.contextmanager
    def stream(one: Stream) -> Iterator[None]:
        before, current[0] = current[0], one
        yield
        current[0] = before

    @contextlib.contextmanager
    def graph(one: Graph, *, pool: object, stream: Stream) -> Iterator[None]:
        before, current[0], recorder.capturing = current[0], stream, one
        try:
            with one:
                yield
        finally:
            recorder.capturing = None
        one.undo()
        current[0] = before

    fakes = {
        "Stream": Stream, "stream": stream, "graph": graph, "CUDAGraph": Graph,
        "current_stream": lambda device=None: current[0], "set_stream": lambda one: None,
        "graph_pool_handle": lambda: (0, 0), "get_rng_state": lambda device: torch.zeros(1),
        "is_current_stream_capturing": lambda: recorder.capturing is not None,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, one: None)
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *a, **k: ["cpu"])
    # The code takes its ways for a GPU, and the core computes on the CPU.
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True), raising=False)
    monkeypatch.setattr("diffflow_ext.engines.adjoint.replay.random_states", lambda device: ())
    replace_everywhere(monkeypatch, device_and_stream, lambda x: (-1, 0))
    replace_everywhere(monkeypatch, core, recorder)
