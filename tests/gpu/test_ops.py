"""Ops on a CUDA device: the CPU's bits, gradients, streams, graphs, refusals.

Every comparison is with the CPU kernels, which the other tests hold against references. Noise and
single ops are expected to agree bit for bit: both sides run the same source with the same rounding
and sums in the same order. `record_property` puts numbers into the report of
benchmarks/gpu/check.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from helpers import gradients
from op_cases import MAKE
from torch import Tensor

from benchmarks.gpu.ops import CASES, DTYPES, Case, ulps_apart
from diffflow_ext import NoiseKey, functional
from diffflow_ext.cli.doctor import KNOWN_ANSWERS
from diffflow_ext.functional import PURPOSES

pytestmark = pytest.mark.gpu
Record = Callable[[str, object], None]
CUDA = torch.device("cuda", 0)
KEY = NoiseKey(2**63 + 12345, 7)
SHAPES = ((1, 1), (33, 2), (33, 5), (4, 3, 8, 8), (1000, 10), (7, 1024), (3, 4099), (5, 40_000))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


# --- the CPU's bits ------------------------------------------------------------------------------


def test_known_answers() -> None:
    counters, keys, words = (torch.tensor(part) for part in zip(*KNOWN_ANSWERS, strict=True))
    assert torch.equal(functional.philox_words(counters.to(CUDA), keys.to(CUDA)).cpu(), words)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_noise_has_the_bits_of_the_cpu(purpose: str, dtype: torch.dtype) -> None:
    keys = (KEY, NoiseKey(0), NoiseKey(2**64 - 1, 2**32 - 1))
    for shape, key, offset in itertools.product(SHAPES, keys, (0, 2**32 - 1000)):
        options = {"purpose": purpose, "step": 2**24 - 1, "sample_offset": offset, "dtype": dtype}
        expected = functional.normal(shape, key, **options)
        for given in (key, key.to_tensor(CUDA)):
            found = functional.normal(shape, given, device=CUDA, **options)
            assert torch.equal(found.cpu(), expected), (shape, key, offset)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ops_have_the_bits_of_the_cpu(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype], record_property: Record
) -> None:
    worst = 0
    for shape in SHAPES:
        inputs = case.inputs(shape, *dtypes, "cpu", generator())
        found = case.run(on(CUDA, inputs))
        for there, here in zip(found, case.run(inputs), strict=True):
            worst = max(worst, ulps_apart(there, here))
    record_property("ulps", worst)
    assert worst == 0


def test_misaligned_and_strided_inputs() -> None:
    base = torch.randn(4, 9, 35, generator=generator())
    views = (base[0, 1:, 1:], base[1].t(), base[2][:, ::2], base[3][:1].expand(5, 35))
    for x in views:
        x_next, f, s = x + 1, x * 2, x - 3
        there = [t.to(CUDA) for t in (base, x_next, f, s)]
        same_view = there[0].as_strided(x.shape, x.stride(), x.storage_offset())
        expected = functional.residual_cost(x, x_next, f, s, dt=0.1, g_next=0.5)
        found = functional.residual_cost(same_view, *there[1:], dt=0.1, g_next=0.5)
        assert ulps_apart(found, expected) == 0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, device=CUDA)
    out = functional.em_step(x, x, dt=0.1, g=1.0, key=KEY, step=0)
    cost = functional.residual_cost(x, x, x, x, dt=0.1, g_next=1.0)
    assert out.shape == shape
    assert torch.equal(cost, torch.zeros(shape[0], device=CUDA))


def test_more_than_two_to_the_31_elements() -> None:
    rows, width = 2**15 + 1, 2**16
    if torch.cuda.mem_get_info(CUDA)[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free device memory")
    x = functional.normal((rows, width), KEY, device=CUDA)
    last = functional.normal((1, width), KEY, sample_offset=rows - 1)
    assert torch.equal(x[-1:].cpu(), last)
    dot = functional.residual_cost(x, x, x, x, dt=0.1, g_next=0.5)
    alone = functional.residual_cost(last, last, last, last, dt=0.1, g_next=0.5)
    assert ulps_apart(dot[-1:], alone) == 0
    del dot
    moved = functional.affine_step(x, x, c_a=0.5)[-1:].clone()
    assert ulps_apart(moved, functional.affine_step(last, last, c_a=0.5)) == 0


@pytest.mark.parametrize("name", MAKE)
def test_gradients_are_those_of_the_cpu(name: str, record_property: Record) -> None:
    case = MAKE[name]((3, 5), (torch.float64,) * 3, True)
    here = gradients(case.op, case.inputs)
    there = gradients(case.op, case.inputs.mapped(lambda value: value.to(CUDA)))
    error = max(
        float((there[part].cpu() - value).norm() / value.norm().clamp_min(1e-300))
        for part, value in here.items()
    )
    record_property("relative_error", error)
    assert error < 1e-13  # torch's own sums, in float64, run in another order


# --- streams, graphs, synchronisation ------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ops_wait_for_their_stream(case: Case) -> None:
    inputs = case.inputs((257, 33), torch.float32, torch.float32, "cpu", generator())
    expected, there = case.run(inputs), on(CUDA, inputs)
    late = {name: torch.full_like(value, torch.nan) for name, value in there.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # Cycles: tens of milliseconds.
        for name, value in there.items():
            late[name].copy_(value)
        found = case.run(late)
    side.synchronize()
    assert all(ulps_apart(a, b) == 0 for a, b in zip(found, expected, strict=True))


def test_a_captured_graph_draws_fresh_noise() -> None:
    x = torch.randn(257, 33, device=CUDA)
    key = NoiseKey(5, 0).to_tensor(CUDA)

    def step(given: NoiseKey | Tensor) -> tuple[Tensor, Tensor]:
        moved = functional.em_step(x, x, dt=0.1, g=0.5, key=given, step=3)
        return moved, functional.normal((257, 33), given, purpose="reverse", device=CUDA)

    step(key)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(key)
    seen = []
    for stream in (0, 1, 2, 2**32 - 1):
        key.copy_(NoiseKey(5, stream).to_tensor())
        graph.replay()
        expected = step(NoiseKey(5, stream))
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True)), stream
        seen.append(captured[1].clone())
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ops_do_not_wait_for_the_device(case: Case) -> None:
    inputs = case.inputs((33, 5), torch.float32, torch.float32, CUDA, generator())
    case.run(inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_compiled_ops_give_the_same() -> None:
    x = torch.randn(64, 5, device=CUDA, requires_grad=True)
    dt, g = torch.tensor(0.1, device=CUDA), torch.tensor(0.5, device=CUDA)

    def cost(x: Tensor, key: Tensor) -> Tensor:
        x_next = functional.em_step(x, x.sin(), dt=dt, g=g, key=key, step=0)
        return functional.residual_cost(x, x_next, x_next, -x_next, dt=dt, g_next=g).sum()

    key = KEY.to_tensor(CUDA)
    eager, compiled = cost(x, key), torch.compile(cost, fullgraph=True)(x, key)
    torch.testing.assert_close(compiled, eager)
    first, second = (torch.autograd.grad(value, x)[0] for value in (eager, compiled))
    torch.testing.assert_close(second, first)


# --- refusals and devices ------------------------------------------------------------------------


def test_mixed_devices_are_refused() -> None:
    x = torch.zeros(2, 3, device=CUDA)
    with pytest.raises(ValueError, match="expected f on the device of x"):
        functional.em_step(x, x.cpu(), dt=0.1, g=1.0, key=KEY, step=0)
    with pytest.raises(ValueError, match="key tensor"):
        functional.em_step(x, x, dt=0.1, g=1.0, key=KEY.to_tensor(), step=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_tensor_decides_the_device() -> None:
    second = torch.device("cuda", 1)
    found = functional.normal((33, 5), KEY, device=second)
    assert found.device == second
    assert torch.equal(found.cpu(), functional.normal((33, 5), KEY))
    assert torch.cuda.current_device() == 0
