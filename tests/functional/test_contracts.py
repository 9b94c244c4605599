"""What holds for every op: its values, whatever the layout, and derivatives that do not exist."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Inputs, Op, assert_close, check_op, gradients, same_bits
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    BF16,
    DT,
    DTYPES,
    F16,
    F32,
    F64,
    KEY,
    MAKE,
    Dtypes,
    G,
    dtype_id,
    em_step_case,
    first,
    parameters,
    residual_rows,
)
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import reference

pytestmark = pytest.mark.usefixtures("one_thread")
#: Ops that take a step of length dt with a coefficient g.
STEPS = [name for name in MAKE if not name.startswith(("perturb", "affine_step"))]


@pytest.mark.parametrize(("name", "shape", "dtypes", "learned"), parameters())
def test_op_equals_its_reference(
    name: str, shape: tuple[int, ...], dtypes: Dtypes, learned: bool
) -> None:
    """Value and gradients."""
    case = MAKE[name](shape, dtypes, learned)
    check_op(case.op, case.reference, case.inputs)


WRONG: dict[str, Op] = {
    "sign": lambda x, f, **k: functional.em_step(x, -f, **k),
    "gradient": lambda x, f, **k: functional.em_step(x, f.detach(), **k) + 0 * f,
    "scale gradient": lambda x, g, **k: functional.em_step(x, g=g.detach(), **k) + 0 * g,
    "step": lambda step, **k: functional.em_step(step=step + 1, **k),
    "small error": lambda x, **k: functional.em_step(x * (1 + 2e-5), **k),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_op_is_caught(name: str) -> None:
    """check_op itself."""
    case = em_step_case((33, 5), DTYPES[0], True)
    with pytest.raises(AssertionError):
        check_op(WRONG[name], case.reference, case.inputs)


@pytest.mark.parametrize("name", ["em_step", "reverse_step", "affine_step", "perturb"])
def test_op_equals_its_reference_with_noise_of_its_own(name: str) -> None:
    case = MAKE[name]((33, 5), DTYPES[0], False)
    plain = first(reference.perturb) if name == "perturb" else getattr(reference, name)
    value, expected = case.inputs.call(case.op), case.inputs.mapped(Tensor.double).call(plain)
    assert_close(value, expected, "noise_float32")


@pytest.mark.parametrize("g_shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("g_dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_a_tensor_g_keeps_its_shape_and_dtype(
    name: str, g_shape: tuple[int, ...], g_dtype: torch.dtype
) -> None:
    case = MAKE[name]((5, 3), DTYPES[0], True)
    (g_name,) = case.inputs.scalars
    g = torch.full(g_shape, np.float32(G).item(), dtype=g_dtype)
    expected = gradients(case.op, case.inputs)
    actual = gradients(case.op, replace(case.inputs, scalars={g_name: g}))
    assert (actual[g_name].shape, actual[g_name].dtype) == (g_shape, g_dtype)
    assert same_bits(actual["value"], expected["value"])
    assert actual[g_name].item() == pytest.approx(expected[g_name].item(), rel=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_a_tensor_dt_is_the_number(name: str) -> None:
    case = MAKE[name]((5, 3), DTYPES[0], True)
    as_tensor = replace(case.inputs, options={**case.inputs.options, "dt": torch.tensor([DT])})
    expected = gradients(case.op, case.inputs)
    assert same_bits(as_tensor.call(case.op), expected["value"])
    for part, value in gradients(case.op, as_tensor).items():
        torch.testing.assert_close(value, expected[part])


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


def gradients_in_place(op: Op, inputs: Inputs) -> dict[str, Tensor]:
    """As `gradients`, of the very tensors: copies would be contiguous and aligned."""
    leaves = inputs.mapped(lambda value: value.detach().requires_grad_())
    value = leaves.call(op)
    grads = torch.autograd.grad(value.sum(), list(leaves.tensors.values()))
    return {"value": value.detach(), **dict(zip(leaves.tensors, grads, strict=True))}


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
        for part, value in gradients_in_place(case.op, moved).items():
            assert same_bits(value, expected[part]), part


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
    inputs, plain = (
        replace(case.inputs, rows=rows),
        partial(torch.clone, memory_format=torch.contiguous_format),
    )
    expected = gradients_in_place(case.op, inputs.rows_mapped(plain))
    for part, value in gradients_in_place(case.op, inputs).items():
        assert same_bits(value, expected[part]), part
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


@pytest.mark.parametrize("name", ["em_step", "reverse_step", "backward_residual"])
def test_coefficients_of_16_bits_scale_gradients_in_full_precision(name: str) -> None:
    """The square of such a coefficient is below the numbers of 16 bits, or above them."""
    numbers = {"dt": 1e-2, "g": 1e-3}
    if name != "em_step":
        numbers["g_next"] = numbers.pop("g")
    noise = {} if name == "backward_residual" else {"key": NoiseKey(1), "step": 0}
    tensors = [torch.randn(4, 3, requires_grad=True) for _ in range(4)]
    tensors = tensors[: {"em_step": 2, "reverse_step": 3}.get(name, 4)]
    grads = []
    for half in (True, False):
        given = {n: torch.tensor(v).half() for n, v in numbers.items()}
        given = given if half else {n: float(v) for n, v in given.items()}
        value = getattr(functional, name)(*tensors, **given, **noise)
        grads.append(torch.autograd.grad(value.square().sum(), tensors))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


def test_an_incoming_gradient_may_have_a_lazy_minus_sign() -> None:
    x = torch.randn(1, 3, requires_grad=True)
    others = [torch.randn(1, 3) for _ in range(3)]
    negative = torch.tensor([2 + 3j]).conj().imag
    assert negative.is_neg()
    cost = functional.residual_cost(x, *others, dt=0.1, g_next=0.5)
    (found,) = torch.autograd.grad(cost, x, negative, retain_graph=True)
    (expected,) = torch.autograd.grad(cost, x, negative.clone().resolve_neg())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("nonlinear", [False, True], ids=["sum", "squares"])
@pytest.mark.parametrize("name", [name for name in MAKE if not name.startswith("perturb")])
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


@pytest.mark.parametrize("name", [name for name in MAKE if name.startswith("perturb")])
def test_perturb_is_the_same_with_a_graph(name: str) -> None:
    case = MAKE[name]((5, 3), DTYPES[0], True)
    leaves = case.inputs.mapped(lambda value: value.clone().requires_grad_())
    value = leaves.call(case.op)
    assert value.requires_grad
    assert same_bits(value.detach(), case.inputs.call(case.op))


@pytest.mark.parametrize("name", [name for name in MAKE if name.startswith("perturb")])
def test_perturb_has_second_derivatives(name: str) -> None:
    inputs = MAKE[name]((4, 3), DTYPES[1], True).inputs
    tensors = {**inputs.tensors, **inputs.scalars}
    leaves = [value.double().requires_grad_() for value in tensors.values()]

    def x_t(*values: Tensor) -> Tensor:
        given = {"alpha_t": 1.0, **dict(zip(tensors, values, strict=True))}
        return functional.perturb(**given, key=NoiseKey(1))[0]  # pyright: ignore

    assert torch.autograd.gradgradcheck(x_t, leaves)
