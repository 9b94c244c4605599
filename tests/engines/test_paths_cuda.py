"""Which networks the kernels for whole paths on a GPU take, on which card; their values are tested
in tests/native/test_paths_host.py.
"""

from __future__ import annotations

import re

import pytest
import torch
from helpers import replace_everywhere
from host_device import HostDevice

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.engines.fused import paths_cuda, perceptrons, workspace
from diffflow_ext.engines.fused.workspace import Rounding
from diffflow_ext.engines.paths import fused_or_reason
from diffflow_ext.flows import StandardNormal
from diffflow_ext.functional.core import build_info
from diffflow_ext.nets import FourierMLP

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _embeddings_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: time embeddings of the fused engine are those of the CPU."""
    monkeypatch.setattr(perceptrons, "embedding_or_none", lambda *_: None)


@pytest.fixture(autouse=True)
def _built_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": True})


#: Shared memory of a block in KiB: sm_86, sm_89 and sm_120; sm_80; sm_90 and sm_100.
SMALL, A100, H100 = 99, 163, 227


def obstacle_on(
    host: HostDevice, kib: int, width: int, depth: int, rounding: Rounding, dim: int = 2
) -> str:
    x, times = torch.zeros(1, dim), torch.zeros(3)
    small, large = (
        perceptrons.parts_or_reason(FourierMLP(dim, *sizes), times, x)
        for sizes in ((16, 1), (width, depth))
    )
    assert isinstance(small, workspace.Parts)
    assert isinstance(large, workspace.Parts)
    with host.running(0), host.shared_limit(kib * 1024):
        return paths_cuda.obstacle(small, large, dim, rounding, 0)


@pytest.mark.parametrize(
    ("kib", "width", "depth", "rounding", "dim"),
    [
        # The default network fits every card.
        (SMALL, 128, 3, "float32", 2),
        (SMALL, 128, 3, "float32", 8),
        (SMALL, 128, 8, "tf32", 2),
        (SMALL, 192, 8, "bfloat16", 2),
        (A100, 176, 3, "float32", 2),
        (A100, 256, 4, "bfloat16", 2),
        (H100, 208, 3, "float32", 2),
        (H100, 256, 8, "bfloat16", 2),
        (H100, 128, 3, "float32", 63),
    ],
)
def test_networks_that_fit(
    host: HostDevice,
    kib: int,
    width: int,
    depth: int,
    rounding: Rounding,
    dim: int,
) -> None:
    assert obstacle_on(host, kib, width, depth, rounding, dim) == ""


@pytest.mark.parametrize(
    ("kib", "width", "depth", "rounding", "dim", "need", "ways"),
    [
        (SMALL, 192, 3, "float32", 2, 182016, "128 units fit, all 192 fit under torch.autocast"),
        (SMALL, 256, 3, "tf32", 2, 307712, "128 units fit, engine="),
        (SMALL, 208, 8, "bfloat16", 2, 114688, "192 units fit, engine="),
        (A100, 256, 3, "float32", 2, 307712, "176 units fit, all 256 fit under torch.autocast"),
        (A100, 128, 3, "float32", 63, 182784, "112 units fit, all 128 fit under torch.autocast"),
        (H100, 256, 1, "float32", 2, 305664, "208 units fit, all 256 fit under torch.autocast"),
        (H100, 16, 1, "float32", 1000, 643904, "engine="),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    host: HostDevice,
    kib: int,
    width: int,
    depth: int,
    rounding: Rounding,
    dim: int,
    need: int,
    ways: str,
) -> None:
    """The text names the card, what the network needs, what the card has, and the ways out."""
    text = obstacle_on(host, kib, width, depth, rounding, dim)
    name = "drift" if width == 16 else "score"
    assert text.startswith(
        f"{name}: {width} units in {rounding} take {need} bytes of shared memory, and a block of "
        f"CUDA on the host (sm_90) has {kib * 1024}; {ways}"
    )
    assert text.endswith("engine='autograd' takes any network")


def test_networks_beyond_the_kernels_are_refused(host: HostDevice) -> None:
    assert "wider than 256" in obstacle_on(host, H100, 257, 1, "bfloat16")
    assert "more than 8 hidden layers" in obstacle_on(host, H100, 16, 9, "float32")


@pytest.mark.parametrize("rounding", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [2, 63])
def test_the_widest_networks_are_those_of_the_docstring(
    host: HostDevice, rounding: Rounding, dim: int
) -> None:
    text = paths_cuda.__doc__
    assert text is not None
    if dim == 2:
        rows = re.findall(r"KiB.*?  +(\d+) \(\d+\) +(\d+) \(\d+\)", text)
        widest = [int(row[rounding == "bfloat16"]) for row in rows]
    else:
        found = re.findall(r"(\d+),\s+(\d+) and (\d+) (?:units )?in", text)
        widest = [int(width) for width in found[rounding == "bfloat16"]]
    for kib, width in zip((SMALL, A100, H100), widest, strict=True):
        assert obstacle_on(host, kib, width, 3, rounding, dim) == ""
        assert obstacle_on(host, kib, width + 16, 3, rounding, dim) != ""


def test_a_build_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_cuda, "build_info", lambda: {"cuda": False})
    parts = perceptrons.parts_or_reason(FourierMLP(2, 16, 1), torch.zeros(3), torch.zeros(1, 2))
    assert isinstance(parts, workspace.Parts)
    assert "no CUDA kernels" in paths_cuda.obstacle(parts, parts, 2, "float32", 0)


def test_rounding_follows_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.rounding_name() == "float32"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert workspace.rounding_name() == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    # Without a device torch switches its autocast off.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, None)):
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device, dtype=dtype: dtype)
        assert workspace.rounding_name() == name


def test_the_prior_has_its_own_obstacle() -> None:
    nets = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    sde = DiffFlowSDE(*nets, prior=StandardNormal(scale=2.0))
    p, x0 = sde._problem("test", torch.zeros(3, 2), TimeGrid.power(2, 1.0), NoiseKey(1))
    assert "another prior" in str(fused_or_reason(p, x0))
