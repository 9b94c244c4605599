"""DDPM against closed forms of Gaussian data and textbook loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from denoisers import WavyNet
from model_cases import F64, KEY, Textbook, exact_model
from torch import Tensor, nn

from diffflow_ext import DDPM, TimeGrid
from diffflow_ext.functional import normal
from diffflow_ext.processes import DiscreteVP

# --- loss ----------------------------------------------------------------------------------------


def test_loss_is_the_documented_function_of_the_noise() -> None:
    T, model = 40, DDPM(WavyNet().double(), "linear", 40)
    x0 = torch.randn(300, 3, dtype=F64)
    # Offsets into one stream; the network's rounding of t in float64 aside, all is exact.
    u = torch.special.ndtr(
        normal((300, 1), KEY, purpose="grid", step=1, sample_offset=7, dtype=F64)
    )
    i = (u * T).floor() + 1
    bar = Textbook(model.process.betas).bar[i.long()]
    eps = normal((300, 3), KEY, purpose="dsm", sample_offset=7, dtype=F64)
    with torch.no_grad():
        guess = model.eps_net((i / T)[:, 0], bar.sqrt() * x0 + (1 - bar).sqrt() * eps)
        loss = model.loss(x0, KEY, sample_offset=7)
    assert torch.allclose(loss, (eps - guess).square().mean(1), rtol=1e-12)


# --- samples -------------------------------------------------------------------------------------


def textbook_samples(model: DDPM, shape: tuple[int, ...], variance: str, last_step: str) -> Tensor:
    """Algorithm 2 of Ho et al., as printed, and the decoder's noise where it is asked for."""
    book, T = Textbook(model.process.betas), model.num_timesteps
    x = normal(shape, KEY, purpose="prior", dtype=F64)
    for i in range(T, 0, -1):
        beta, alpha, bar = (float(v[i]) for v in (book.beta, book.alpha, book.bar))
        eps = model.eps_net(torch.tensor(i / T, dtype=F64), x)
        x = (x - beta / math.sqrt(1 - bar) * eps) / math.sqrt(alpha)
        if i > 1:
            z = normal(shape, KEY, purpose="reverse", step=i - 1, dtype=F64)
            small = beta * (1 - float(book.bar[i - 1])) / (1 - bar)
            x = x + math.sqrt(beta if variance == "large" else small) * z
        elif last_step == "noisy":
            z = normal(shape, KEY, purpose="reverse", dtype=F64)
            x = x + math.sqrt((1 - bar) / bar) * z
    return x


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("last_step", ["mean", "noisy"])
@torch.no_grad()
def test_all_steps_are_the_published_algorithm(variance: Any, last_step: Any) -> None:
    model = DDPM(WavyNet().double(), "linear", 30)
    expected = textbook_samples(model, (8, 3), variance, last_step)
    actual = model.sample((8, 3), None, KEY, variance=variance, last_step=last_step)
    assert torch.allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 30])
@torch.no_grad()
def test_implicit_steps_are_the_published_ones(n: int, eta: float) -> None:
    """Equation 12 of Song et al. with sigma of equation 16, on the documented times."""
    model, T = DDPM(WavyNet().double(), "cosine", 30), 30
    book = Textbook(model.process.betas)
    times = [30] if n == 1 else [round(30 - j * 29 / (n - 1)) for j in range(n)]
    x = normal((8, 3), KEY, purpose="prior", dtype=F64)
    for i, k in zip(times, [*times[1:], 0], strict=True):
        bar, bar_k = float(book.bar[i]), float(book.bar[k])
        eps = model.eps_net(torch.tensor(i / T, dtype=F64), x)
        x0 = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
        s = eta * math.sqrt((1 - bar_k) / (1 - bar)) * math.sqrt(1 - bar / bar_k)
        z = normal((8, 3), KEY, purpose="reverse", step=k, dtype=F64)
        x = math.sqrt(bar_k) * x0 + math.sqrt(1 - bar_k - s * s) * eps + s * z
    actual = model.sample((8, 3), n, KEY, sampler="ddim", eta=eta)
    assert torch.allclose(actual, x, rtol=1e-9, atol=1e-11)


def test_full_noise_ddim_is_ancestral() -> None:
    model = DDPM(WavyNet(), "linear", 30)
    for n in (None, 7):
        ancestral = model.sample((8, 3), n, KEY)
        assert torch.equal(model.sample((8, 3), n, KEY, sampler="ddim", eta=1.0), ancestral)
        assert not torch.allclose(model.sample((8, 3), n, KEY, sampler="ddim"), ancestral)


def test_clipping_keeps_samples_in_range() -> None:
    wild = DDPM(lambda t, x: -3 * x, "linear", 20)
    for options in ({}, {"sampler": "ddim"}, {"variance": "large"}):
        x = wild.sample((50, 2), 6, KEY, clip=True, **options)
        assert float(x.abs().max()) <= 1
        assert float(wild.sample((50, 2), 6, KEY, **options).abs().max()) > 1
    # Predictions inside of the range are left alone.
    model, _ = exact_model(0.05, "cosine", 20)
    free = model.sample((50, 1), None, KEY)
    assert float(free.abs().max()) < 0.4
    assert torch.allclose(model.sample((50, 1), None, KEY, clip=True), free, atol=2e-6)


# --- ODE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_log_prob_of_gaussian_data(schedule: Any) -> None:
    model, data = exact_model(0.7, schedule, dim=2)
    x = 0.7 * torch.randn(20, 2, dtype=F64)
    truth = data.log_prob(x, 1 / 1000)
    errors = [float((model.log_prob(x, n) - truth).abs().max()) for n in (10, 100)]
    # What is left: steps of the chain's rates inside of the solver's, and alpha(1) > 0.
    assert errors[1] < 1.5e-3
    assert errors[1] < errors[0]
    even = TimeGrid.power(100, 1.0, 1e-3, 1.0)
    assert torch.allclose(model.log_prob(x, even, solver="rk4"), truth, atol=5e-3)


# --- what all calls have in common ---------------------------------------------------------------


def test_compiled_loss_has_no_graph_break() -> None:
    model, x0 = DDPM(WavyNet(), "linear", 50), torch.randn(6, 2)
    compiled = torch.compile(model.mean_loss, fullgraph=True, backend="aot_eager")
    for key in (KEY.to_tensor(), KEY.at(9).to_tensor()):
        value, expected = compiled(x0, key), model.mean_loss(x0, key)
        assert torch.allclose(value, expected, rtol=1e-6)
        grads = [torch.autograd.grad(v, model.eps_net.weight)[0] for v in (value, expected)]
        assert torch.allclose(*grads, rtol=1e-5, atol=1e-7)


def test_schedules() -> None:
    assert torch.equal(DDPM(nn.Identity()).process.betas, DiscreteVP.linear().betas)
    assert torch.equal(DDPM(nn.Identity(), "cosine", 7).process.betas, DiscreteVP.cosine(7).betas)
    ends = [float(DDPM(nn.Identity(), "linear", T).process.log_alphas[-1]) for T in (50, 1000)]
    # The published schedule destroys the data as much at any length.
    assert ends[0] == pytest.approx(ends[1], rel=0.2)
    chain = DiscreteVP.linear(5, 0.1, 0.2)
    assert DDPM(nn.Identity(), chain).num_timesteps == 5
    assert DDPM(nn.Identity(), chain, 5).process is chain


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: DDPM(3), TypeError, r"DDPM: expected eps_net to be callable .* got 3"),
        (lambda m, x: DDPM(m.eps_net, "sine"), ValueError, "expected schedule to be one of"),
        (lambda m, x: DDPM(m.eps_net, "linear", 0), ValueError, "expected 1 <= num_timesteps"),
        (lambda m, x: DDPM(m.eps_net, m.process, 7), ValueError, r"that of the schedule \(12\)"),
        (lambda m, x: m.loss(x.half()), TypeError, "DDPM.loss: expected x0 to be float32"),
        (lambda m, x: m.loss(x / 0), ValueError, "DDPM.loss: expected finite x0, got"),
        (lambda m, x: m.loss(x, 3), TypeError, "expected key to be a NoiseKey"),
        (lambda m, x: m.loss(x, KEY, sample_offset=-1), ValueError, "sample_offset"),
        (lambda m, x: m.mean_loss(x, weight=x), ValueError, r"expected weight of shape \(3,\)"),
        (lambda m, x: m.elbo(x, decoder="exact"), ValueError, "expected decoder to be one of"),
        (lambda m, x: m.elbo(x, variance="medium"), ValueError, "expected variance to be one of"),
        (lambda m, x: m.elbo(x, timesteps=1), ValueError, "expected 2 <= timesteps < 13, got"),
        (lambda m, x: m.elbo(x, timesteps=13), ValueError, "expected 2 <= timesteps < 13, got"),
        (lambda m, x: m.log_prob(x, 2.5), TypeError, "expected a TimeGrid or a number of steps"),
        (lambda m, x: m.log_prob(x, TimeGrid.power(5, 1.0)), ValueError, "from a time > 0"),
        (lambda m, x: m.log_prob(x, TimeGrid.power(5, 0.9, 0.1)), ValueError, r"to 1\.0, got"),
        (lambda m, x: m.log_prob(x, 5, solver="midpoint"), ValueError, "expected solver to be"),
        (lambda m, x: m.sample((3, 2), 13), ValueError, "expected 1 <= num_steps < 13, got"),
        (lambda m, x: m.sample((3, 2), 0), ValueError, "expected 1 <= num_steps < 13, got"),
        (lambda m, x: m.sample(3), TypeError, "expected shape to be a shape"),
        (lambda m, x: m.sample((3, 2), sampler="heun"), ValueError, "expected sampler to be one"),
        (lambda m, x: m.sample((3, 2), eta=0.5), ValueError, "expected eta only with"),
        (lambda m, x: m.sample((3, 2), sampler="ddim", eta=1.5), ValueError, "0 <= eta <= 1"),
        (
            lambda m, x: m.sample((3, 2), sampler="ddim", variance="large"),
            ValueError,
            "variance and last_step only with sampler='ancestral'",
        ),
        (lambda m, x: m.sample((3, 2), last_step="tweedie"), ValueError, "expected last_step"),
        (
            lambda m, x: DDPM(lambda t, x: x[:, :1]).loss(x),
            ValueError,
            r"expected eps_net\(t, x\) to have the shape of x",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(DDPM(WavyNet(), "linear", 12), torch.ones(3, 2))
