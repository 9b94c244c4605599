"""NFDM against closed forms of Gaussian data, quadrature and its formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from denoisers import WavyNet, standard_error
from densities import mass
from model_cases import F64, KEY, SIGMAS, WavyForward
from nfdm_cases import (
    FORWARDS,
    MEAN,
    SPREAD,
    drift,
    exact,
    gaussian,
    linear,
    predicted,
    squared_g,
    wavy,
)
from torch import Tensor, nn
from torch.func import functional_call

from diffflow_ext import NFDM, TimeGrid
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import VP, LogSNR

GOLDEN = (math.sqrt(5) - 1) / 2
each_forward = pytest.mark.parametrize("learned", [False, True], ids=["linear", "learned"])


# --- the bound -----------------------------------------------------------------------------------


def rate_by_hand(model: NFDM, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """|B(x0) - B(x0_hat)|^2 / (2 g^2) of one sample, shape (1, *event)."""
    mean, scale = gaussian(model, t, x0)
    x = (mean + scale * eps).detach()
    drifts = []
    for data in (x0, predicted(model, t, x).detach()):
        f, score = drift(model, t, x, data)
        drifts.append(f - 0.5 * squared_g(model, t) * score)
    return (drifts[0] - drifts[1]).square().sum() / (2 * squared_g(model, t))


def ends_by_hand(process: LogSNR, x0: Tensor) -> Tensor:
    """KL(q(x_1 | x_0) | N(0, I)) - E log p(x_0 | x_{t=0}), for one sample."""
    alpha, sigma = linear(process, torch.tensor([0.0, 1.0], dtype=F64))
    unit = torch.distributions.Normal(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    end = torch.distributions.Normal(alpha[1] * x0, sigma[1].expand_as(x0))
    decoder = torch.distributions.Normal(0 * x0, sigma[0] / alpha[0])
    return (torch.distributions.kl_divergence(end, unit) + decoder.entropy()).sum()


@each_forward
@pytest.mark.parametrize("event", [(3,), (2, 2, 2)])
def test_loss_is_the_bound_at_the_documented_times(learned: bool, event: Any) -> None:
    model, x0 = wavy(learned), torch.randn(9, *event, dtype=F64)
    loss = model.loss(x0, KEY, sample_offset=5).detach()
    # One uniform of the stream for the batch; the golden ratio spreads the samples' times.
    first = torch.special.ndtr(normal((1, 1), KEY, purpose="grid", step=1, dtype=F64))[0, 0]
    t = (first + GOLDEN * torch.arange(5, 14, dtype=F64)) % 1.0
    eps = normal(x0.shape, KEY, purpose="dsm", sample_offset=5, dtype=F64)
    for i in range(9):
        x = x0[i : i + 1]
        expected = rate_by_hand(model, t[i], x, eps[i : i + 1]) + ends_by_hand(model.process, x)
        assert float(loss[i]) == pytest.approx(float(expected.detach()), rel=1e-8)


@each_forward
def test_elbo_is_the_mean_of_the_bound_over_strata(learned: bool) -> None:
    model, x0 = wavy(learned), torch.randn(4, 2, dtype=F64)
    elbo = model.elbo(x0, KEY, timesteps=3, sample_offset=2).detach()
    u = normal((4, 3), KEY, purpose="grid", step=1, sample_offset=2, dtype=F64)
    t = (torch.special.ndtr(u) + torch.arange(3)) / 3
    noise = [
        normal((4, 2), KEY, purpose="dsm", step=j, sample_offset=2, dtype=F64) for j in range(3)
    ]
    for i in range(4):
        x = x0[i : i + 1]
        rates = [rate_by_hand(model, t[i, j], x, noise[j][i : i + 1]) for j in range(3)]
        expected = torch.stack(rates).mean() + ends_by_hand(model.process, x)
        assert -float(elbo[i]) == pytest.approx(float(expected.detach()), rel=1e-8)


# --- Gaussian data with the exact prediction -----------------------------------------------------


def gap(model: NFDM) -> float:
    r"""The bound less the entropy, by quadrature.

    With m = A x_0 + c, the ratio A^2 / s^2 falls at the rate rho, and the posterior variance V,
    the integral of A^2 V (rho - g^2 / s^2)^2 / (8 g^2), summed over dimensions: 0 at
    g^2 = rho s^2. A factor e^p of that g^2 multiplies its rate by cosh^2(p / 2).
    """
    t = ((torch.arange(4000, dtype=F64) + 0.5) / 4000)[:, None].requires_grad_()
    shift, scale = gaussian(model, t, torch.zeros(2, dtype=F64))
    factor = gaussian(model, t, torch.ones(2, dtype=F64))[0] - shift
    log_ratio = 2 * (factor / scale).log()
    rho = -torch.cat(
        [torch.autograd.grad(column.sum(), t, retain_graph=True)[0] for column in log_ratio.T], 1
    )
    g2 = squared_g(model, t)
    variance = SPREAD**2 * scale**2 / (factor**2 * SPREAD**2 + scale**2)
    rate = factor**2 * variance * (rho - g2 / scale**2) ** 2 / (8 * g2)
    return float(rate.detach().sum(1).mean())


def data(count: int) -> Tensor:
    return MEAN + SPREAD * torch.randn(count, 2, dtype=F64)


@torch.no_grad()
def test_the_bound_of_gaussian_data_is_their_entropy() -> None:
    """For each sample it is -log p; noise at both ends leaves e^-12 / S^2."""
    x = data(20_000)
    density = torch.distributions.Normal(MEAN, SPREAD).log_prob(x).sum(1)
    over = density - exact("linear").elbo(x, KEY, timesteps=100)
    assert standard_error(over) < 0.012
    assert abs(float(over.mean())) < SIGMAS * standard_error(over) + 1e-4


@pytest.mark.parametrize(
    ("forward", "volatility", "least", "error"),
    [
        ("moving", 0.0, 0.0, 1e-9),
        ("moving", 0.5, 0.4, 3e-3),
        ("moving", -0.5, 0.4, 3e-3),
        ("affine", 0.0, 0.05, 0.03),
    ],
)
def test_other_paths_and_g_add_a_known_gap(
    forward: str, volatility: float, least: float, error: float
) -> None:
    model, x = exact(forward, volatility), data(4000)
    more = gap(model)
    assert more >= least
    with torch.no_grad():  # With the same noise, most of the scatter falls out.
        over = exact("linear").elbo(x, KEY) - model.elbo(x, KEY)
    assert standard_error(over) < error
    assert abs(float(over.mean()) - more) < SIGMAS * standard_error(over) + 1e-9


def test_the_gap_of_another_g_is_that_of_the_rate() -> None:
    """For the linear path all of the rate grows by cosh^2(p / 2)."""
    t = (torch.arange(4000, dtype=F64)[:, None] + 0.5) / 4000
    model, p = exact("moving", 0.5), 0.5
    alpha, sigma = linear(model.process, t)
    rate = 24.0 * alpha**2 * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) / 2
    expected = (math.cosh(p / 2) ** 2 - 1) * float(rate.sum(1).mean())
    assert gap(model) == pytest.approx(expected, rel=1e-9)


# --- density of the ODE --------------------------------------------------------------------------


@pytest.mark.parametrize("forward", FORWARDS)
def test_log_prob_of_gaussian_data(forward: str) -> None:
    """Affine paths have the marginals of the data: z below stays as it is."""
    model, x = exact(forward), data(10)
    spread = (SPREAD**2 + math.exp(-12.0)).sqrt()
    z, (alpha, sigma) = (x - MEAN) / spread, linear(model.process, torch.ones((), dtype=F64))
    last = (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    law = torch.distributions.Normal(0 * MEAN, 1 + 0 * MEAN)
    expected = (law.log_prob(alpha * MEAN + last * z) + (last / spread).log()).sum(1)
    errors = [
        float((model.log_prob(x, n, solver="rk4") - expected).detach().abs().max())
        for n in (50, 100)
    ]
    assert errors[1] < 1e-6
    # The solver is of fourth order.
    assert errors[1] < errors[0] / 12


@each_forward
def test_log_prob_is_a_density(learned: bool) -> None:
    model = wavy(learned, LogSNR(4.0, -4.0))
    total = mass(lambda x: model.log_prob(x, 40, solver="rk4"), 1, 4000, half=20.0)
    assert total == pytest.approx(1.0, abs=1e-6)


@each_forward
def test_probability_flow_is_the_velocity_of_the_prediction(learned: bool) -> None:
    model, x = wavy(learned), torch.randn(5, 3, dtype=F64)
    flow = model.probability_flow()
    for t in (torch.tensor(s, dtype=F64) for s in (0.1, 0.6)):
        c_x, factor = flow.coefficients(float(t))
        found = c_x * x + factor * flow.nets[0](t, x)
        expected, _ = drift(model, t, x, predicted(model, t, x).detach())
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


# --- gradients -----------------------------------------------------------------------------------


@each_forward
def test_gradients_are_those_of_the_loss(learned: bool) -> None:
    model = wavy(learned)
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == (3 if learned else 1)
    x0 = torch.randn(5, 2, dtype=F64, requires_grad=True)

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, values, strict=True)), (x, KEY))

    leaves = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(loss, (x0, *leaves))
    assert torch.autograd.gradgradcheck(loss, (x0, *leaves))
    grads = torch.autograd.grad(loss(x0, *leaves), leaves)
    assert all(grad.abs().min() > 1e-6 for grad in grads)


def test_fused_loss_is_that_of_autograd() -> None:
    net, x0 = FourierMLP(2, 32, 2, output_scale=1.7), torch.randn(60, 2)
    model, results = NFDM(net), []
    for engine in ("fused", "autograd"):
        loss = model.loss(x0, KEY, engine=engine)  # pyright: ignore[reportArgumentType]
        grads = torch.autograd.grad(loss.mean(), list(net.parameters()))
        results.append((loss.detach(), torch.cat([grad.flatten() for grad in grads])))
    for found, expected in zip(*results, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert torch.equal(model.loss(x0, KEY), results[0][0])


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", FORWARDS)
@torch.no_grad()
def test_many_steps_without_noise_map_the_prior_to_the_data(forward: str) -> None:
    z, model = normal((50, 2), KEY, purpose="prior", dtype=F64), exact(forward)
    errors = [
        float((model.sample((50, 2), n, KEY, 0.0) - MEAN - SPREAD * z).abs().max())
        for n in (200, 800)
    ]
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 2.5


@pytest.mark.parametrize("forward", FORWARDS)
@torch.no_grad()
def test_samples_have_the_moments_of_the_data(forward: str) -> None:
    """With the trained noise, and at the rate 1 / steps."""
    n, model, excess = 10_000, exact(forward), []
    for steps in (50, 200):
        z = (model.sample((n, 2), steps, KEY) - MEAN) / SPREAD
        assert float(z.mean(0).abs().max()) < SIGMAS / math.sqrt(n)
        excess.append(z.var(0) - 1)
    assert -0.1 < float(excess[1].min()) < float(excess[1].max()) < -0.02
    limit = excess[1] - (excess[0] - excess[1]) / 3
    assert float(limit.abs().max()) < 1.4 * SIGMAS * math.sqrt(2 / n)


@torch.no_grad()
def test_clipping_keeps_predictions_in_range() -> None:
    for forward in (None, WavyForward()):
        wild = NFDM(lambda t, x: -3 * x, forward)
        assert float(wild.sample((50, 2), 6, KEY, clip=True).abs().max()) <= 1
        assert float(wild.sample((50, 2), 6, KEY).abs().max()) > 1
    tame = NFDM(lambda t, x: x)
    tame.net = lambda t, x: (tame.process.alpha(t) * x - 0.3) / tame.process.sigma(t)
    both = [tame.sample((50, 2), 6, KEY, clip=clip) for clip in (False, True)]
    assert torch.equal(*both)


# --- what is given -------------------------------------------------------------------------------


def test_defaults_are_those_of_a_variational_diffusion() -> None:
    model = NFDM(nn.Identity())
    assert model.process == LogSNR(12.0, -5.0)
    assert list(model.state_dict()) == ["log_snr"]
    learned = NFDM(nn.Identity(), nn.Linear(2, 4))
    assert "volatility" in dict(learned.named_parameters())
    t = torch.rand(5, dtype=F64)
    assert torch.allclose(learned.squared_g(t), learned.process.diffusion(t).square())


@each_forward
def test_compiled_loss_has_no_graph_break(learned: bool) -> None:
    model, x0 = wavy(learned).float(), torch.randn(6, 2)
    compiled = torch.compile(model.mean_loss, fullgraph=True, backend="aot_eager")
    for key in (KEY.to_tensor(), KEY.at(9).to_tensor()):
        torch.testing.assert_close(compiled(x0, key), model.mean_loss(x0, key))


def test_autocast_leaves_what_shapes_the_path_in_float32() -> None:
    forward_net, dtypes = nn.Linear(2, 8), []
    forward_net.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    net, x0 = FourierMLP(2, 16, 1), torch.randn(200, 2)
    net.output.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    model = NFDM(net, forward_net)
    exact_value = model.mean_loss(x0, KEY).detach()
    with torch.autocast("cpu", torch.bfloat16):
        value = model.mean_loss(x0, KEY).detach()
    kinds = [torch.float32, torch.bfloat16, torch.float32]
    assert dtypes == [torch.float32] * 3 + kinds
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact_value), rel=0.02)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: NFDM(3), TypeError, r"NFDM: expected net to be callable as net\(t, x\)"),
        (lambda m, x: NFDM(m.net, 3), TypeError, r"forward_net to be callable .*\(x0\), got 3"),
        (lambda m, x: NFDM(m.net, None, VP()), TypeError, "expected process as a LogSNR, got VP"),
        (lambda m, x: NFDM(m.net, m.net.weight), TypeError, "forward_net to be callable"),
        (
            lambda m, x: NFDM(m.net, nn.Linear(2, 6)).loss(x),
            ValueError,
            r"forward_net\(x0\) of shape \(3, 2 K 2\) for x0 of shape \(3, 2\), .* \(3, 6\)",
        ),
        (
            lambda m, x: NFDM(lambda t, x: x[:, :1], m.forward_process.net).loss(x),
            ValueError,
            r"NFDM.loss: expected net\(t, x\) to have the shape of x",
        ),
        (lambda m, x: m.loss(x.half()), TypeError, "NFDM.loss: expected x0 to be float32"),
        (lambda m, x: m.loss(x / 0), ValueError, "NFDM.loss: expected finite x0, got"),
        (lambda m, x: m.loss(x, 3), TypeError, "expected key to be a NoiseKey"),
        (lambda m, x: m.loss(x, KEY, sample_offset=-1), ValueError, "sample_offset"),
        (
            lambda m, x: m.loss(x, engine="fused"),
            ValueError,
            "engine='fused' .* a forward_net",
        ),
        (
            lambda m, x: NFDM(m.net).loss(x, engine="fused"),
            ValueError,
            "not possible here: net: no network with perceptron_at",
        ),
        (lambda m, x: m.loss(x, engine="fast"), ValueError, "expected engine to be one of"),
        (lambda m, x: NFDM(m.net).loss(x, engine="fast"), ValueError, "expected engine to be one"),
        (lambda m, x: m.mean_loss(x, weight=x), ValueError, r"expected weight of shape \(3,\)"),
        (lambda m, x: m.elbo(x, sample_offset=-1), ValueError, "NFDM.elbo: .*sample_offset"),
        (
            lambda m, x: m.sample((3, 2), sample_offset=-1),
            ValueError,
            "NFDM.sample: .*sample_offset",
        ),
        (
            lambda m, x: m.elbo(x.expand(2**19, 3, 2)[:, 0], timesteps=2**23),
            ValueError,
            "NFDM.elbo: timesteps=8388608: expected to need at most",
        ),
        (lambda m, x: m.elbo(x, timesteps=0), ValueError, "expected 1 <= timesteps"),
        (lambda m, x: m.elbo(x, timesteps=2.5), TypeError, "timesteps"),
        (lambda m, x: m.log_prob(x, 0), ValueError, "num_steps"),
        (lambda m, x: m.log_prob(x, 2.5), TypeError, "a number of steps, got 2.5"),
        (lambda m, x: m.log_prob(x, TimeGrid.power(5, 0.9)), ValueError, "from 0 to 1.0, got"),
        (lambda m, x: m.log_prob(x, TimeGrid.power(5, 1.0, 0.1)), ValueError, "from 0 to 1.0"),
        (lambda m, x: m.log_prob(x, 5, solver="midpoint"), ValueError, "expected solver to be"),
        (lambda m, x: m.sample((3, 2), 0), ValueError, "num_steps"),
        (lambda m, x: m.sample((3, 2), 2.5), TypeError, "a number of steps, got 2.5"),
        (lambda m, x: NFDM(m.net, straightness=-1.0), ValueError, "expected straightness >= 0"),
        (
            lambda m, x: NFDM(m.net, straightness=1.0).loss(x, engine="fused"),
            ValueError,
            "engine='fused' .* straightness",
        ),
        (lambda m, x: m.sample(3), TypeError, "expected shape to be a shape"),
        (lambda m, x: m.sample((3, 2), 5, KEY, -0.1), ValueError, "stochasticity >= 0, got -0.1"),
        (lambda m, x: m.sample((3, 2), 5, KEY, math.nan), ValueError, "stochasticity to be finit"),
        (lambda m, x: m.sample((3, 2), clip=1), TypeError, "expected clip to be"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(NFDM(WavyNet(), WavyForward()), torch.ones(3, 2))


def test_g_has_the_dtype_and_device_of_the_networks() -> None:
    model = NFDM(FourierMLP(2, 8).double(), nn.Linear(2, 8).double())
    assert model.volatility.dtype == F64
    assert model.sample((3, 2), 2, KEY).dtype == F64
    meta = NFDM(FourierMLP(2, 8).to("meta"), nn.Linear(2, 8, device="meta"))
    assert meta.volatility.is_meta


def test_a_learned_process_has_noise_that_float32_can_tell_from_nothing() -> None:
    with pytest.raises(ValueError, match=r"process\.start <= 24 with a forward_net, .* got 30"):
        NFDM(WavyNet(), WavyForward(), LogSNR(30.0))
    assert NFDM(WavyNet(), None, LogSNR(30.0)).process.start == 30.0
    plain = NFDM(FourierMLP(2, 8), None, LogSNR(24.0))
    zero = nn.Linear(2, 8)
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    learned, x = NFDM(plain.net, zero, LogSNR(24.0)), torch.randn(500, 2)
    bounds = [float(m.loss(x, KEY).detach().double().mean()) for m in (plain, learned)]
    assert bounds[1] == pytest.approx(bounds[0], abs=0.01)
