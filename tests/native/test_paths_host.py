"""The kernels that carry whole paths on a GPU, executed on the host.

csrc/fused/gpu/paths.cu is compiled against tests/native/cuda_host.h; values and gradients are held
against the adjoint in float64, which tests/engines/test_adjoint.py holds against autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import replace_everywhere, same_bits
from host_device import HostDevice, poisoned_memory
from planted import SCHEDULES, Bug, answer, build_probe
from torch import Tensor

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.engines.fused import paths_cuda, perceptrons, workspace
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.fused.workspace import Rounding
from diffflow_ext.engines.paths import fused_or_reason
from diffflow_ext.flows import StandardNormal
from diffflow_ext.functional.core import build_info
from diffflow_ext.nets import FourierMLP

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = NoiseKey(2**40 + 5, 2)
#: Errors of gradients against float64, relative to their norm. TF32 has 10 bits, bfloat16 8.
ERRORS: dict[Rounding, float] = {"float32": 5e-6, "tf32": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def _embeddings_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: time embeddings of the fused engine are those of the CPU."""
    monkeypatch.setattr(perceptrons, "embedding_or_none", lambda *_: None)


@dataclass(frozen=True)
class Case:
    dim: int
    widths: tuple[int, int]
    depths: tuple[int, int]
    batch: int
    num_steps: int
    activations: tuple[str, str] = ("gelu", "silu")
    rounding: Rounding = "float32"
    learned_g: bool = False

    def sde(self) -> DiffFlowSDE:
        torch.manual_seed(1)
        nets = [
            FourierMLP(self.dim, *sizes)
            for sizes in zip(self.widths, self.depths, self.activations, strict=True)
        ]
        learned = GeometricDiffusion(0.7, 0.9, learnable=True)
        sde = DiffFlowSDE(nets[0], nets[1], learned if self.learned_g else 0.8)
        with torch.no_grad():
            for p in sde.parameters():
                p.mul_(1.5)  # so that no activation stays in its linear part
        return sde

    def data(self) -> Tensor:
        return torch.randn(self.batch, self.dim, generator=torch.Generator().manual_seed(2))

    def grid(self) -> TimeGrid:
        return TimeGrid.power(self.num_steps, 1.0)


#: Each net narrower than a warp's units, of several, not a whole number of them; no hidden layer,
#: one, three; whole tiles and not; one step and several.
CASES = [
    Case(2, (16, 16), (1, 1), 5, 2),
    Case(2, (128, 128), (3, 3), 20, 2),
    Case(1, (7, 33), (2, 1), 17, 4, ("tanh", "gelu"), learned_g=True),
    Case(6, (48, 32), (0, 2), 33, 1, ("silu", "tanh")),
    Case(9, (20, 64), (3, 0), 16, 3, ("gelu", "tanh"), learned_g=True),
]


def fused_on(
    sde: DiffFlowSDE, x0: Tensor, grid: TimeGrid, rounding: Rounding, key: Any = KEY
) -> Any:
    """The kernels' engine for the problem that DiffFlowSDE makes, and x0."""
    p, x0 = sde._problem("test", x0, grid, key)
    drift, score = (
        perceptrons.parts_or_reason(net, p.times, x0) for net in (sde.drift, sde.score)
    )
    assert isinstance(drift, workspace.Parts)
    assert isinstance(score, workspace.Parts)
    return FusedPaths(p, drift, score, "host", rounding), x0


def truth(case: Case, weight: Tensor) -> tuple[Tensor, Tensor, DiffFlowSDE]:
    """Losses, the gradient of x0, and a model with those of its parameters, in float64."""
    sde, x0 = case.sde().double(), case.data().double().requires_grad_()
    loss = sde.loss(x0, case.grid(), KEY, engine="autograd")
    (loss * weight.double()).sum().backward()
    assert x0.grad is not None
    return loss.detach(), x0.grad, sde


def distance(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("rounding", ERRORS)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(host: HostDevice, case: Case, rounding: Rounding) -> None:
    weight = torch.rand(case.batch) / case.batch
    loss, x0_grad, expected = truth(case, weight)
    sde, x0 = case.sde(), case.data().requires_grad_()
    fused, x0_ = fused_on(sde, x0, case.grid(), rounding)
    with poisoned_memory(), host.running(0):
        mean = fused.mean_loss(x0_, weight)
        mean.backward()
    bound = ERRORS[rounding]
    assert mean.item() == pytest.approx(float((loss * weight).sum()), rel=bound)
    assert distance(x0.grad, x0_grad) < bound
    for (name, p), q in zip(sde.named_parameters(), expected.parameters(), strict=True):
        assert distance(p.grad, q.grad) < bound, name


def test_losses_of_samples(host: HostDevice) -> None:
    """Not their mean: the backward pass learns the weights later, and walks again."""
    case, weight = CASES[2], torch.tensor([0.0, 2.0] + [-0.5] * 15)
    loss, x0_grad, expected = truth(case, weight)
    sde, x0 = case.sde(), case.data().requires_grad_()
    fused, x0_ = fused_on(sde, x0, case.grid(), "float32")
    with poisoned_memory(), host.running(0):
        found = fused.losses(x0_)
        (found * weight).sum().backward()
    torch.testing.assert_close(found.double(), loss, rtol=1e-6, atol=1e-6)
    assert distance(x0.grad, x0_grad) < 5e-6
    for p, q in zip(sde.parameters(), expected.parameters(), strict=True):
        assert distance(p.grad, q.grad) < 5e-6


def run_of(case: Case, key: Any = KEY) -> tuple[paths_cuda.GpuRun, Tensor]:
    fused, x0 = fused_on(case.sde(), case.data(), case.grid(), case.rounding, key)
    return fused.on_gpu(fused.problem.g, fused.tensors), x0


def results(
    host: HostDevice, run: paths_cuda.GpuRun, x0: Tensor, schedule: int = 0
) -> list[Tensor]:
    with poisoned_memory(), host.running(0, schedule):
        cost, grads = run.loss(torch.full((len(x0),), 0.25), x0)
        return [run.path(x0), cost, *grads]


@pytest.mark.parametrize("rounding", ERRORS)
def test_all_schedules_agree(host: HostDevice, rounding: Rounding) -> None:
    run, x0 = run_of(replace(CASES[2], rounding=rounding))
    expected = results(host, run, x0)
    for schedule in range(1, 8):
        found = results(host, run, x0, schedule)
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True)), schedule


def test_noise_has_the_bits_of_the_generic_path(host: HostDevice) -> None:
    """Without drift the states are data and noise, in the same operations."""
    case = replace(CASES[0], batch=21)
    sde = case.sde()
    with torch.no_grad():
        sde.drift.output.weight.zero_()
        sde.drift.output.bias.zero_()
    expected = sde.path(case.data(), case.grid(), KEY)
    for key in (KEY, KEY.to_tensor()):
        fused, x0 = fused_on(sde, case.data(), case.grid(), "float32", key)
        # A key in memory would have been read on the way in; kernels read it themselves.
        fused.problem = replace(fused.problem, key=key)
        states = torch.empty_like(expected)
        with poisoned_memory(), host.running(0):
            assert same_bits(fused.forward(x0, states), expected[-1])
        assert same_bits(states, expected)


def test_batches_in_parts(host: HostDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples have the same bits; the sums of gradients have other brackets."""
    run, x0 = run_of(replace(CASES[4], batch=70))
    expected = results(host, run, x0)
    monkeypatch.setattr(paths_cuda, "KEPT_BYTES", 1)
    assert run._part_size(x0) == 16
    found = results(host, run, x0)
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert same_bits(a, b)
    for a, b in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounding", ERRORS)
def test_weights_are_streamed_where_they_do_not_fit(host: HostDevice, rounding: Rounding) -> None:
    """One layer after the other: the same bits, in all schedules."""
    case = Case(2, (40, 48), (3, 2), 20, 2, rounding=rounding, learned_g=True)
    run, x0 = run_of(case)
    expected = results(host, run, x0)
    products = getattr(host.core.Products, rounding)
    need = [
        host.core.gpu_paths_shared_bytes(width, depth, 2, products)
        for width, depth in zip(case.widths, case.depths, strict=True)
    ]
    with host.shared_limit(max(need)):
        for schedule in SCHEDULES:
            found = results(host, run, x0, int(schedule))
            assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True)), schedule
    with host.shared_limit(min(need) - 1), pytest.raises(RuntimeError, match="invalid argument"):
        results(host, run, x0)


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
    monkeypatch: pytest.MonkeyPatch,
    kib: int,
    width: int,
    depth: int,
    rounding: Rounding,
    dim: int,
) -> None:
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": True})
    assert obstacle_on(host, kib, width, depth, rounding, dim) == ""


@pytest.mark.parametrize(
    ("kib", "width", "depth", "rounding", "dim", "need", "ways"),
    [
        (SMALL, 192, 3, "float32", 2, 182016, "128 units fit, so do all under torch.autocast"),
        (SMALL, 256, 3, "tf32", 2, 307712, "128 units fit, engine="),
        (SMALL, 208, 8, "bfloat16", 2, 114688, "192 units fit, engine="),
        (A100, 256, 3, "float32", 2, 307712, "176 units fit, so do all under torch.autocast"),
        (A100, 128, 3, "float32", 63, 182784, "112 units fit, so do all under torch.autocast"),
        (H100, 256, 1, "float32", 2, 305664, "208 units fit, so do all under torch.autocast"),
        (H100, 16, 1, "float32", 1000, 643904, "engine="),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    host: HostDevice,
    monkeypatch: pytest.MonkeyPatch,
    kib: int,
    width: int,
    depth: int,
    rounding: Rounding,
    dim: int,
    need: int,
    ways: str,
) -> None:
    """The text names the card, what the network needs, what the card has, and the ways out."""
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": True})
    text = obstacle_on(host, kib, width, depth, rounding, dim)
    name = "drift" if width == 16 else "score"
    assert text.startswith(
        f"{name}: {width} units in {rounding} take {need} bytes of shared memory, and a block of "
        f"CUDA on the host (sm_90) has {kib * 1024}; {ways}"
    )
    assert text.endswith("engine='autograd' takes any network")


def test_networks_beyond_the_kernels_are_refused(
    host: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": True})
    assert "wider than 256" in obstacle_on(host, H100, 257, 1, "bfloat16")
    assert "more than 8 hidden layers" in obstacle_on(host, H100, 16, 9, "float32")


def test_a_build_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": False})
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
    sde = CASES[0].sde()
    sde.prior = StandardNormal(scale=2.0)
    p, x0 = sde._problem("test", CASES[0].data(), CASES[0].grid(), KEY)
    assert "another prior" in str(fused_or_reason(p, x0))


# --- planted bugs and sanitizers -----------------------------------------------------------------

#: What breaks the kernels.
BUGS = {
    "no barrier between layers": Bug(
        "fused/gpu/layers.cuh",
        "at.tile(l + 1), trace, l + 1);\n    __syncthreads();",
        "at.tile(l + 1), trace, l + 1);",
    ),
    "no barrier behind the step": Bug(
        "fused/gpu/paths.cu",
        "if (k == p.num_steps) break;\n    __syncthreads();",
        "if (k == p.num_steps) break;",
    ),
    "no barrier before weights are replaced": Bug(
        "fused/gpu/layers.cuh",
        "if (at.streamed() || Factors::kParts > 1) __syncthreads();",
        "if (Factors::kParts > 1) __syncthreads();",
    ),
    "no barrier before a tile is replaced": Bug(
        "fused/gpu/layers.cuh",
        "if (at.streamed() || Factors::kParts > 1) __syncthreads();",
        "if (at.streamed()) __syncthreads();",
    ),
    "no barrier behind the noise of g": Bug(
        "fused/gpu/paths.cu",
        "draw_noise<Factors>(p, at, tile, k, -1);\n    __syncthreads();",
        "draw_noise<Factors>(p, at, tile, k, -1);",
    ),
    "rows behind the last are stored": Bug(
        "fused/gpu/layers.cuh",
        "if (!is_sample(trace, pair)) return;",
        "",
    ),
}
SANITIZED = ("-O1", "-g", "-fsanitize=address,alignment", "-fno-sanitize-recover=all")


def answers(probe: Path, rounding: int, learned: int, streamed: int) -> set[str]:
    """What the probe says in all schedules."""
    return {answer(probe, schedule, rounding, learned, streamed) for schedule in SCHEDULES}


@pytest.fixture(scope="module")
def right_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_probe(tmp_path_factory.mktemp("paths"), "paths_probe.cpp", None, *SANITIZED)


@pytest.mark.parametrize("rounding", range(3))
@pytest.mark.parametrize("learned", range(2))
@pytest.mark.parametrize("streamed", range(2))
def test_sanitizers_find_nothing(
    right_probe: Path, rounding: int, learned: int, streamed: int
) -> None:
    (only,) = answers(right_probe, rounding, learned, streamed)
    assert "nan" not in only
    assert "rror" not in only


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_planted_bug_is_caught(right_probe: Path, tmp_path: Path, bug: Bug) -> None:
    wrong = build_probe(tmp_path, "paths_probe.cpp", bug, *SANITIZED)
    assert answers(wrong, 0, 1, 1) != answers(right_probe, 0, 1, 1)
