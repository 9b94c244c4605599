"""The discrete chain of DDPM: as a restriction of its process, and against published schedules."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch

from diffflow_ext.processes import DiscreteVP

CHAIN = DiscreteVP.linear(50, 0.002, 0.3)


@pytest.mark.parametrize("chain", [CHAIN, DiscreteVP.linear(), DiscreteVP.cosine(20)])
def test_a_chain_is_the_restriction_of_its_process(chain: DiscreteVP) -> None:
    T = chain.num_timesteps
    mean_square = torch.ones(T + 1, dtype=torch.float64)
    for i in range(1, T + 1):
        mean_square[i] = mean_square[i - 1] * (1 - chain.betas[i - 1])
    t = torch.arange(T + 1, dtype=torch.float64) / T
    assert torch.allclose(chain.alpha(t).square(), mean_square, rtol=1e-12, atol=0)
    assert torch.allclose(chain.sigma(t).square(), 1 - mean_square, rtol=1e-10, atol=1e-15)
    assert torch.allclose(chain.log_alphas.exp(), chain.alpha(t), rtol=1e-12, atol=0)
    a, v = chain.transition(0.3, 0.3 + 1 / T)
    beta = float(chain.betas[round(0.3 * T)])
    assert (a**2, v) == pytest.approx((1 - beta, beta), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rate_at_a_knot_is_that_of_the_step_before(dtype: torch.dtype) -> None:
    chain = DiscreteVP.linear()
    t = torch.arange(1, 1001, dtype=dtype) / 1000
    expected = -500 * torch.log1p(-chain.betas).neg()
    assert torch.equal(chain.drift_rate(t), expected.to(dtype))
    assert torch.equal(chain.diffusion(t), (2 * -expected).sqrt().to(dtype))
    between = (torch.arange(1, 1001, dtype=dtype) - 0.5) / 1000
    assert torch.equal(chain.drift_rate(between), expected.to(dtype))


def test_linear_and_cosine_schedules() -> None:
    linear = DiscreteVP.linear()
    assert linear.num_timesteps == 1000
    assert linear.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-15)
    # Ho et al., section 4: for unit data the last marginal is some 1e-5 bits from N(0, 1).
    left = float(linear.alpha(torch.ones((), dtype=torch.float64))) ** 2
    assert 1e-5 < -0.5 * math.log1p(-left) / math.log(2) < 5e-5
    cosine = DiscreteVP.cosine(1000)
    t = torch.arange(1, 990, dtype=torch.float64) / 1000
    c = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    at_zero = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(cosine.alpha(t).square(), c / at_zero, rtol=1e-10)
    assert float(cosine.betas.max()) == 0.999


def test_the_chain_owns_its_betas_and_copies() -> None:
    betas = torch.full((4,), 0.1)
    chain = DiscreteVP(betas)
    betas.zero_()
    file = io.BytesIO()
    torch.save(chain, file)
    file.seek(0)
    at = torch.tensor(0.6, dtype=torch.float64)
    for one in (copy.deepcopy(chain), torch.load(file, weights_only=False)):
        assert float(one.alpha(at)) == float(chain.alpha(at)) > 0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: DiscreteVP([0.1]), TypeError, "DiscreteVP: expected betas to be a tensor"),
        (lambda: DiscreteVP(torch.empty(0)), ValueError, r"of shape \(T,\), got \(0,\)"),
        (lambda: DiscreteVP(torch.rand(2, 2)), ValueError, r"of shape \(T,\), got \(2, 2\)"),
        (lambda: DiscreteVP(torch.tensor([0.5, 1.0])), ValueError, r"got betas\[1\]=1\.0"),
        (lambda: DiscreteVP.linear(0), ValueError, "expected 1 <= T"),
        (lambda: DiscreteVP.linear(10, 0.0), ValueError, r"got betas\[0\]=0\.0"),
        (lambda: DiscreteVP.cosine(10, max_beta=1.0), ValueError, r"got betas\[9\]=1\.0"),
        (lambda: DiscreteVP.cosine(10, s=-0.1), ValueError, "expected s >= 0"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
