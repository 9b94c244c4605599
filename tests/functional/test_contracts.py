"""The fused operations: values, gradients, layouts, compilation and error texts."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    Inputs,
    Op,
    assert_close,
    check_op,
    gradients,
    replace_everywhere,
    same_bits,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import PURPOSES, reference
from diffflow_ext.functional.checks import check_device
from diffflow_ext.functional.core import build_info, core
from diffflow_ext.functional.noise import noise_dot, noise_energy
from diffflow_ext.functional.operator import operators
from diffflow_ext.functional.residual import AdjointState, adjoint_step

KEY = NoiseKey(seed=2026, stream=3)
DT, G = 0.05, 0.7
STEP, OFFSET = 11, 5
SHAPES = [(0, 2), (1, 1), (33, 5), (4, 3, 8, 8), (3, 2), (7,), (2, 4096), (2, 20_000)]
#: dtypes of the state, of the drift's output and of the score's.
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [
    (F32, F32, F32),
    (F64, F64, F64),
    (F32, BF16, BF16),
    (F32, F16, F16),
    (F32, BF16, F32),
    (F32, F16, BF16),
    (F32, F64, F64),
    (F64, F32, F16),
]

pytestmark = pytest.mark.usefixtures("one_thread")


# --- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An op as a function of its tensors, its reference, and arguments."""

    op: Op
    reference: Op
    inputs: Inputs


def first(op: Callable[..., tuple[Tensor, ...]]) -> Op:
    """The op's first result alone."""
    return lambda **arguments: op(**arguments)[0]


def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def noisy(shape: tuple[int, ...], purpose: str) -> tuple[dict[str, Any], Tensor]:
    """Options of an op that draws, and what it draws."""
    eps = functional.normal(
        shape, KEY, purpose=purpose, step=STEP, sample_offset=OFFSET, dtype=F64
    )
    return {"key": KEY, "step": STEP, "sample_offset": OFFSET}, eps


def with_eps(op: Op, eps: Tensor) -> Op:
    """A reference that is given its noise; fewer samples take the first rows."""
    return lambda **arguments: op(**arguments, eps=eps)


Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]


def em_step_case(shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    options, eps = noisy(shape, "forward")
    return Case(
        functional.em_step,
        with_eps(reference.em_step, eps),
        Inputs(
            {"x": tensor(shape, dtypes[0]), "f": tensor(shape, dtypes[1])},
            *coefficient("g", learned, dtypes[0], {"dt": DT, **options}),
        ),
    )


def coefficient(
    name: str, learned: bool, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The diffusion coefficient as a tensor with a gradient, or as a number."""
    if learned:
        return {name: torch.tensor(G, dtype=dtype)}, options
    return {}, {name: G, **options}


def residual_rows(shape: tuple[int, ...], dtypes: Dtypes) -> dict[str, Tensor]:
    x = tensor(shape, dtypes[0])
    return {
        "x": x,
        "x_next": x + 0.3 * torch.randn(shape).to(dtypes[0]),
        "f_next": tensor(shape, dtypes[1]),
        "s_next": tensor(shape, dtypes[2]),
    }


def residual_case(name: str, shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    rows = residual_rows(shape, dtypes)
    inputs = Inputs(rows, *coefficient("g_next", learned, dtypes[0], {"dt": DT}))
    return Case(getattr(functional, name), getattr(reference, name), inputs)


def reverse_step_case(
    strength: float, shape: tuple[int, ...], dtypes: Dtypes, learned: bool
) -> Case:
    options, eps = noisy(shape, "reverse")
    rows = residual_rows(shape, dtypes)
    del rows["x"]
    options = {"dt": DT, "stochasticity": strength, **options}
    return Case(
        functional.reverse_step,
        with_eps(reference.reverse_step, eps),
        Inputs(rows, *coefficient("g_next", learned, dtypes[0], options)),
    )


def perturb_case(each: bool, shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    options, eps = noisy(shape, "dsm")
    scalars, rows = {}, {"x0": tensor(shape, dtypes[0])}
    # One scalar a sample; or one for all, as a tensor or a number.
    if each:
        rows["alpha_t"] = torch.rand(shape[0]).to(dtypes[0])
        rows["sigma_t"] = torch.rand(shape[0]).to(dtypes[0])
    elif learned:
        scalars = {
            "alpha_t": torch.tensor(0.8, dtype=dtypes[0]),
            "sigma_t": torch.tensor([0.6], dtype=dtypes[0]),
        }
    else:
        options.update(alpha_t=0.8, sigma_t=0.6)
    op = with_eps(reference.perturb, eps)
    return Case(first(functional.perturb), first(op), Inputs(rows, scalars, options))


#: Factors of an affine step; that of its noise is a standard deviation.
FACTORS = {"c_x": 0.9, "c_a": -0.4, "c_b": 0.3, "noise_scale": 0.6}


def affine_step_case(full: bool, shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    """With a second network and noise, or with neither."""
    options, eps = noisy(shape, "langevin")
    rows = {name: tensor(shape, dtype) for name, dtype in zip("xab", dtypes, strict=True)}
    factors, options = dict(FACTORS), {"purpose": "langevin", **options}
    if not full:
        del rows["b"], factors["c_b"], factors["noise_scale"]
        options = {}
    scalars = {name: torch.tensor(c, dtype=dtypes[0]) for name, c in factors.items()}
    return Case(
        functional.affine_step,
        with_eps(reference.affine_step, eps),
        Inputs(rows, scalars, options) if learned else Inputs(rows, {}, {**factors, **options}),
    )


MAKE: dict[str, Callable[[tuple[int, ...], Dtypes, bool], Case]] = {
    "em_step": em_step_case,
    "backward_residual": partial(residual_case, "backward_residual"),
    "residual_cost": partial(residual_case, "residual_cost"),
    "reverse_step": partial(reverse_step_case, 1.0),
    "reverse_step_half": partial(reverse_step_case, 0.5),
    "reverse_step_ode": partial(reverse_step_case, 0.0),
    "affine_step": partial(affine_step_case, True),
    "affine_step_mean": partial(affine_step_case, False),
    "perturb": partial(perturb_case, False),
    "perturb_each": partial(perturb_case, True),
}


def dtype_id(dtypes: Dtypes) -> str:
    return "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


# --- values and gradients ------------------------------------------------------------------------


#: How many of DTYPES a shape is tried with, where not all.
FEWER = {(2, 4096): 4, (2, 20_000): 2}


def combinations() -> Iterator[tuple[str, tuple[int, ...], Dtypes, bool]]:
    """Ops, shapes and dtypes; numbers in place of tensor scalars on one shape."""
    for name, shape in itertools.product(MAKE, SHAPES):
        count = 2 if name.startswith("perturb") else FEWER.get(shape)
        for dtypes in DTYPES[:count]:
            yield name, shape, dtypes, True
            if shape == (3, 2):
                yield name, shape, dtypes, False


@pytest.mark.parametrize(
    ("name", "shape", "dtypes", "learned"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1]}-{dtype_id(case[2])}-{case[3]}")
        for case in combinations()
    ],
)
def test_op_equals_its_reference(
    name: str, shape: tuple[int, ...], dtypes: Dtypes, learned: bool
) -> None:
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
    plain = {"perturb": first(reference.perturb)}.get(name) or getattr(reference, name)
    value, expected = case.inputs.call(case.op), case.inputs.mapped(Tensor.double).call(plain)
    assert_close(value, expected, "noise_float32")


def test_the_noise_of_an_op_is_that_of_normal() -> None:
    zeros, options = torch.zeros(33, 5), {"key": KEY, "step": STEP, "sample_offset": OFFSET}

    def draws(purpose: str) -> Tensor:
        return functional.normal((33, 5), KEY, purpose=purpose, step=STEP, sample_offset=OFFSET)

    forward = functional.em_step(zeros, zeros, dt=1.0, g=1.0, **options)
    assert torch.equal(forward, draws("forward"))
    backward = functional.reverse_step(zeros, zeros, zeros, dt=1.0, g_next=1.0, **options)
    assert torch.equal(backward, draws("reverse"))
    x_t, eps = functional.perturb(zeros, alpha_t=1.0, sigma_t=1.0, **options)
    assert torch.equal(x_t, draws("dsm"))
    assert same_bits(eps, draws("dsm"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_of_noise_sums_equal_the_reference(shape: tuple[int, ...]) -> None:
    v = torch.randn(shape, dtype=F64)
    eps = functional.normal(shape, KEY, step=STEP, sample_offset=OFFSET, dtype=F64)
    rows = tuple(range(1, v.dim()))
    dot = noise_dot(v, KEY, PURPOSES["forward"], STEP, OFFSET)
    energy = noise_energy(v, KEY, STEP, OFFSET)
    expected = (v * eps, eps.square() / 2)
    if rows:
        expected = tuple(value.sum(rows) for value in expected)
    assert_close(dot, expected[0], "float64", scale=v.numel() ** 0.5)
    assert_close(energy, expected[1], "float64")
    again = noise_energy(v, KEY, STEP, OFFSET, previous=energy)
    assert same_bits(again, energy + energy)


def test_gradients_of_the_noise_scale_make_the_noise_again() -> None:
    """Of a tensor g alone: nothing else asks for a gradient."""
    x = torch.randn(9, 6, dtype=F64)
    g = torch.tensor(G, dtype=F64, requires_grad=True)
    options = {"key": KEY, "step": STEP}
    value = functional.em_step(x, x, dt=DT, g=g, **options)
    (grad,) = torch.autograd.grad(value.sum(), g)
    expected = DT**0.5 * functional.normal((9, 6), KEY, step=STEP, dtype=F64).sum()
    assert_close(grad, expected, "float64", scale=10.0)


@pytest.mark.parametrize("g_shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("g_dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", ["em_step", "backward_residual", "residual_cost", "reverse_step"])
def test_a_tensor_g_keeps_its_shape_and_dtype(
    name: str, g_shape: tuple[int, ...], g_dtype: torch.dtype
) -> None:
    case = MAKE[name]((5, 3), DTYPES[0], True)
    (g_name,) = case.inputs.scalars
    inputs = replace(
        case.inputs, scalars={g_name: torch.full(g_shape, np.float32(G).item(), dtype=g_dtype)}
    )
    numbers, expected = gradients(case.op, inputs), gradients(case.op, case.inputs)
    assert (numbers[g_name].shape, numbers[g_name].dtype) == (g_shape, g_dtype)
    assert same_bits(numbers["value"], expected["value"])
    assert numbers[g_name].item() == pytest.approx(expected[g_name].item(), rel=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in MAKE if not name.startswith(("perturb", "affine_step"))]
)
def test_a_tensor_dt_is_the_number(name: str) -> None:
    case = MAKE[name]((5, 3), DTYPES[0], True)
    as_tensor = replace(case.inputs, options={**case.inputs.options, "dt": torch.tensor([DT])})
    expected = gradients(case.op, case.inputs)
    for part, value in gradients(case.op, as_tensor).items():
        if part == "value":
            assert same_bits(value, expected[part])
        torch.testing.assert_close(value, expected[part])


def test_perturb_takes_scalars_of_both_kinds() -> None:
    x0, sigma = torch.randn(6, 4), torch.rand(6)
    mixed, eps = functional.perturb(x0, alpha_t=0.5, sigma_t=sigma, key=KEY)
    assert_close(mixed, 0.5 * x0.double() + sigma[:, None].double() * eps, "float32")
    mixed, eps = functional.perturb(x0, alpha_t=sigma, sigma_t=torch.tensor([0.5]), key=KEY)
    assert_close(mixed, sigma[:, None].double() * x0 + 0.5 * eps.double(), "float32")
    assert not eps.requires_grad


def test_residual_cost_is_half_the_squared_residual() -> None:
    for shape in SHAPES:
        rows = residual_rows(shape, DTYPES[1])
        residual = functional.backward_residual(**rows, dt=DT, g_next=G)
        cost = functional.residual_cost(**rows, dt=DT, g_next=G)
        squares = residual.square() / 2
        expected = squares.sum(tuple(range(1, squares.dim()))) if squares.dim() > 1 else squares
        assert_close(cost, expected, "float64")


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


def test_a_residual_inverts_a_reverse_step() -> None:
    """The noise that the reverse SDE needs is the noise it was given."""
    x_next, f, s = (torch.randn(8, 6, dtype=F64) for _ in range(3))
    x = functional.reverse_step(x_next, f, s, dt=DT, g_next=G, key=KEY, step=2)
    residual = functional.backward_residual(x, x_next, f, s, dt=DT, g_next=G)
    eps = functional.normal((8, 6), KEY, purpose="reverse", step=2, dtype=F64)
    assert_close(residual, eps, "float64")


# --- adjoint step --------------------------------------------------------------------------------


def optional(present: bool, shape: tuple[int, ...]) -> Tensor | None:
    return torch.randn(shape, dtype=F64) if present else None


@pytest.mark.parametrize("each", [False, True], ids=["weight", "weights"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed_g", "learned_g"])
@pytest.mark.parametrize("parts", ["", "f", "s", "q", "fs", "fsq"])
@pytest.mark.parametrize("place", ["first", "inner", "last"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 9000)], ids=str)
def test_adjoint_step_equals_autograd(
    shape: tuple[int, int], place: str, parts: str, learned: bool, each: bool
) -> None:
    x, f = torch.randn(shape, dtype=F64), torch.randn(shape, dtype=F64)
    x_prev, s = (optional(place != "first", shape) for _ in range(2))
    after = None
    if place != "last":
        after = AdjointState(
            torch.randn(shape, dtype=F64), *(optional(part in parts, shape) for part in "fsq")
        )
    options = {
        "weight": torch.rand(shape[0], dtype=F64) if each else 0.4,
        **{"dt": DT, "dt_next": 0.07, "g": G, "key": KEY, "step": STEP, "sample_offset": OFFSET},
        "want_grad_g": learned,
    }
    actual = adjoint_step(x_prev, x, f, s, after, **options)
    eps = functional.normal(shape, KEY, step=STEP, sample_offset=OFFSET, dtype=F64)
    expected = reference.adjoint_step(x_prev, x, f, s, after, **options, eps=eps)
    for name, value, truth in zip(actual._fields, actual, expected, strict=True):
        assert (value is None) == (truth is None), name
        if value is not None:
            assert_close(value, truth, "float64", scale=shape[1] ** 0.5)


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
            ctypes.c_uint64(1), 0, 0, 0, ctypes.c_int64(0), ctypes.c_int64(quad), out
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


# --- operators and torch.compile -----------------------------------------------------------------


def operator_arguments() -> dict[str, tuple]:
    """Arguments for every operator that _operators.py registers."""
    rows = tuple(residual_rows((3, 5), DTYPES[0]).values())
    half = tuple(residual_rows((3, 5), DTYPES[2]).values())
    dt, g, key = torch.tensor(DT), torch.tensor(G), KEY.to_tensor()
    each = torch.rand(3)
    return {
        "normal": ([3, 5], key, 0, STEP, OFFSET, F32, torch.device("cpu")),
        "em_step": (rows[0], rows[2], dt, g, key, STEP, OFFSET),
        "backward_residual": (*rows, dt, g),
        "backward_residual_vjp": (rows[0], dt, g),
        "residual_cost": (*half, dt, g),
        "residual_cost_vjp": (each, *half, dt, g),
        "reverse_step": (rows[1], rows[2], rows[3], dt, g, key, STEP, 0.5, OFFSET),
        "affine_step": (rows[0], rows[2], rows[3], dt, g, dt, g, key, 1, STEP, OFFSET),
        "perturb": (rows[0], each, each, key, STEP, OFFSET),
        "noise_dot": (rows[0], key, 0, STEP, OFFSET),
    }


def registered() -> set[str]:
    names = [schema.name for schema in torch._C._jit_get_all_schemas()]
    return {name.split("::")[1] for name in names if name.startswith("diffflow_ext::")}


@pytest.mark.parametrize("name", sorted(registered()))
def test_operator_passes_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(operators, name).default, operator_arguments()[name])


@pytest.mark.parametrize("name", ["em_step", "residual_cost_vjp", "affine_step", "perturb"])
def test_operator_passes_opcheck_on_strided_and_empty_input(name: str) -> None:
    for change in (lambda t: t[:0], lambda t: torch.stack([t, t], -1)[..., 0]):
        arguments = tuple(
            change(a) if isinstance(a, Tensor) and a.dim() and a.dtype != torch.int64 else a
            for a in operator_arguments()[name]
        )
        torch.library.opcheck(getattr(operators, name).default, arguments)


@pytest.fixture
def compiled() -> Iterator[Callable[[Op], tuple[Op, Any]]]:
    """Compiles a function without graph breaks; also returns the counter of its compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()

    def build(op: Op) -> tuple[Op, Any]:
        counter = CompileCounterWithBackend("aot_eager")
        return torch.compile(op, fullgraph=True, backend=counter), counter

    yield build
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MAKE)
def test_compiled_op_equals_eager(compiled: Callable[[Op], tuple[Op, Any]], name: str) -> None:
    case = MAKE[name]((5, 3), DTYPES[4], True)
    op, counter = compiled(case.op)
    expected = gradients(case.op, case.inputs)
    for part, value in gradients(op, case.inputs).items():
        if part in case.inputs.scalars:  # summed over the batch by another kernel of torch
            torch.testing.assert_close(value, expected[part])
        else:
            assert same_bits(value, expected[part]), part
    assert counter.frame_count == 1


def test_compiled_normal_equals_eager(compiled: Callable[[Op], tuple[Op, Any]]) -> None:
    op, _ = compiled(lambda key: functional.normal((5, 3), key, step=STEP))
    assert same_bits(op(KEY), functional.normal((5, 3), KEY, step=STEP))
    assert same_bits(op(KEY.to_tensor()), functional.normal((5, 3), KEY, step=STEP))


def test_new_tensor_keys_and_coefficients_do_not_compile_again(
    compiled: Callable[[Op], tuple[Op, Any]],
) -> None:
    def both(x: Tensor, f: Tensor, s: Tensor, dt: Tensor, g: Tensor, key: Tensor) -> Tensor:
        x_next = functional.em_step(x, f, dt=dt, g=g, key=key, step=STEP)
        cost = functional.residual_cost(x, x_next, f, s, dt=dt, g_next=g)
        back = functional.reverse_step(x_next, f, s, dt=dt, g_next=g, key=key, step=STEP)
        return cost + back.sum(1)

    op, counter = compiled(both)
    for stream in range(4):
        x, f, s = torch.randn(3, 5, 2).requires_grad_().unbind()
        dt, g = torch.rand(()) + 0.1, (torch.rand(()) + 0.1).requires_grad_()
        arguments = (x, f, s, dt, g, KEY.at(stream).to_tensor())
        value, expected = op(*arguments), both(*arguments)
        torch.testing.assert_close(value, expected)
        grads = torch.autograd.grad(value.sum(), (x, f, s, g))
        torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), (x, f, s, g)))
    assert counter.frame_count == 1


def test_steps_and_batch_sizes_compile_at_most_twice(
    compiled: Callable[[Op], tuple[Op, Any]],
) -> None:
    """The second value makes an integer symbolic; later ones are free."""
    key, dt = KEY.to_tensor(), torch.tensor(DT)
    op, counter = compiled(
        lambda x, step: functional.em_step(x, x, dt=dt, g=dt, key=key, step=step)
    )
    for step, batch in ((2, 3), (3, 4), (7, 9), (8, 12)):
        x = torch.randn(batch, 2)
        eager = functional.em_step(x, x, dt=dt, g=dt, key=key, step=step)
        assert same_bits(op(x, step), eager)
    assert counter.frame_count <= 2


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


# --- errors --------------------------------------------------------------------------------------

X = torch.zeros(2, 3)
NOISE = {"key": KEY, "step": 0}


def em(**changes: Any) -> Tensor:
    return functional.em_step(**{"x": X, "f": X, "dt": DT, "g": G, **NOISE, **changes})


def residual(**changes: Any) -> Tensor:
    rows = {"x": X, "x_next": X, "f_next": X, "s_next": X, "dt": DT, "g_next": G}
    return functional.backward_residual(**{**rows, **changes})


def cost(**changes: Any) -> Tensor:
    rows = {"x": X, "x_next": X, "f_next": X, "s_next": X, "dt": DT, "g_next": G}
    return functional.residual_cost(**{**rows, **changes})


def reverse(**changes: Any) -> Tensor:
    rows = {"x_next": X, "f_next": X, "s_next": X, "dt": DT, "g_next": G, **NOISE}
    return functional.reverse_step(**{**rows, **changes})


def noised(**changes: Any) -> tuple[Tensor, Tensor]:
    return functional.perturb(**{"x0": X, "alpha_t": 0.8, "sigma_t": 0.6, "key": KEY, **changes})


def normal(**changes: Any) -> Tensor:
    return functional.normal(**{"shape": (2, 3), "key": KEY, **changes})


def philox(**changes: Any) -> Tensor:
    zeros = torch.zeros(3, 4, dtype=torch.int64)
    return functional.philox_words(**{"counter": zeros, "key": zeros[0, :2], **changes})


META = torch.zeros(2, 3, device="meta")
NAN, INF = float("nan"), float("inf")

Refused = list[tuple[Callable[..., Any], dict[str, Any], str]]

#: What comes after "op: expected".
VALUE_ERRORS: Refused = [
    # shapes
    (em, {"f": X[:1]}, "f to have the shape of x, got (1, 3) and (2, 3)"),
    (em, {"f": X.T}, "f to have the shape of x, got (3, 2) and (2, 3)"),
    (em, {"x": torch.tensor(1.0)}, "x of shape (B, *event), got shape ()"),
    (em, {"g": torch.ones(2)}, "g to be a number or a tensor of one element, got shape (2,)"),
    (em, {"dt": torch.ones(0)}, "dt to be a number or a tensor of one element, got shape (0,)"),
    (residual, {"s_next": X[:, :2]}, "s_next to have the shape of x, got (2, 2) and (2, 3)"),
    (residual, {"x_next": X[None]}, "x_next to have the shape of x, got (1, 2, 3)"),
    (cost, {"f_next": X[0]}, "f_next to have the shape of x, got (3,)"),
    (reverse, {"f_next": X[:1]}, "f_next to have the shape of x_next, got (1, 3)"),
    (noised, {"alpha_t": torch.ones(3)}, "alpha_t of shape () or (2,), got (3,)"),
    (noised, {"sigma_t": torch.ones(2, 3)}, "sigma_t of shape () or (2,), got (2, 3)"),
    (normal, {"shape": (2, -1)}, "0 <= shape[1]"),
    (normal, {"shape": (1, 2**34 + 1)}, "at most 2^34 elements a sample"),
    (
        em,
        {"x": X[:1, :1].expand(2, 2**34 + 4)},
        "at most 2^34 elements a sample, got x of shape (2, 17179869188)",
    ),
    (philox, {"counter": torch.zeros(3, dtype=torch.int64)}, "counter of shape (*, 4), got (3,)"),
    (
        philox,
        {"key": torch.zeros(2, 2, dtype=torch.int64)},
        "key of shape (2,) or (3, 2), got (2, 2)",
    ),
    # dtypes
    (em, {"g": torch.tensor(1)}, "a tensor g to be floating and on cpu, got int64 on cpu"),
    (
        noised,
        {"alpha_t": torch.tensor(1)},
        "alpha_t to be floating and on cpu, got torch.int64 on cpu",
    ),
    # devices
    (em, {"x": META, "f": META}, "x on the CPU or a CUDA device, got meta; move it there first"),
    (em, {"f": META}, "f on the device of x (cpu), got meta"),
    (residual, {"x_next": META}, "x_next on the device of x (cpu), got meta"),
    (
        em,
        {"g": torch.ones((), device="meta")},
        "a tensor g to be floating and on cpu, got float32 on meta",
    ),
    (
        em,
        {"key": KEY.to_tensor("meta")},
        "a key tensor of shape (2,), int64, on cpu, got (2,), int64, on meta",
    ),
    (noised, {"sigma_t": torch.ones(2, device="meta")}, "sigma_t to be floating and on cpu"),
    (normal, {"device": "meta"}, "device on the CPU or a CUDA device, got meta"),
    (
        philox,
        {"counter": torch.zeros(3, 4, dtype=torch.int64, device="meta")},
        "counter on the CPU or a CUDA device, got meta",
    ),
    # values
    (em, {"dt": 0.0}, "dt > 0, got dt=0.0"),
    (em, {"dt": -DT}, "dt > 0, got dt=-0.05"),
    (em, {"dt": NAN}, "dt to be finite, got dt=nan"),
    (em, {"g": INF}, "g to be finite, got g=inf"),
    (em, {"g": 0}, "g > 0, got g=0"),
    (em, {"g": 1e-50}, "g between 1.18e-38 and 3.4e+38, the range of float32, got g=1e-50"),
    (em, {"dt": 1e39}, "dt between 1.18e-38 and 3.4e+38"),
    (residual, {"g_next": -1.0}, "g_next > 0, got g_next=-1.0"),
    (cost, {"g_next": NAN}, "g_next to be finite, got g_next=nan"),
    (reverse, {"stochasticity": -0.5}, "stochasticity >= 0, got -0.5"),
    (reverse, {"stochasticity": NAN}, "stochasticity to be finite"),
    (noised, {"sigma_t": -0.1}, "sigma_t >= 0, got -0.1"),
    (noised, {"alpha_t": INF}, "alpha_t to be finite, got alpha_t=inf"),
    (philox, {"counter": torch.full((3, 4), 2**32)}, "counter in [0, 2^32)"),
    (philox, {"key": torch.tensor([-1, 0])}, "key in [0, 2^32)"),
    # keys, steps and samples
    (
        em,
        {"key": torch.zeros(3, dtype=torch.int64)},
        "a key tensor of shape (2,), int64, on cpu, got (3,), int64, on cpu",
    ),
    (
        em,
        {"key": torch.zeros(2)},
        "a key tensor of shape (2,), int64, on cpu, got (2,), float32, on cpu",
    ),
    (em, {"step": -1}, "0 <= step < 16777216, got step=-1"),
    (em, {"step": 2**24}, "0 <= step < 16777216, got step=16777216"),
    (em, {"sample_offset": -1}, "0 <= sample_offset < 4294967296, got sample_offset=-1"),
    (
        em,
        {"sample_offset": 2**32},
        "0 <= sample_offset < 4294967296, got sample_offset=4294967296",
    ),
    (
        em,
        {"sample_offset": 2**32 - 1},
        "sample_offset + batch <= 2^32, got 4294967295 + 2; use another stream",
    ),
    (reverse, {"sample_offset": 2**32 - 1}, "sample_offset + batch <= 2^32"),
    (noised, {"step": 2**24}, "0 <= step < 16777216"),
    (normal, {"purpose": "colour"}, "purpose to be one of"),
]

TYPE_ERRORS: Refused = [
    # shapes
    (normal, {"shape": ()}, "shape to be a shape (B, *event), got ()"),
    (normal, {"shape": 3}, "shape to be a shape (B, *event), got 3"),
    (normal, {"shape": (2, 1.5)}, "shape[1] to be an integer, got 1.5"),
    # dtypes
    (
        em,
        {"x": X.bfloat16()},
        "x to be float32 or float64, got bfloat16; states keep full precision",
    ),
    (em, {"x": X.long()}, "x to be float32 or float64, got int64"),
    (em, {"x": X.to(torch.complex64)}, "x to be float32 or float64, got complex64"),
    (
        em,
        {"f": X.to(torch.complex64)},
        "f to be float32, float64, bfloat16 or float16, got complex64",
    ),
    (em, {"f": X.int()}, "f to be float32, float64, bfloat16 or float16, got int32"),
    (residual, {"x_next": X.double()}, "x_next to have the dtype of x (float32), got float64"),
    (
        reverse,
        {"s_next": X.bool()},
        "s_next to be float32, float64, bfloat16 or float16, got bool",
    ),
    (normal, {"dtype": torch.int64}, "a floating dtype, got torch.int64"),
    (normal, {"dtype": torch.complex64}, "a floating dtype, got torch.complex64"),
    (philox, {"counter": torch.zeros(3, 4)}, "counter to be int64, got torch.float32"),
    # kinds
    (em, {"x": [[0.0]]}, "x to be a tensor, got list"),
    (em, {"f": np.zeros((2, 3))}, "f to be a tensor, got ndarray"),
    (em, {"x": X.to_sparse()}, "x to be dense, got layout torch.sparse_coo"),
    (em, {"dt": "1"}, "dt to be a number, got '1'"),
    (em, {"dt": True}, "dt to be a number, got True"),
    (em, {"g": None}, "g to be a number, got None"),
    (philox, {"key": [0, 0]}, "key to be a tensor, got list"),
    # keys, steps and samples
    (em, {"key": 5}, "key to be a NoiseKey or the tensor of NoiseKey.to_tensor, got int"),
    (em, {"step": 1.0}, "step to be an integer, got 1.0"),
    (em, {"step": True}, "step to be an integer, got True"),
]


OPS = {
    em: "em_step",
    residual: "backward_residual",
    cost: "residual_cost",
    reverse: "reverse_step",
    noised: "perturb",
    normal: "normal",
    philox: "philox_words",
}


def refusal(op: Callable[..., Any], changes: dict[str, Any], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        op(**changes)
    return str(caught.value)


@pytest.mark.parametrize(("op", "changes", "text"), VALUE_ERRORS)
def test_bad_values_are_refused(
    op: Callable[..., Any], changes: dict[str, Any], text: str
) -> None:
    assert refusal(op, changes, ValueError).startswith(f"{OPS[op]}: expected {text}")


@pytest.mark.parametrize(("op", "changes", "text"), TYPE_ERRORS)
def test_bad_types_are_refused(op: Callable[..., Any], changes: dict[str, Any], text: str) -> None:
    assert refusal(op, changes, TypeError).startswith(f"{OPS[op]}: expected {text}")


def test_good_arguments_of_the_error_table_pass() -> None:
    for op in OPS:
        op()
    em(sample_offset=2**32 - 2, step=2**24 - 1, dt=1)


def test_a_cuda_tensor_in_a_cpu_build_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        device = torch.device("cuda", 0)

    note = "no working CUDA compiler was found"
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": False, "cuda_note": note})
    with pytest.raises(RuntimeError) as caught:
        check_device("em_step", "x", OnCuda())  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith("em_step: CUDA tensor given as x, but this build has no CUDA kernels (")
    assert note in text
    assert "DIFFFLOW_CUDA=ON" in text
    assert "build_info()" in text


@pytest.mark.skipif(build_info()["cuda"], reason="this build has CUDA kernels")
def test_the_core_itself_refuses_a_device_it_cannot_reach() -> None:
    out = torch.zeros(4)
    with pytest.raises(RuntimeError, match="no CUDA kernels; reinstall it with DIFFFLOW_CUDA=ON"):
        core.normal((0, 0, 0, 1, 4), (1, 0, 0, 0, 0), out.data_ptr())


def test_the_core_itself_refuses_types_it_has_no_kernels_for() -> None:
    for types in (-1, 4):
        with pytest.raises(ValueError, match="expected a code from 0 to 3"):
            core.normal((-1, 0, types, 1, 4), (1, 0, 0, 0, 0), 0)
        with pytest.raises(ValueError, match="expected a code from 0 to 3"):
            core.em_step((-1, 0, types, 1, 4), (1, 0, 0, 0, 0), (1, 0), (1, 0), 0, 0, 0)


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


def test_scalar_tensors_on_the_cpu_are_checked() -> None:
    x, key = torch.randn(4, 2), NoiseKey(1)
    for name, bad in (("dt", 0.0), ("g", -1.0), ("g", float("nan"))):
        scalars: dict[str, Any] = {"dt": 0.1, "g": 0.5, name: torch.tensor(bad)}
        with pytest.raises(ValueError, match=f"em_step: expected {name} > 0"):
            functional.em_step(x, x, key=key, step=0, **scalars)
    with pytest.raises(ValueError, match="backward_residual: expected g_next > 0"):
        functional.backward_residual(x, x, x, x, dt=0.1, g_next=torch.tensor(0.0))
    with pytest.raises(ValueError, match="perturb: expected sigma_t >= 0, got -1"):
        functional.perturb(x, alpha_t=1.0, sigma_t=torch.tensor([0.5, -1.0, 0.5, 0.5]), key=key)
