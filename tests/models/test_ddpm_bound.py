"""DDPM's bound against closed forms of Gaussian data and quadrature."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from denoisers import GaussianMixture, WavyNet, standard_error
from model_cases import F64, KEY, SIGMAS, Textbook, exact_model
from torch import Tensor
from torch.distributions import Normal

from diffflow_ext import DDPM
from diffflow_ext.functional import normal
from diffflow_ext.likelihood.variational import discretised_log_prob
from diffflow_ext.processes import DiscreteVP

# --- bound ---------------------------------------------------------------------------------------


def expected_elbo(model: DDPM, deviation: float, x0: Tensor, variance: str) -> Tensor:
    """The bound's expectation for Gaussian data and the exact network, in one dimension.

    Every Kullback-Leibler divergence is written out for Gaussians from the textbook's posterior.
    """
    book, T = Textbook(model.process.betas), model.num_timesteps
    total = 0.5 * (book.bar[T] * x0**2 - book.bar[T] - torch.log(1 - book.bar[T]))
    for i in range(1, T + 1):
        bar = float(book.bar[i])
        marginal = bar * deviation**2 + 1 - bar
        of_x0, of_x, spread = book.posterior(i, i - 1)
        # The network's mean is a x_i, the posterior's of_x x_i + of_x0 x_0.
        data = math.sqrt(bar) * deviation**2 / marginal
        a = of_x + of_x0 * data
        if i == 1:
            decoder = (1 - bar) / bar
            miss = (1 - a * math.sqrt(bar)) ** 2 * x0**2 + a**2 * (1 - bar)
            total = total + 0.5 * (math.log(2 * math.pi * decoder) + miss / decoder)
            continue
        # Mean difference: (of_x - a) (sqrt(bar) x_0 + sqrt(1 - bar) eps) + of_x0 x_0.
        shift = (of_x - a) * math.sqrt(bar) + of_x0
        miss = shift**2 * x0**2 + (of_x - a) ** 2 * (1 - bar)
        v = spread if variance == "small" else float(book.beta[i])
        total = total + 0.5 * (spread / v - 1 - math.log(spread / v) + miss / v)
    return -total


@pytest.mark.parametrize("timesteps", [None, 9, 2])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_elbo_has_the_closed_form_expectation(variance: Any, timesteps: int | None) -> None:
    model, _ = exact_model(0.7, "cosine", 40)
    x0 = torch.linspace(-2, 2, 5, dtype=F64).repeat_interleave(6000)
    elbo = model.elbo(x0[:, None], KEY, variance=variance, timesteps=timesteps)
    expected = expected_elbo(model, 0.7, x0, variance)
    for part, truth in zip(elbo.split(6000), expected.split(6000), strict=True):
        assert abs(float(part.mean() - truth[0])) < SIGMAS * standard_error(part)


def test_all_strata_are_all_terms() -> None:
    model = DDPM(WavyNet().double(), "linear", 25)
    x0 = torch.randn(6, 2, dtype=F64)
    whole = model.elbo(x0, KEY)
    assert torch.allclose(model.elbo(x0, KEY, timesteps=25), whole, rtol=1e-12)
    assert not torch.allclose(model.elbo(x0, KEY, timesteps=24), whole, rtol=1e-6)


def test_every_term_has_noise_of_its_own() -> None:
    """On data 0 the state is sigma eps: draw s of purpose "dsm" for the s-th evaluation."""
    states = []
    model = DDPM(lambda t, x: states.append(x) or x, "linear", 5)
    model.elbo(torch.zeros(6, 2, dtype=F64), KEY)
    for step, x in enumerate(states):
        sigma = model.process.sigma(torch.tensor((step + 1) / 5, dtype=F64))
        eps = normal((6, 2), KEY, purpose="dsm", step=step, dtype=F64)
        assert torch.allclose(x, sigma * eps, rtol=1e-12)


def test_a_chain_of_one_step_is_a_latent_gaussian_model() -> None:
    """T = 1: elbo = E log p(x_0 | x_1) - KL(q(x_1 | x_0) | N(0, 1)), no other term."""
    model = DDPM(lambda t, x: 0 * x, DiscreteVP(torch.tensor([0.36])))
    x0 = torch.full((20_000, 1), 0.5, dtype=F64)
    # The mean is x_1 / 0.8 = x_0 + 0.75 eps, the variance 0.75^2.
    likelihood = -0.5 * (math.log(2 * math.pi * 0.5625) + 1.0)
    kl = 0.5 * (0.36 - 1 - math.log(0.36) + 0.64 * 0.25)
    for timesteps in (None, 1):
        elbo = model.elbo(x0, KEY, timesteps=timesteps)
        assert abs(float(elbo.mean()) - likelihood + kl) < SIGMAS * standard_error(elbo)


def test_elbo_is_differentiable() -> None:
    x0 = torch.randn(3, 2, dtype=F64)

    def value(weight: Tensor) -> Tensor:
        model = DDPM(lambda t, x: weight * x, "linear", 12)
        return model.elbo(x0, KEY, timesteps=5, clip=True)

    weight = torch.tensor(0.4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (weight,))


def test_clipped_predictions_bound_only_what_leaves_the_range() -> None:
    inside, T = DDPM(lambda t, x: x, "cosine", 20), 20
    data = GaussianMixture.single(inside.process, 1e-4)
    inside.eps_net = data.eps  # predicts x_0 = 0 nearly
    x0 = 1e-4 * torch.randn(6, 1, dtype=F64)
    assert torch.allclose(inside.elbo(x0, KEY), inside.elbo(x0, KEY, clip=True), rtol=1e-9)
    wild = DDPM(lambda t, x: -1e3 * torch.ones_like(x), "cosine", T)
    clipped, free = wild.elbo(x0, KEY, clip=True), wild.elbo(x0, KEY)
    assert bool((clipped > free).all())
    # Every prediction is then x_0 = 1: the bound is that of a network which says so.
    ones = DDPM(lambda t, x: x, wild.process)

    def to_one(t: Tensor, x: Tensor) -> Tensor:
        return (x - ones.process.alpha(t)) / ones.process.sigma(t)

    ones.eps_net = to_one
    assert torch.allclose(clipped, ones.elbo(x0, KEY), rtol=1e-9)


# --- discretised decoder -------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [1e-3, 0.007, 0.3, 2.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.4321, 0.0, 0.9999, 2.5])
def test_masses_of_all_levels_sum_to_one(mean: float, deviation: float) -> None:
    levels = torch.arange(256, dtype=F64)
    log_mass = discretised_log_prob(levels, torch.full((256,), mean, dtype=F64), deviation)
    assert log_mass.isfinite().all()
    assert float(log_mass.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_masses_are_right_far_in_the_tails() -> None:
    import mpmath

    levels = [0, 1, 77, 128, 254, 255]
    mean, deviation = 0.11, 0.006
    actual = discretised_log_prob(
        torch.tensor(levels, dtype=F64), torch.full((6,), mean, dtype=F64), deviation
    )
    with mpmath.workdps(60):
        # erfc keeps the digits that a difference of distribution functions near 1 would lose.
        for k, value in zip(levels, actual.tolist(), strict=True):
            ends = [(mpmath.mpf(2 * k + e) / 255 - 1 - mpmath.mpf(mean)) for e in (-1, 1)]
            low, high = (z / mpmath.mpf(deviation) / mpmath.sqrt(2) for z in ends)
            sign = 1 if low > 0 else -1
            near, far = (low, high) if low > 0 else (high, low)
            outermost = (k == 255 and low > 0) or (k == 0 and low < 0)
            tail = 0 if outermost else mpmath.erfc(sign * far)
            mass = (mpmath.erfc(sign * near) - tail) / 2
            assert value == pytest.approx(float(mpmath.log(mass)), rel=1e-9)


def test_gradients_of_masses_are_finite_everywhere() -> None:
    levels = torch.arange(256, dtype=F64).repeat(5)
    mean = torch.tensor([-1.5, -1.0, 0.0, 1.0, 3.0], dtype=F64).repeat_interleave(256)
    mean.requires_grad_()
    discretised_log_prob(levels, mean, 0.01).sum().backward()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()
    inner = torch.tensor([3.0, 100.0, 255.0, 0.0], dtype=F64)
    start = torch.tensor([-0.9, -0.2, 0.95, -0.99], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: discretised_log_prob(inner, m, 0.05), (start,))


def test_discretised_decoder_has_the_published_mean_and_variance() -> None:
    """Both decoders share all other terms, so the difference of bounds is that of the decoders."""
    model = DDPM(WavyNet().double(), DiscreteVP(torch.tensor([0.05, 0.3])))
    x0 = torch.tensor([3.0, 100.0, 200.0], dtype=F64)[:, None] * 2 / 255 - 1
    with torch.no_grad():
        eps = normal((3, 1), KEY, purpose="dsm", dtype=F64)
        x1 = math.sqrt(0.95) * x0 + math.sqrt(0.05) * eps
        guess = model.eps_net(torch.tensor(0.5, dtype=F64), x1)
        mean = (x1 - math.sqrt(0.05) * guess) / math.sqrt(0.95)
        actual = model.elbo(x0, KEY, decoder="discretised") - model.elbo(x0, KEY)
    published = Normal(mean, math.sqrt(0.3 * 0.05 / (1 - 0.95 * 0.7)))
    mass = published.cdf(x0 + 1 / 255) - published.cdf(x0 - 1 / 255)
    gaussian = Normal(mean, math.sqrt(0.05 / 0.95)).log_prob(x0)
    assert torch.allclose(actual, (mass.log() - gaussian)[:, 0], rtol=1e-9)


def test_discretised_decoder_takes_images_only() -> None:
    model = DDPM(WavyNet(), "linear", 4)
    image = 2 * torch.randint(0, 256, (3, 1, 4, 4)) / 255 - 1
    assert model.elbo(image, KEY, decoder="discretised").shape == (3,)
    for bad in (image + 1e-3, image * 1.1, 2 * (torch.rand(3, 1, 4, 4) - 0.5)):
        with pytest.raises(ValueError, match=r"expected x0 = 2 k / 255 - 1 .* got .* at index"):
            model.elbo(bad, KEY, decoder="discretised")
