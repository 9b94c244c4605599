"""em_step, reverse_step and affine_step, and the sums of noise in their gradients."""

from __future__ import annotations

import pytest
import torch
from helpers import Op, assert_close, check_op, same_bits
from op_cases import (
    DT,
    DTYPES,
    F32,
    F64,
    KEY,
    OFFSET,
    SHAPES,
    STEP,
    Dtypes,
    G,
    check_case,
    check_own_noise,
    check_tensor_dt,
    check_tensor_g,
    em_step_case,
    parameters,
)
from torch import Tensor

from diffflow_ext import functional
from diffflow_ext.functional import PURPOSES
from diffflow_ext.functional.noise import noise_dot, noise_energy

pytestmark = pytest.mark.usefixtures("one_thread")
REVERSE = ("reverse_step", "reverse_step_half", "reverse_step_ode")


@pytest.mark.parametrize(
    ("name", "shape", "dtypes", "learned"),
    parameters("em_step", *REVERSE, "affine_step", "affine_step_mean"),
)
def test_op_equals_its_reference(
    name: str, shape: tuple[int, ...], dtypes: Dtypes, learned: bool
) -> None:
    check_case(name, shape, dtypes, learned)


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


@pytest.mark.parametrize("name", ["em_step", "reverse_step", "affine_step"])
def test_op_equals_its_reference_with_noise_of_its_own(name: str) -> None:
    check_own_noise(name)


def test_the_noise_of_an_op_is_that_of_normal() -> None:
    zeros, options = torch.zeros(33, 5), {"key": KEY, "step": STEP, "sample_offset": OFFSET}

    def draws(purpose: str) -> Tensor:
        return functional.normal((33, 5), KEY, purpose=purpose, step=STEP, sample_offset=OFFSET)

    forward = functional.em_step(zeros, zeros, dt=1.0, g=1.0, **options)
    assert torch.equal(forward, draws("forward"))
    backward = functional.reverse_step(zeros, zeros, zeros, dt=1.0, g_next=1.0, **options)
    assert torch.equal(backward, draws("reverse"))


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
@pytest.mark.parametrize("name", ["em_step", "reverse_step"])
def test_a_tensor_g_keeps_its_shape_and_dtype(
    name: str, g_shape: tuple[int, ...], g_dtype: torch.dtype
) -> None:
    check_tensor_g(name, g_shape, g_dtype)


@pytest.mark.parametrize("name", ["em_step", *REVERSE])
def test_a_tensor_dt_is_the_number(name: str) -> None:
    check_tensor_dt(name)
