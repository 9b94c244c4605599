"""What all tests share: helper modules, fixed randomness, and the skip of GPU tests."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import helpers
import host_device
import ptx_device
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from diffflow_ext.engines.fused import workspace

# At the end, for `benchmarks`: an installed diffflow_ext comes before the sources.
sys.path.append(str(helpers.ROOT))

# The same examples in every run: a failure is a defect of the change, never of the day.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, max_examples=60, print_blob=True
)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs a test on one thread, and puts back the number that it may have changed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Puts back the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=helpers.ENGINES)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of instructions that this processor has."""
    monkeypatch.setattr(workspace, "instructions_name", lambda: request.param)
    return request.param


@pytest.fixture(params=helpers.BF16_ENGINES or [None])
def bf16_instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of instructions for products of bfloat16 that this processor has."""
    if request.param is None:
        pytest.skip("needs products of bfloat16")
    monkeypatch.setattr(workspace, "_instructions", lambda: [*helpers.ENGINES, request.param])
    return request.param


@pytest.fixture(params=helpers.ENGINES)
def op_instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the ops on each set of instructions that this processor has."""
    with helpers.ops_with(request.param):
        yield request.param


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder for what is built once a session, whatever the number of workers."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def core_probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Single functions of csrc/, callable from Python (see core_probe.cpp)."""
    library = shared_folder(tmp_path_factory) / "core_probe.so"
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            source = helpers.TESTS / "native" / "core_probe.cpp"
            helpers.compile_cpp([source], library, ["-O2", "-shared", "-fPIC"])
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> host_device.HostDevice:
    """A build of the core whose device 0 is the emulation of cuda_host.h."""
    folder = shared_folder(tmp_path_factory) / "host_module"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "_core.so").exists():
            host_device.compile_module(folder)
    return host_device.load(folder / "_core.so")


@pytest.fixture(scope="session")
def ptx_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the core whose device 0 interprets PTX; see ptx_device.py."""
    folder = shared_folder(tmp_path_factory) / "ptx_core"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        return ptx_device.build_core(folder)
