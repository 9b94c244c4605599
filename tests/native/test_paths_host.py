"""The kernels that carry whole paths on a GPU, executed on the host.

csrc/fused/gpu/paths.cu is compiled against tests/native/cuda_host.h; values and gradients are held
against the adjoint in float64, which tests/engines/test_adjoint.py holds against autograd.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import paths_estimate
import pytest
import sass
import torch
from helpers import CSRC, same_bits
from host_device import HostDevice, poisoned_memory
from path_cases import ERRORS, KEY, Case
from planted import SCHEDULES, Bug, answer, build_probe
from torch import Tensor

from diffflow_ext import DiffFlowSDE, TimeGrid
from diffflow_ext.engines.fused import paths_cuda, perceptrons, workspace
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.fused.workspace import Rounding

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _embeddings_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: time embeddings of the fused engine are those of the CPU."""
    monkeypatch.setattr(perceptrons, "embedding_or_none", lambda *_: None)


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


@pytest.mark.slow
def test_the_estimate_reads_machine_code() -> None:
    """Loads of shared memory by other sums: 16 rows and 16 columns of 128 by each of 8 warps."""
    if shutil.which("nvcc") is None or sass.find_tool("cuobjdump") is None:
        pytest.skip("needs nvcc and cuobjdump")
    codes = paths_estimate.compile_parts(CSRC)
    for rounding, item in (("float32", 4), ("tf32", 4), ("bfloat16", 2)):
        for parts in (1, 2):
            cycles = paths_estimate.product_cycles(codes, rounding, parts)
            assert cycles["shared memory"] == 8 * (parts + 1) * 16 * 128 * item / 128
        assert min(paths_estimate.estimate(codes, rounding).values()) > 0


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
        "if (!is_sample(trace, pair)) return;\n    Factors::keep",
        "Factors::keep",
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
