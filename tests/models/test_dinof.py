"""DiNof against closed forms: Gaussians and mixtures, whose scores and flows are exact."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from denoisers import GaussianMixture, WavyNet, standard_error
from model_cases import (
    F64,
    KEY,
    PROCESSES,
    SIGMAS,
    Gaussian,
    at,
    each_process,
    gaussian_model,
)
from torch import Tensor

from diffflow_ext import DiNof, NoiseKey, TimeGrid
from diffflow_ext.flows import StandardNormal
from diffflow_ext.functional import affine_step, normal
from diffflow_ext.processes import VP, LinearProcess

# --- losses --------------------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize("loss_weight", ["variance", "likelihood"])
@torch.no_grad()
def test_score_loss_is_the_documented_function_of_the_noise(
    process: LinearProcess, loss_weight: Any
) -> None:
    model = DiNof(WavyNet().double(), None, process, 0.7, 0.05, loss_weight=loss_weight)
    x0 = torch.randn(50, 3, dtype=F64)
    z = normal((50, 1), KEY, purpose="grid", step=1, sample_offset=7, dtype=F64)
    t = 0.05 + 0.65 * torch.special.ndtr(z)
    eps = normal((50, 3), KEY, purpose="dsm", sample_offset=7, dtype=F64)
    sigma = process.sigma(t)
    x_t = process.alpha(t) * x0 + sigma * eps
    # The loss of the score itself, lambda |s + eps / sigma|^2 / d.
    score = model.score(t[:, 0], x_t)
    weight = sigma if loss_weight == "variance" else process.diffusion(t)
    expected = (weight * (score + eps / sigma)).square().mean(1)
    assert torch.allclose(model.score_loss(x0, KEY, sample_offset=7), expected, rtol=1e-9)


def test_flow_loss_is_the_cross_entropy_at_the_cutoff() -> None:
    for process in PROCESSES.values():
        model = DiNof(WavyNet(), Gaussian(2).double(), process, 0.6)
        x0 = 0.7 * normal((20_000, 2), NoiseKey(1), dtype=F64)
        loss = model.flow_loss(x0, KEY)
        variance = (0.7 * at(process.alpha, 0.6)) ** 2 + at(process.sigma, 0.6) ** 2
        expected = math.log(2 * math.pi) + variance
        assert abs(float(loss.detach().mean()) - expected) < SIGMAS * standard_error(loss.detach())


def test_the_two_losses_have_independent_noise_and_no_common_gradient() -> None:
    model = DiNof(WavyNet(), Gaussian(2), "ve")
    x0 = torch.randn(30, 2)
    model.score_loss(x0, KEY).mean().backward()
    assert all(p.grad is not None for p in model.score_parameters())
    assert all(p.grad is None for p in model.flow_parameters())
    score = [p.grad.clone() for p in model.score_parameters()]  # pyright: ignore
    model.zero_grad()
    model.flow_loss(x0, KEY).mean().backward()
    assert all(p.grad is None for p in model.score_parameters())
    flow = [p.grad.clone() for p in model.flow_parameters()]  # pyright: ignore
    model.zero_grad()
    model.mean_loss(x0, KEY).backward()
    together = [*model.score_parameters(), *model.flow_parameters()]
    assert len(together) == len(list(model.parameters())) == 3
    for p, grad in zip(together, [*score, *flow], strict=True):
        assert torch.equal(p.grad, grad)  # pyright: ignore
    # The flow's noise: x at the cutoff of data 0 is sigma times draw 1.
    silent = DiNof(WavyNet(), StandardNormal(), "ve")
    eps = normal((30, 2), KEY, purpose="dsm", step=1)
    expected = -StandardNormal().log_prob(at(silent.process.sigma, 0.6) * eps)
    assert torch.allclose(silent.flow_loss(torch.zeros(30, 2), KEY), expected, rtol=1e-6)
    other = normal((30, 2), KEY, purpose="dsm", step=0)
    assert abs(float((eps * other).mean())) < SIGMAS / math.sqrt(60)


# --- plain diffusion -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
@torch.no_grad()
def test_without_a_cutoff_it_is_plain_diffusion_bit_for_bit(name: Any) -> None:
    """The published samplers as a loop over functional ops, from the process's Gaussian."""
    net = WavyNet()
    model = DiNof(net, None, name, 1.0)
    process, n, snr = model.process, 20, 0.16
    times = TimeGrid.power(n, 1.0, model.t_min, 1.0).times
    scale = 50.0 if name == "ve" else 1.0
    x = scale * normal((7, 3), KEY, purpose="prior")
    for i in range(n - 1, -1, -1):
        t, t_next = float(times[i]), float(times[i + 1])
        sigma, told = at(process.sigma, t_next), times[i + 1].float()
        noise: dict[str, Any] = {"key": KEY, "step": i}
        if name == "ve":
            length = 2 * (snr * sigma) ** 2
            eps = net(told, x)
            x = affine_step(
                x, eps, c_a=-length / sigma, noise_scale=math.sqrt(2 * length),
                purpose="langevin", **noise,
            )  # fmt: skip
            variance = sigma**2 - at(process.sigma, t) ** 2
            c_x = 1.0
        else:
            g = at(process.diffusion, t_next)
            variance = g * g * (t_next - t)
            c_x = 1 - at(process.drift_rate, t_next) * (t_next - t)
        root = math.sqrt(variance) if i else 0.0
        x = affine_step(x, net(told, x), c_x=c_x, c_a=-variance / sigma, noise_scale=root, **noise)
    assert torch.equal(model.sample((7, 3), n, KEY), x)


# --- samples -------------------------------------------------------------------------------------


def predicted_variance(
    process: LinearProcess,
    data: GaussianMixture,
    grid: TimeGrid,
    kind: str,
    corrections: int,
    last_step: str,
) -> float:
    """The variance of samples of Gaussian data with the exact score, followed step by step."""
    variance = float(data.marginal(grid.times[-1]).variance)
    for i, (t, t_next) in reversed(list(enumerate(pairwise(grid.times.tolist())))):
        law, sigma = float(data.marginal(grid.times[i + 1]).variance), at(process.sigma, t_next)
        for _ in range(corrections):
            length = 2 * (0.16 * sigma) ** 2
            variance = (1 - length / law) ** 2 * variance + 2 * length
        if kind == "em":
            spread = at(process.diffusion, t_next) ** 2 * (t_next - t)
            factor = 1 - at(process.drift_rate, t_next) * (t_next - t)
        else:
            a = at(process.alpha, t_next) / at(process.alpha, t)
            spread = sigma**2 - (a * at(process.sigma, t)) ** 2
            factor = 2 - a
        noisy = i > 0 or last_step != "mean"
        variance = (factor - spread / law) ** 2 * variance + noisy * spread
    if last_step == "tweedie":
        first = float(data.marginal(grid.times[0]).variance)
        sigma, alpha = at(process.sigma, grid.t_start), at(process.alpha, grid.t_start)
        variance *= ((1 - sigma**2 / first) / alpha) ** 2
    return variance


@each_process
@pytest.mark.parametrize("kind", ["em", "reverse_diffusion"])
@pytest.mark.parametrize(
    ("corrections", "last_step"), [(0, "mean"), (0, "noisy"), (2, "noisy"), (1, "tweedie")]
)
def test_samplers_have_the_documented_steps(
    process: LinearProcess, kind: Any, corrections: int, last_step: Any
) -> None:
    model, data = gaussian_model(process, 0.7, 0.6)
    # The later the end, the more there is to denoise.
    first = 0.25 if last_step == "tweedie" else 0.02
    n, grid = 20_000, TimeGrid.power(8, 0.6, first, 0.8)
    x = model.sample(
        (n, 1), grid, KEY, sampler=kind, corrector_steps=corrections, last_step=last_step
    )
    expected = predicted_variance(process, data, grid, kind, corrections, last_step)
    assert abs(float(x.var()) - expected) < SIGMAS * expected * math.sqrt(2 / n)
    assert abs(float(x.mean())) < SIGMAS * math.sqrt(expected / n)


@pytest.mark.parametrize("sampler", ["em", "ode"])
@torch.no_grad()
def test_tweedie_denoises_what_the_sampler_leaves(sampler: Any) -> None:
    model, grid = DiNof(WavyNet().double()), TimeGrid.power(4, 0.6, 0.2)
    noisy = model.sample((5, 2), grid, KEY, sampler=sampler, last_step="noisy")
    alpha, sigma = at(VP().alpha, 0.2), at(VP().sigma, 0.2)
    expected = (noisy + sigma**2 * model.score(0.2, noisy)) / alpha
    actual = model.sample((5, 2), grid, KEY, sampler=sampler, last_step="tweedie")
    assert torch.allclose(actual, expected, rtol=1e-12)


def test_number_and_times_of_evaluations() -> None:
    seen: list[float] = []

    def net(t: Tensor, x: Tensor) -> Tensor:
        assert t.shape == ()
        seen.append(float(t))
        return x

    for process, cutoff, count in (("vp", 0.6, 600), ("ve", 0.6, 1200), ("subvp", 0.25, 250)):
        seen.clear()
        model = DiNof(net, None, process, cutoff)  # pyright: ignore
        model.sample((2, 1), key=KEY)
        assert len(seen) == count
        assert seen == sorted(seen, reverse=True)
        assert seen[0] == pytest.approx(cutoff)
        assert seen[-1] == pytest.approx(model.t_min + (cutoff - model.t_min) / (1000 * cutoff))
    seen.clear()
    DiNof(net).sample((2, 1), TimeGrid.from_times([0.1, 0.2, 0.6]), KEY, last_step="tweedie")
    assert seen == pytest.approx([0.6, 0.2, 0.1])
    seen.clear()
    DiNof(net, None, "ve").sample((2, 1), 5, KEY, corrector_steps=2)
    assert len(seen) == 15
