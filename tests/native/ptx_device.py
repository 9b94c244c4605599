"""A device without a GPU: the package's core, built by nvcc, with its PTX interpreted on the CPU.

`build_core` builds the core with the project's own CMake and links ptx_runtime.cpp in the place of
libcudart. `PtxDevice` runs package code on it: CPU tensors count as memory of device 0.

Kernels may touch the memory of tensors whose address the package has asked for since `running` was
entered, as long as it lives. If they touch other memory, or a place that is misaligned or not
initialised, or race, the end of `running` raises `Misuse`.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT, TESTS, compile_cpp, replace_everywhere
from host_device import load_module, poisoned_memory
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from diffflow_ext.functional.core import core, device_and_stream

#: One architecture, as PTX alone. Host code has no part in what is tested: it is not optimised.
ARCHITECTURE = "90-virtual"
HERE = TESTS / "native"
#: Lanes are computed by the vectors of this processor; products and sums stay apart.
OPTIONS = ("-O2", "-march=native", "-fPIC", "-fvisibility=hidden", "-c")
ON_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_uint64)


class Misuse(AssertionError):
    """What kernels have done wrong."""


class Instruction(NamedTuple):
    """An instruction of a kernel: its place, how often warps ran it, and its text."""

    place: int
    runs: int
    text: str


class Launch(NamedTuple):
    """A launch: the kernel's mangled name, and the stream."""

    kernel: str
    stream: int


def build_core(folder: Path) -> Path:
    """Returns the built module, or skips the test where there is no compiler for it."""
    pybind11 = pytest.importorskip("pybind11")
    nvcc = os.environ.get("CUDACXX", "nvcc")
    for tool in ("cmake", nvcc):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True)
    if int(re.findall(r"release (\d+)\.", version.stdout)[0]) < 13:
        pytest.skip("the calls of older compilers to libcudart are others")
    build = folder / "build"
    if not any(build.glob("_core*.so")):
        runtime = compile_cpp([HERE / "ptx_runtime.cpp"], folder / "ptx_runtime.o", OPTIONS)
        subprocess.run(["ar", "rc", folder / "libcudart_static.a", runtime], check=True)
        settings = {
            "DIFFFLOW_CUDA": "ON",
            "DIFFFLOW_CUDA_ARCHS": ARCHITECTURE,
            "CMAKE_BUILD_TYPE": "Unoptimised",
            # The linker looks here before it looks among NVIDIA's libraries.
            "CMAKE_MODULE_LINKER_FLAGS": f"-L{folder}",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        options = [f"-D{name}={value}" for name, value in settings.items()]
        run_cmake("-S", ROOT, "-B", build, *options)
        run_cmake("--build", build, "--parallel", "2")
    (module,) = build.glob("_core*.so")
    return module


def run_cmake(*arguments: object) -> None:
    # The interpreter reads PTX as it is.
    env = {**os.environ, "NVCC_APPEND_FLAGS": "--no-compress"}
    command = ["cmake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass
class PtxDevice:
    """A build of the core whose device 0 interprets PTX.

    Arguments:
        core: The module.
        library: The same as a library, for the functions at the end of ptx_runtime.cpp.
    """

    core: ModuleType
    library: ctypes.CDLL
    #: Launches since `running` was entered, those that were kept included.
    launches: list[Launch] = field(default_factory=list)
    _kept: int = 0
    _steps: list[Callable[[], None]] | None = None
    _owners: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("problems", "kernels", "instructions", "replace", "replay"):
            getattr(self.library, f"ptx_{name}").restype = ctypes.c_char_p
        self.library.ptx_set.restype = ctypes.c_int64
        self.library.ptx_set.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        for name in ("allow", "forget"):
            getattr(self.library, f"ptx_{name}").argtypes = [ctypes.c_uint64] * 2
        self._callback = ON_LAUNCH(self._on_launch)
        self.library.ptx_on_launch(self._callback)

    @staticmethod
    def load(module: Path) -> PtxDevice:
        """Loads a build beside the installed core."""
        # pybind11 knows modules by their names: this one is nobody else's.
        loaded = load_module(module, "ptx_device._core")
        return PtxDevice(loaded, ctypes.CDLL(str(module)))

    @staticmethod
    def of_this_process() -> PtxDevice:
        """The device of a process that `run_in_child` has started."""
        return PtxDevice(core, ctypes.CDLL(core.__file__))

    # --- running ---------------------------------------------------------------------------------

    @contextmanager
    def running(
        self, stream: int = 0, *, is_cuda: bool = False, fresh: bool = True, **settings: int
    ) -> Iterator[None]:
        """Sends all launches of the package to device 0; fresh tensors hold NaN.

        Arguments:
            stream: The stream that launches are queued in.
            is_cuda: Whether tensors say that they are on a GPU; their `device` is still the CPU.
            fresh: Whether kernels lose the memory that they had before; a graph that was recorded
                then needs it.
            settings: Those of ptx_machine.h.

        Raises:
            Misuse: If kernels raced, or touched memory that they must not.
        """
        self.launches.clear()
        if fresh:
            self._owners.clear()
            self.library.ptx_forget(0, 2**64 - 1)
        with pytest.MonkeyPatch.context() as patch, poisoned_memory(), self._set(settings):
            replace_everywhere(patch, core, self.core)
            replace_everywhere(patch, device_and_stream, lambda x: (0, stream))
            patch.setattr(Tensor, "data_ptr", self._lend(Tensor.data_ptr))
            if is_cuda:
                patch.setattr(Tensor, "is_cuda", True)
                patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
            try:
                yield
            finally:
                problems = self.library.ptx_problems().decode()
        if problems:
            raise Misuse(problems)

    @contextmanager
    def recording(self, steps: list[Callable[[], None]]) -> Iterator[None]:
        """Keeps launches instead of running them, as the capture of a CUDA graph does.

        `steps` gets a call for each launch, which runs it with the arguments that it had.
        """
        self._steps = steps
        try:
            yield
        finally:
            self._steps = None

    @contextmanager
    def _set(self, settings: dict[str, int]) -> Iterator[None]:
        set_value = self.library.ptx_set
        before = {name: set_value(name.encode(), value) for name, value in settings.items()}
        try:
            yield
        finally:
            for name, value in before.items():
                set_value(name.encode(), value)

    def _on_launch(self, kernel: bytes, stream: int) -> int:
        self._take_back()
        self.launches.append(Launch(kernel.decode(), stream))
        if self._steps is None:
            return 0
        self._steps.append(partial(self._replay, self._kept))
        self._kept += 1
        return 1

    def _replay(self, number: int) -> None:
        self._take_back()
        error = self.library.ptx_replay(ctypes.c_int64(number)).decode()
        if error:
            raise RuntimeError(error)

    # --- memory ----------------------------------------------------------------------------------

    def _lend(self, data_ptr: Callable[[Tensor], int]) -> Callable[[Tensor], int]:
        """`Tensor.data_ptr`, after which kernels may touch the tensor's elements."""

        def lending(x: Tensor) -> int:
            start = data_ptr(x)
            if x.numel():
                self._take_back()
                storage = x.untyped_storage()
                self._owners[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
                pairs = zip(x.shape, x.stride(), strict=True)
                extent = 1 + sum((size - 1) * stride for size, stride in pairs)
                self.library.ptx_allow(start, start + extent * x.element_size())
            return start

        return lending

    def _take_back(self) -> None:
        """Memory that has been freed is nobody's."""
        for start in [s for s, (owner, _) in self._owners.items() if owner.expired()]:
            _, size = self._owners.pop(start)
            self.library.ptx_forget(start, start + size)

    # --- kernels ---------------------------------------------------------------------------------

    def kernels(self) -> dict[str, int]:
        """How often each kernel of the module has been launched, by its mangled name."""
        lines = self.library.ptx_kernels().decode().splitlines()
        return {name: int(launches) for launches, name in (line.split(" ") for line in lines)}

    def instructions(self, kernel: str) -> list[Instruction]:
        """The instructions of a kernel that has been launched."""
        lines = self.library.ptx_instructions(kernel.encode()).decode().splitlines()
        split = (line.partition(" ") for line in lines)
        return [Instruction(i, int(runs), text) for i, (runs, _, text) in enumerate(split)]

    @contextmanager
    def replaced(self, kernel: str, texts: dict[int, str]) -> Iterator[None]:
        """Puts other instructions in places of a kernel; empty text does nothing."""
        right = {at.place: at.text for at in self.instructions(kernel) if at.place in texts}

        def put(texts: dict[int, str]) -> None:
            for place, text in texts.items():
                number = ctypes.c_int64(place)
                error = self.library.ptx_replace(kernel.encode(), number, text.encode())
                if error:
                    raise ValueError(error.decode())

        put(texts)
        try:
            yield
        finally:
            put(right)


#: Puts a build in the place of the installed core, then runs a script.
BOOT = """
import importlib.util, runpy, sys
import torch
spec = importlib.util.spec_from_file_location("diffflow_ext._core", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["diffflow_ext._core"] = module
spec.loader.exec_module(module)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_in_child(module: Path, script: Path, *arguments: object) -> str:
    """Runs a script with a build as `diffflow_ext._core`, and returns what it printed."""
    folders = [ROOT, HERE, TESTS / "support", os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", BOOT, *map(str, (module, script, *arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
