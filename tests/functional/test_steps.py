"""Ops that draw, and the sums of noise in their gradients."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close, same_bits
from op_cases import DT, F64, KEY, OFFSET, SHAPES, STEP, G
from torch import Tensor

from diffflow_ext import functional
from diffflow_ext.functional import PURPOSES
from diffflow_ext.functional.noise import noise_dot, noise_energy

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_perturb_takes_scalars_of_both_kinds() -> None:
    x0, sigma = torch.randn(6, 4), torch.rand(6)
    mixed, eps = functional.perturb(x0, alpha_t=0.5, sigma_t=sigma, key=KEY)
    assert_close(mixed, 0.5 * x0.double() + sigma[:, None].double() * eps, "float32")
    mixed, eps = functional.perturb(x0, alpha_t=sigma, sigma_t=torch.tensor([0.5]), key=KEY)
    assert_close(mixed, sigma[:, None].double() * x0 + 0.5 * eps.double(), "float32")
    assert not eps.requires_grad


def test_perturb_takes_a_scale_for_each_element() -> None:
    x0, alpha = torch.randn(3, 5, 2), torch.rand(3)
    scales = torch.rand(2, 5, 3, dtype=torch.float64).transpose(0, 2)
    for sigma in (scales, scales.float(), torch.rand(3, 1, 1).expand(3, 5, 2)):
        x_t, eps = functional.perturb(x0, alpha_t=alpha, sigma_t=sigma, key=KEY)
        expected = alpha[:, None, None].double() * x0 + sigma.double() * eps
        assert_close(x_t, expected, "float32")
        # The noise is that of any other scale.
        assert torch.equal(eps, functional.perturb(x0, alpha_t=1.0, sigma_t=1.0, key=KEY)[1])
