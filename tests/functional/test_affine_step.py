"""The affine step: which terms take part, and what its solvers come to.

Values, gradients and layouts are in test_contracts.py, compilation in test_compile.py, refusals in
test_refusals.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, same_bits
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import PURPOSES
from diffflow_ext.functional.affine import launch_affine_step

KEY = NoiseKey(seed=2026, stream=3)
STEP, OFFSET = 11, 5
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TYPES = [(F32, F32), (F32, BF16), (F32, F16), (F64, F64)]
pytestmark = pytest.mark.usefixtures("one_thread")


def rows(shape: tuple[int, ...], state: torch.dtype, net: torch.dtype) -> tuple[Tensor, ...]:
    return torch.randn(shape, dtype=state), *(torch.randn(shape).to(net) for _ in range(2))


def draws(shape: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Tensor:
    return functional.normal(shape, KEY, dtype=dtype, **options)


# --- which terms take part -----------------------------------------------------------------------


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 2), (33, 7), (3, 40)], ids=str)
def test_factors_in_memory_are_the_numbers(
    shape: tuple[int, int], types: tuple[torch.dtype, torch.dtype]
) -> None:
    x, a, b = rows(shape, *types)
    values = {"c_x": 0.9, "c_a": -0.4, "c_b": 0.3, "noise_scale": 0.6}
    options = {"key": KEY, "step": STEP, "sample_offset": OFFSET}
    expected = functional.affine_step(x, a, b, **values, **options)
    for size, dtype in itertools.product([(), (1,), (1, 1)], [F32, F64]):
        # A float32 holds none of these numbers, so that both sides are given what it holds.
        held = {name: torch.full(size, value, dtype=dtype) for name, value in values.items()}
        plain = {name: value.item() for name, value in held.items()}
        expected = functional.affine_step(x, a, b, **plain, **options)
        assert same_bits(functional.affine_step(x, a, b, **held, **options), expected)
        tensor_key = {**options, "key": KEY.to_tensor()}
        assert same_bits(functional.affine_step(x, a, b, **held, **tensor_key), expected)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_an_absent_term_is_a_term_of_zeros(types: tuple[torch.dtype, torch.dtype]) -> None:
    x, a, b = rows((9, 5), *types)
    alone = functional.affine_step(x, a, c_x=0.9, c_a=-0.4)
    with_zeros = functional.affine_step(x, a, torch.zeros_like(b), c_x=0.9, c_a=-0.4, c_b=0.7)
    assert torch.equal(alone, with_zeros)
    silent = functional.affine_step(
        x, a, c_x=0.9, c_a=-0.4, noise_scale=torch.zeros((), dtype=types[0]), key=KEY
    )
    assert torch.equal(alone, silent)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_noise_is_that_of_normal(purpose: str) -> None:
    zeros = torch.zeros(6, 5)
    options = {"purpose": purpose, "step": STEP, "sample_offset": OFFSET}
    found = functional.affine_step(zeros, zeros, c_a=1.0, noise_scale=1.0, key=KEY, **options)
    assert torch.equal(found, draws((6, 5), F32, **options))


def test_a_silent_step_needs_no_key() -> None:
    x = torch.randn(4, 3)
    expected = functional.affine_step(x, x, c_a=0.5)
    assert same_bits(functional.affine_step(x, x, c_a=0.5, noise_scale=0, key=KEY), expected)
    assert same_bits(launch_affine_step(x, x, None, 1.0, 0.5, 0.0, 0.0, None, 1, 0, 0), expected)


def test_converted_factors_live_until_the_kernel_has_read_them() -> None:
    """float64 factors of a float32 state exist for the length of one call."""
    x = torch.ones(1, 1)
    for _ in range(200):
        c_x, c_a, c_b = (torch.tensor(value, dtype=F64) for value in (1.0, 2.0, 4.0))
        y = launch_affine_step(x, x, x, c_x, c_a, c_b, 0.0, None, 1, 0, 0)
        assert y.item() == 7.0


def test_one_tensor_may_stand_in_all_places() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    y = functional.affine_step(x, x, x, c_x=0.5, c_a=0.25, c_b=0.25)
    assert torch.equal(y, x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.ones(5, 7))


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("width", [1, 3, 4, 1030])
def test_a_batch_may_be_split_anywhere(width: int, scale: float) -> None:
    """Without noise rows run into one another in memory, with noise each starts a counter."""
    x, a, b = rows((7, width), F32, BF16)
    options = {"c_x": 0.9, "c_a": -0.4, "c_b": 0.3, "noise_scale": scale, "key": KEY}
    whole = functional.affine_step(x, a, b, sample_offset=OFFSET, **options)
    for at in range(8):
        parts = [
            functional.affine_step(x[s], a[s], b[s], sample_offset=OFFSET + s.start, **options)
            for s in (slice(0, at), slice(at, 7))
        ]
        assert same_bits(torch.cat(parts), whole)


# --- solvers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_an_euler_maruyama_step_has_the_same_bits(types: tuple[torch.dtype, torch.dtype]) -> None:
    x, f, _ = rows((6, 9), *types)
    dt, g = (torch.tensor(value, dtype=types[0]) for value in (0.05, 0.7))
    expected = functional.em_step(x, f, dt=dt, g=g, key=KEY, step=STEP)
    # torch's own root of a float32 is not always the nearest.
    scale = g * torch.tensor(np.sqrt(dt.numpy()))
    found = functional.affine_step(
        x, f, c_a=dt, noise_scale=scale, key=KEY, purpose="forward", step=STEP
    )
    assert same_bits(found, expected)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_an_implicit_step_keeps_the_marginals(eta: float) -> None:
    """From x_t = alpha_t x_0 + sigma_t e, with e known, to alpha_s x_0 + sigma_s e' (DDIM)."""
    x0, e = torch.randn(20_000, 2, dtype=F64), torch.randn(20_000, 2, dtype=F64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (0.6, 0.8), (0.8, 0.6)
    noise = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2) ** 0.5
    c_x = alpha_s / alpha_t
    c_e = (sigma_s**2 - noise**2) ** 0.5 - c_x * sigma_t
    x_t = alpha_t * x0 + sigma_t * e
    x_s = functional.affine_step(x_t, e, c_x=c_x, c_a=c_e, noise_scale=noise, key=KEY)
    rest = (x_s - alpha_s * x0) / sigma_s
    # 40,000 standard normals: mean and variance within four standard errors.
    assert abs(rest.mean().item()) < 4 / 200
    assert abs(rest.var().item() - 1) < 4 * 2**0.5 / 200
    if eta == 0:
        assert_close(rest, e, "float64")


# --- gradients -----------------------------------------------------------------------------------


def test_the_gradient_of_a_scale_that_is_zero_is_there() -> None:
    x = torch.randn(9, 6, dtype=F64)
    scale = torch.zeros(1, dtype=F64, requires_grad=True)
    y = functional.affine_step(x, x, c_a=0.5, noise_scale=scale, key=KEY, purpose="langevin")
    (grad,) = torch.autograd.grad(y.sum(), scale)
    expected = draws((9, 6), F64, purpose="langevin").sum()
    assert grad.shape == (1,)
    assert_close(grad[0], expected, "float64", scale=10.0)


def test_gradients_are_made_only_where_they_are_asked_for() -> None:
    x, a, b = (torch.randn(3, 2, dtype=F64, requires_grad=need) for need in (False, True, False))
    factor = torch.tensor(0.3, dtype=F64, requires_grad=True)
    y = functional.affine_step(x, a, b, c_a=0.5, c_b=factor)
    of_a, of_factor = torch.autograd.grad(y.sum(), (a, factor))
    assert torch.equal(of_a, torch.full((3, 2), 0.5, dtype=F64))
    assert_close(of_factor, b.sum(), "float64", scale=10.0)


@pytest.mark.parametrize("dtype", [F32, F64, F16])
def test_factors_of_any_dtype_leave_gradients_in_theirs(dtype: torch.dtype) -> None:
    x, a, _ = (t.requires_grad_() for t in rows((3, 2), F32, BF16))
    factor = torch.full((1,), 0.5, dtype=dtype, requires_grad=True)
    y = functional.affine_step(x, a, c_x=factor, c_a=factor)
    of_x, of_a, of_factor = torch.autograd.grad(y.sum(), (x, a, factor))
    assert (y.dtype, of_x.dtype, of_a.dtype, of_factor.dtype) == (F32, F32, BF16, dtype)
    assert of_factor.shape == (1,)
    assert torch.equal(of_x, torch.full((3, 2), 0.5))


def test_large_factors_of_float64_pass() -> None:
    x = torch.ones(1, 1, dtype=F64)
    assert functional.affine_step(x, x, c_a=1e300).item() == 1e300
    assert functional.affine_step(x, x, c_x=-1.0, c_a=1e-300).item() == -1.0
