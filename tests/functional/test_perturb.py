"""perturb: noisy data of a linear diffusion."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close, same_bits
from op_cases import KEY, OFFSET, STEP

from diffflow_ext import functional

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_noise_is_that_of_normal() -> None:
    options = {"step": STEP, "sample_offset": OFFSET}
    draws = functional.normal((33, 5), KEY, purpose="dsm", **options)
    x_t, eps = functional.perturb(torch.zeros(33, 5), alpha_t=1.0, sigma_t=1.0, key=KEY, **options)
    assert torch.equal(x_t, draws)
    assert same_bits(eps, draws)


def test_perturb_takes_scalars_of_both_kinds() -> None:
    x0, sigma = torch.randn(6, 4), torch.rand(6)
    mixed, eps = functional.perturb(x0, alpha_t=0.5, sigma_t=sigma, key=KEY)
    assert_close(mixed, 0.5 * x0.double() + sigma[:, None].double() * eps, "float32")
    mixed, eps = functional.perturb(x0, alpha_t=sigma, sigma_t=torch.tensor([0.5]), key=KEY)
    assert_close(mixed, sigma[:, None].double() * x0 + 0.5 * eps.double(), "float32")
    assert not eps.requires_grad
