"""The package's own bindings, built a second time with the CUDA side executed on the host."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import CSRC, TESTS, compile_cpp, replace_everywhere

from diffflow_ext.functional.core import core, device_and_stream

OPTIONS = ("-DDIFFFLOW_CUDA_ON_HOST", "-DDIFFFLOW_WITH_CUDA", "-Wno-unknown-pragmas", "-fopenmp")
INCLUDES = (f"-I{CSRC}", f"-I{TESTS / 'native'}")
BUILD = {
    "VERSION": "test", "COMPILER": "g++", "CUDA_COMPILER": "g++",
    "CUDA_ARCHITECTURES": "host", "CUDA_NOTE": "",
}  # fmt: skip
DEFINITIONS = [f'-DDIFFFLOW_{name}="{value}"' for name, value in BUILD.items()]


@dataclass(frozen=True)
class HostDevice:
    """The second build of the bindings, whose device 0 is the emulation."""

    core: ModuleType
    library: ctypes.CDLL

    @contextmanager
    def shared_limit(self, size: int) -> Iterator[None]:
        """Gives a block of the emulated device so many bytes of shared memory at most."""
        self.library.host_set_shared_limit(size)
        try:
            yield
        finally:
            self.library.host_set_shared_limit(227 * 1024)

    @contextmanager
    def running(self, device: int, schedule: int = 0) -> Iterator[None]:
        """Sends all launches to this build, on the CPU (-1) or on the emulated device (0)."""
        self.library.host_set_schedule(schedule)
        with pytest.MonkeyPatch.context() as patch:
            replace_everywhere(patch, core, self.core)
            replace_everywhere(patch, device_and_stream, lambda x: (device, 0))
            yield


def compile_module(folder: Path) -> Path:
    """Builds the bindings and every .cu file with g++."""
    pybind11 = pytest.importorskip("pybind11")
    headers = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    sources = [TESTS / "native" / "host_module.cpp"]
    sources += [
        CSRC / "ops" / name for name in ("portable.cpp", "elementwise.cu", "reductions.cu")
    ]
    sources += [CSRC / "fused" / name for name in ("cpu/portable.cpp", "gpu/paths.cu")]
    options = ["-O0", "-fPIC", "-fvisibility=hidden", *OPTIONS, *INCLUDES, *DEFINITIONS, *headers]

    def build(source: Path) -> Path:
        to = folder / f"{source.parent.name}_{source.stem}.o"
        return compile_cpp([source], to, [*options, "-x", "c++", "-c"])

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(pool.map(build, sources))
    return compile_cpp(objects, folder / "_core.so", ["-shared", "-fopenmp"])


def load_module(path: Path, name: str) -> ModuleType:
    """Loads a build of the core beside the installed one."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(path: Path) -> HostDevice:
    """Loads what `compile_module` has built."""
    return HostDevice(load_module(path, "_core"), ctypes.CDLL(str(path)))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so that elements that are never written show."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
