"""Terms of NFDM's loss and its steps of sampling, written out by their formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from model_cases import F64, KEY
from nfdm_cases import gaussian, linear, predicted, squared_g, wavy
from torch import Tensor

from diffflow_ext import NFDM
from diffflow_ext.functional import normal

each_forward = pytest.mark.parametrize("learned", [False, True], ids=["linear", "learned"])


@each_forward
def test_straightness_adds_the_change_of_the_prediction(learned: bool) -> None:
    model, x0, weight = wavy(learned), torch.randn(40, 3, dtype=F64), 0.7
    plain = model.loss(x0, KEY, sample_offset=3)
    u = torch.special.ndtr(
        normal((40, 2), KEY, purpose="grid", step=1, sample_offset=3, dtype=F64)
    )
    first = torch.special.ndtr(normal((1, 1), KEY, purpose="grid", step=1, dtype=F64))[0, 0]
    eps = normal((40, 3), KEY, purpose="dsm", sample_offset=3, dtype=F64)
    changes = []
    for b in range(40):
        t = (first + (b + 3) * (5**0.5 - 1) / 2) % 1
        later = t * (1 - 0.4 * u[b, 1])
        mean, scale = gaussian(model, t, x0[b : b + 1])
        x = mean + scale * eps[b : b + 1]
        guess = predicted(model, t, x)
        (mean, scale), (mean_next, scale_next) = (gaussian(model, s, guess) for s in (t, later))
        moved = mean_next + scale_next * (x - mean) / scale
        changes.append((predicted(model, later, moved) - guess).square().sum())
    model.straightness = weight
    penalised = model.loss(x0, KEY, sample_offset=3)
    assert torch.allclose(penalised - plain, weight * torch.stack(changes), rtol=1e-7, atol=1e-9)
    # It is no part of the bound.
    bound = model.elbo(x0, KEY, timesteps=3)
    model.straightness = 0.0
    assert torch.equal(model.elbo(x0, KEY, timesteps=3), bound)


def samples_by_hand(
    model: NFDM, shape: Any, count: int, strength: float, *, clip: bool = False
) -> Tensor:
    """The documented steps, with the trapezoidal rule in log signal to noise."""
    x = normal(shape, KEY, purpose="prior", dtype=F64)
    times = torch.linspace(1, 0, count + 1, dtype=F64).sqrt()
    for j, (t, later) in zip(range(count, 0, -1), pairwise(times), strict=True):
        x0 = predicted(model, t, x)
        x0 = x0.clamp(-1, 1) if clip else x0
        if j == 1:
            return x0
        (mean, scale), (mean_next, scale_next) = (gaussian(model, s, x0) for s in (t, later))
        rates = squared_g(model, t) / scale**2, squared_g(model, later) / scale_next**2
        kept = torch.exp(-0.5 * strength**2 * (t - later) * (rates[0] + rates[1]) / 2)
        z = normal(shape, KEY, purpose="dsm", step=j, dtype=F64)
        x = mean_next + scale_next * (kept * (x - mean) / scale + (1 - kept**2).sqrt() * z)
    raise AssertionError


@each_forward
@pytest.mark.parametrize("stochasticity", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("event", [(3,), (2, 2, 2)])
@torch.no_grad()
def test_samples_are_the_documented_steps(
    learned: bool, stochasticity: float, event: tuple[int, ...]
) -> None:
    model = wavy(learned)
    for count in (1, 5):
        expected = samples_by_hand(model, (4, *event), count, stochasticity)
        found = model.sample((4, *event), count, KEY, stochasticity)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


@each_forward
@torch.no_grad()
def test_each_prediction_is_clipped(learned: bool) -> None:
    model = wavy(learned)
    model.net.register_forward_hook(lambda net, arguments, value: 9 * value)
    expected = samples_by_hand(model, (4, 3), 5, 1.0, clip=True)
    assert torch.allclose(model.sample((4, 3), 5, KEY, clip=True), expected, atol=1e-11)
    assert not torch.allclose(expected, samples_by_hand(model, (4, 3), 5, 1.0).clamp(-1, 1))


@torch.no_grad()
def test_steps_of_the_linear_process_are_those_of_ddpm() -> None:
    """Equation 7 of Ho et al. for beta = 1 - (alpha / alpha')^2 between two times."""
    model = wavy(learned=False)
    middle = torch.tensor(0.5, dtype=F64).sqrt()
    bar, bar_next = (linear(model.process, t)[0] ** 2 for t in (torch.ones((), dtype=F64), middle))
    beta = 1 - bar / bar_next
    x = normal((8, 3), KEY, purpose="prior", dtype=F64)
    x0 = predicted(model, torch.ones((), dtype=F64), x)
    mean = bar_next.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - bar_next) * x
    variance = (1 - bar_next) / (1 - bar) * beta
    x = mean / (1 - bar) + variance.sqrt() * normal((8, 3), KEY, purpose="dsm", step=2, dtype=F64)
    expected = predicted(model, middle, x)
    assert torch.allclose(model.sample((8, 3), 2, KEY), expected, rtol=1e-10)
