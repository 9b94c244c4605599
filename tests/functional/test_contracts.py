"""What holds for every op: layouts, dtypes, threads, sizes, and derivatives that do not exist."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import gradients, same_bits
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    BF16,
    DT,
    DTYPES,
    F16,
    F64,
    KEY,
    MAKE,
    SHAPES,
    Dtypes,
    G,
    dtype_id,
    residual_rows,
)
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(5000, 3), (2000, 65), (3, 20_000), (2, 4096)], ids=str)
@pytest.mark.parametrize(
    "name", ["residual_cost", "em_step", "backward_residual", "affine_step", "perturb"]
)
def test_results_do_not_depend_on_threads(name: str, shape: tuple[int, int]) -> None:
    case = MAKE[name](shape, DTYPES[0], True)
    torch.set_num_threads(1)
    alone = gradients(case.op, case.inputs)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        for part, value in gradients(case.op, case.inputs).items():
            if part in case.inputs.scalars:
                continue  # torch's own sum over the batch
            assert same_bits(value, alone[part]), part


# --- layouts -------------------------------------------------------------------------------------


def with_offset(x: Tensor, offset: int) -> Tensor:
    """The same values, `offset` elements into a storage: rows no longer suit wide access."""
    out = torch.empty(x.numel() + offset, dtype=x.dtype)[offset:].view(x.shape)
    return out.copy_(x)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=dtype_id)
@pytest.mark.parametrize("name", MAKE)
def test_unaligned_storage_gives_the_same_bits(name: str, dtypes: Dtypes, offset: int) -> None:
    case = MAKE[name]((3, 40), dtypes, True)
    expected = gradients(case.op, case.inputs)
    # One unaligned tensor is enough to change the way all are read.
    for chosen in case.inputs.rows:
        moved = replace(
            case.inputs,
            rows={
                row: with_offset(value, offset) if row == chosen else value
                for row, value in case.inputs.rows.items()
            },
        )
        leaves = moved.mapped(lambda value: value.requires_grad_())
        value = leaves.call(case.op)
        grads = torch.autograd.grad(value.sum(), list(leaves.tensors.values()))
        assert same_bits(value, expected["value"])
        for part, grad in zip(leaves.tensors, grads, strict=True):
            assert same_bits(grad, expected[part]), part


def layouts(x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to hold the values of a tensor that are not plain."""
    ways = {
        "plain": lambda t: t,
        "sliced": lambda t: torch.stack([t, t], dim=-1)[..., 1],
        "offset": lambda t: with_offset(t, 3),
        "reversed": lambda t: (
            t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
        ),
        "expanded": lambda t: t[:1].expand(t.shape) if len(t) else t,
        "overlapping": lambda t: (
            t.flatten()[:1].expand(t.numel()).reshape(-1).as_strided(t.shape, (0,) * t.dim())
            if t.numel()
            else t
        ),
    }
    if x.dim() == 4:
        ways["channels_last"] = lambda t: t.contiguous(memory_format=torch.channels_last)
    return ways


@given(data=st.data())
def test_any_layout_gives_the_bits_of_a_contiguous_copy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4), label="shape"))
    name = data.draw(st.sampled_from(list(MAKE)), label="op")
    dtypes = data.draw(st.sampled_from(DTYPES), label="dtypes")
    case = MAKE[name](shape, dtypes, data.draw(st.booleans(), label="learned"))
    rows = {}
    for row, value in case.inputs.rows.items():
        ways = layouts(value)
        rows[row] = ways[data.draw(st.sampled_from(list(ways)), label=row)](value)
    before = {row: value.clone() for row, value in rows.items()}
    versions = {row: value._version for row, value in rows.items()}
    plain = {
        row: value.clone(memory_format=torch.contiguous_format) for row, value in rows.items()
    }

    def results(values: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {row: value.detach().requires_grad_() for row, value in values.items()}
        scalars = {k: v.detach().clone().requires_grad_() for k, v in case.inputs.scalars.items()}
        value = case.op(**leaves, **scalars, **case.inputs.options)
        inputs = {**leaves, **scalars}
        grads = torch.autograd.grad(value.sum(), list(inputs.values()))
        return {"value": value, **dict(zip(inputs, grads, strict=True))}

    expected, actual = results(plain), results(rows)
    for part, value in expected.items():
        assert same_bits(actual[part], value), part
    for row, value in rows.items():
        assert same_bits(value, before[row]), f"{row} was modified"
        assert value._version == versions[row], f"{row} was written to"


def test_sixteen_bit_conversions_are_torchs(core_probe: ctypes.CDLL) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = [np.empty(2**16, dtype=np.float32) for _ in range(2)]
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (bits, *wide)]
    core_probe.probe_widen(addresses[0], ctypes.c_int64(2**16), *addresses[1:])
    patterns = torch.from_numpy(bits.astype(np.int16))
    for got, dtype in zip(wide, (BF16, F16), strict=True):
        expected = patterns.view(dtype).float()
        # The bits of a NaN are not promised, that it is one is.
        assert torch.equal(torch.from_numpy(got).nan_to_num(7.5), expected.nan_to_num(7.5))
        assert torch.equal(torch.from_numpy(got).signbit(), expected.signbit())


def test_rounding_to_sixteen_bits_is_torchs(core_probe: ctypes.CDLL) -> None:
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2**32, 2**20, dtype=np.uint64).astype(np.uint32)
    # Every 16-bit value, its neighbours and the middles between: all ties.
    corners = (np.arange(2**16, dtype=np.uint64) << 16).astype(np.uint32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = [patterns.view(np.float32)]
    with np.errstate(all="ignore"):
        for base in (corners.view(np.float32), halves):
            middle = (base.view(np.uint32) | 0x8000) if base is not halves else None
            ties = middle.view(np.float32) if middle is not None else base * np.float32(1 + 2**-11)
            values += [base, np.nextafter(base, np.float32(np.inf)), ties]
            values += [np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))]
    floats = np.concatenate(values).astype(np.float32)
    narrow = [np.empty(floats.size, dtype=np.uint16) for _ in range(2)]
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (floats, *narrow)]
    core_probe.probe_narrow(addresses[0], ctypes.c_int64(floats.size), *addresses[1:])
    for got, dtype in zip(narrow, (BF16, F16), strict=True):
        actual = torch.from_numpy(got.astype(np.int16)).view(dtype).float()
        expected = torch.from_numpy(floats).to(dtype).float()
        assert torch.equal(actual.isnan(), expected.isnan())
        known = ~expected.isnan()
        assert same_bits(actual[known], expected[known])


# --- sizes beyond 32 bits ------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 3, 4, 7, 2**31 - 1, 2**31, 2**31 + 17, 2**33 + 5, 2**34])
def test_places_of_huge_tensors(core_probe: ctypes.CDLL, elements: int) -> None:
    out = (ctypes.c_int64 * 4)()
    quads = (elements + 3) // 4
    for samples, aligned in itertools.product((1, 3, 2**20, 2**28), (False, True)):
        samples_seen, quads_seen = (0, samples // 2, samples - 1), (0, quads // 2, quads - 1)
        for sample, quad in itertools.product(samples_seen, quads_seen):
            arguments = (ctypes.c_int64(v) for v in (samples, elements, sample, quad))
            core_probe.probe_place(*arguments, ctypes.c_int(aligned), out)
            count = min(4, elements - 4 * quad)
            wide = int(aligned and count == 4)
            assert list(out) == [sample * elements + 4 * quad, count, wide, samples * quads]


def test_noise_of_huge_samples_does_not_wrap(core_probe: ctypes.CDLL) -> None:
    seen = set()
    for quad in (0, 2**29, 2**31 - 1, 2**31, 2**32 - 1):
        out = (ctypes.c_uint32 * 4)()
        core_probe.probe_noise_words(
            ctypes.c_uint64(1), 0, 0, 0, 0, ctypes.c_int64(0), ctypes.c_int64(quad), out
        )
        counter, key = torch.tensor([quad, 0, 0, 0]), torch.tensor([1, 0])
        assert list(out) == reference.philox_words(counter, key).tolist()
        seen.add(tuple(out))
    assert len(seen) == 5


@pytest.mark.parametrize(
    "quads", [0, 1, 2, 3, 31, 32, 33, 256, 257, 2048, 2049, 5000, 2**31 + 5, 2**32]
)
def test_lanes_and_segments_cover_every_quad_once(core_probe: ctypes.CDLL, quads: int) -> None:
    core_probe.probe_num_segments.restype = ctypes.c_int64
    core_probe.probe_lane_quads.restype = ctypes.c_int64
    segments = core_probe.probe_num_segments(ctypes.c_int64(quads))
    lanes = core_probe.probe_num_lanes(ctypes.c_int64(quads))
    assert lanes in (1, 2, 4, 8, 16, 32, 256)
    out = (ctypes.c_int64 * 4096)()
    chosen = range(segments) if segments < 10 else (0, segments // 2, segments - 2, segments - 1)
    for segment in chosen:
        seen = []
        for lane in range(lanes):
            count = core_probe.probe_lane_quads(
                ctypes.c_int64(segment), lane, lanes, ctypes.c_int64(quads), out
            )
            seen += out[:count]
        end = min(quads, (segment + 1) * 2048)
        assert sorted(seen) == list(range(segment * 2048, end))
    assert segments == max(1, -(-quads // 2048))


# --- derivatives that do not exist ---------------------------------------------------------------


NO_SECOND = r"second derivative|twice"


@pytest.mark.parametrize("nonlinear", [False, True], ids=["sum", "squares"])
@pytest.mark.parametrize("name", MAKE)
def test_second_derivatives_raise(name: str, nonlinear: bool) -> None:
    case = MAKE[name]((2, 3), DTYPES[1], True)
    leaves = case.inputs.mapped(lambda value: value.requires_grad_())

    def twice() -> None:
        value = leaves.call(case.op)
        total = value.square().sum() if nonlinear else value.sum()
        grads = torch.autograd.grad(total, list(leaves.tensors.values()), create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()

    with pytest.raises(RuntimeError, match=NO_SECOND):
        twice()


def test_a_hessian_raises() -> None:
    """It asks for gradients by name and takes those that it does not get for zeros."""
    _, x_next, f, s = residual_rows((2, 3), DTYPES[1]).values()

    def total(x: Tensor) -> Tensor:
        return functional.residual_cost(x, x_next, f, s, dt=DT, g_next=G).sum()

    with pytest.raises(RuntimeError, match=NO_SECOND):
        torch.autograd.functional.hessian(total, torch.randn(2, 3, dtype=F64))


def test_a_gradient_penalty_raises() -> None:
    x, rows = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    net = torch.nn.Linear(3, 3)

    def penalty() -> None:
        value = functional.residual_cost(x, rows, net(x), rows, dt=DT, g_next=G)
        (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        grad.square().sum().backward()

    with pytest.raises(RuntimeError, match=NO_SECOND):
        penalty()


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("name", MAKE)
def test_function_transforms_raise(name: str, transform: str) -> None:
    case = MAKE[name]((2, 3), DTYPES[0], False)
    row, value = next(iter(case.inputs.rows.items()))

    def op(x: Tensor) -> Tensor:
        return case.op(**{**case.inputs.rows, row: x}, **case.inputs.options).sum()

    calls = {
        "vmap": lambda: torch.vmap(op)(torch.stack([value, value])),
        "grad": lambda: torch.func.grad(op)(value),
        "jvp": lambda: torch.func.jvp(op, (value,), (value,)),
    }
    with pytest.raises(
        RuntimeError, match=r"torch\.func transforms .* are not supported, because"
    ):
        calls[transform]()


def test_vmap_over_keys_raises() -> None:
    keys = torch.stack([KEY.to_tensor(), KEY.at(1).to_tensor()])
    with pytest.raises(RuntimeError, match=r"normal: torch\.func transforms"):
        torch.vmap(lambda key: functional.normal((2, 3), key))(keys)


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", DTYPES[:4], ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_cuda_equals_cpu_bit_for_bit(name: str, shape: tuple[int, ...], dtypes: Dtypes) -> None:
    """On a stream of its own; gradients of scalars are summed by torch and may differ."""
    case = MAKE[name](shape, dtypes, True)
    expected = gradients(case.op, case.inputs)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        actual = gradients(case.op, case.inputs.mapped(Tensor.cuda))
        actual = {part: value.cpu() for part, value in actual.items()}
    for part, value in expected.items():
        if part in case.inputs.scalars:
            torch.testing.assert_close(actual[part], value, rtol=1e-4, atol=1e-4)
        elif part in ("alpha_t", "sigma_t"):
            torch.testing.assert_close(actual[part], value, rtol=1e-4, atol=1e-3)
        else:
            assert same_bits(actual[part], value), part


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda_noise_is_the_cpus(shape: tuple[int, ...]) -> None:
    for key in (KEY, NoiseKey(-1, 2**32 - 1)):
        here = functional.normal(shape, key, sample_offset=2**32 - 64)
        there = functional.normal(shape, key, sample_offset=2**32 - 64, device="cuda")
        assert same_bits(there.cpu(), here)


@pytest.mark.gpu
def test_a_captured_graph_draws_fresh_noise() -> None:
    key = KEY.to_tensor("cuda")
    graph = torch.cuda.CUDAGraph()
    functional.normal((4, 5), key, device="cuda")
    with torch.cuda.graph(graph):
        out = functional.normal((4, 5), key, device="cuda")
    for stream in (1, 2, 3):
        key[1] = stream
        graph.replay()
        assert same_bits(out.cpu(), functional.normal((4, 5), KEY.at(stream)))
