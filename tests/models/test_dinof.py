"""DiNof against closed forms: Gaussians and mixtures, whose scores and flows are exact."""

from __future__ import annotations

import copy
import io
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import zuko
from denoisers import GaussianMixture, WavyNet, standard_error
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from diffflow_ext import DiNof, NoiseKey, TimeGrid
from diffflow_ext.flows import StandardNormal
from diffflow_ext.functional import affine_step, normal, reverse_step
from diffflow_ext.processes import VE, VP, DiscreteVP, LinearProcess, SubVP

KEY = NoiseKey(5, 2)
SIGMAS = 4.5  # standard errors: one in 150,000 fails by chance, and the noise is fixed
F64 = torch.float64
PROCESSES: dict[str, LinearProcess] = {
    "vp": VP(), "subvp": SubVP(), "ve": VE(0.01, 20.0), "chain": DiscreteVP.cosine(50)
}  # fmt: skip
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def at(fn: Any, t: float) -> float:
    return float(fn(torch.tensor(t, dtype=F64)))


def gaussian_model(
    process: LinearProcess, deviation: float, t_cutoff: float, dim: int = 1
) -> tuple[DiNof, GaussianMixture]:
    """Exact noise, and the exact Gaussian for the flow."""
    data = GaussianMixture.single(process, deviation, dim)
    flow = data.marginal(torch.tensor(t_cutoff, dtype=F64))
    spread = flow.component_distribution.base_dist.scale[0]
    flow = Independent(Normal(torch.zeros_like(spread), spread), 1)
    return DiNof(data.eps, flow, process, t_cutoff), data


def two_peaks(process: LinearProcess) -> GaussianMixture:
    return GaussianMixture(
        process,
        torch.tensor([[-1.2], [0.8]], dtype=F64),
        torch.tensor([0.15, 0.3], dtype=F64),
        torch.tensor([0.3, 0.7], dtype=F64),
    )


class Gaussian(nn.Module):
    """A trainable flow: N(loc, scale^2 I)."""

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(scale)))

    def law(self) -> Independent:
        return Independent(Normal(self.loc, self.log_scale.exp()), 1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.law().log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.law().sample(torch.Size((n,)))


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


def test_the_exact_flow_is_where_the_gradient_vanishes() -> None:
    process, n = VE(0.01, 20.0), 50_000
    spread = math.sqrt(0.49 + at(process.sigma, 0.6) ** 2)
    x0 = 0.7 * normal((n, 2), NoiseKey(1))
    for factor, expected in ((1.0, 0.0), (2.0, 0.75)):
        flow = Gaussian(2, factor * spread)
        DiNof(WavyNet(), flow, process).flow_loss(x0, KEY).mean().backward()
        # d/d log s of log s + x^2 / 2 s^2 is 1 - E x^2 / s^2.
        grad = flow.log_scale.grad
        assert grad is not None
        assert float((grad - expected).abs().max()) < SIGMAS * math.sqrt(2 / n) / factor**2


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


def test_times_are_uniform_up_to_the_cutoff() -> None:
    seen = []

    def net(t: Tensor, x: Tensor) -> Tensor:
        seen.append(t)
        return x

    DiNof(net, None, "vp", 0.6).score_loss(torch.zeros(20_000, 1), KEY)
    (t,) = seen
    assert t.shape == (20_000,)
    assert t.dtype == torch.float32
    assert 1e-3 <= float(t.min()) < 1.2e-3
    assert 0.5998 < float(t.max()) <= 0.6
    u = ((t - 1e-3) / 0.599).sort().values
    steps = torch.arange(20_000) / 20_000
    assert float((u - steps).abs().max()) < 2.2 / math.sqrt(20_000)  # Kolmogorov, 1 in 10,000


def test_gradients_are_those_of_the_sum() -> None:
    x0 = torch.randn(5, 2, dtype=F64)

    def value(weight: Tensor, x: Tensor) -> Tensor:
        def net(t: Tensor, z: Tensor) -> Tensor:
            return torch.sin(weight[0] * z + weight[1] * t[:, None]) + weight[2]

        model = DiNof(net, None, "subvp", loss_weight="likelihood")
        return model.score_loss(x, KEY) + model.flow_loss(x, KEY)

    weight = torch.tensor([0.4, -1.0, 0.2], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (weight, x0.requires_grad_()))


def test_mean_loss_and_weights() -> None:
    model, x0, weight = DiNof(WavyNet(), Gaussian(2)), torch.randn(6, 2), torch.rand(6)
    both = model.score_loss(x0, KEY) + model.flow_loss(x0, KEY)
    assert torch.allclose(model.mean_loss(x0, KEY), both.mean())
    assert torch.equal(model(x0, KEY), model.mean_loss(x0, KEY))
    assert torch.allclose(model.mean_loss(x0, KEY, weight=weight), (weight * both).sum())


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


@pytest.mark.parametrize("process", [VP(), SubVP(), VE()])
@torch.no_grad()
def test_em_is_the_reverse_step_of_the_package(process: LinearProcess) -> None:
    model = DiNof(WavyNet().double(), None, process, 0.5)
    grid = TimeGrid.power(6, 0.5, 0.01)
    scale = at(process.sigma, 0.5) if isinstance(process, VE) else process.prior_scale
    x = scale * normal((7, 3), KEY, purpose="prior", dtype=F64)
    for i, (t, t_next) in reversed(list(enumerate(pairwise(grid.times.tolist())))):
        s = model.score(t_next, x)
        f = at(process.drift_rate, t_next) * x
        g = at(process.diffusion, t_next)
        x = reverse_step(x, f, s, dt=t_next - t, g_next=g, key=KEY, step=i)
    actual = model.sample((7, 3), grid, KEY, sampler="em", corrector_steps=0, last_step="noisy")
    assert torch.allclose(actual, x, rtol=1e-9, atol=1e-10)


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


@each_process
@pytest.mark.parametrize("sampler", ["em", "reverse_diffusion", "ode"])
def test_samples_of_gaussian_data_have_its_variance(process: LinearProcess, sampler: Any) -> None:
    model, data = gaussian_model(process, 0.7, 0.6)
    n = 3000
    x = model.sample((n, 1), None if sampler != "ode" else 60, KEY, sampler=sampler)
    truth = data.marginal(torch.tensor(model.t_min, dtype=F64)).variance
    # Steps of 0.001 leave about half a percent of the standard deviation; in 20-fold growing
    # noise they leave more.
    room = 0.03 if isinstance(process, VE) else 0.015
    assert float(x.std()) == pytest.approx(
        math.sqrt(float(truth)), rel=room + SIGMAS / math.sqrt(2 * n)
    )


@pytest.mark.parametrize("sampler", ["auto", "ode"])
@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0)], ids=["vp", "ve"])
def test_samples_of_a_mixture_have_its_law(process: LinearProcess, sampler: Any) -> None:
    """The exact mixture stands for the flow, as a distribution of torch without a latent."""
    data = two_peaks(process)
    flow = data.marginal(torch.tensor(0.6, dtype=F64))
    model = DiNof(data.eps, flow, process, 0.6)
    n = 4000
    x = model.sample((n, 1), 200, KEY, sampler=sampler)[:, 0].double().sort().values
    law = data.marginal(torch.tensor(model.t_min, dtype=F64))
    parts = law.component_distribution.base_dist
    cdf = (data.weights * Normal(parts.loc[:, 0], parts.scale[:, 0]).cdf(x[:, None])).sum(1)
    distance = float((cdf - (torch.arange(n) + 0.5) / n).abs().max())
    # Kolmogorov's 1 in 10,000, and what 200 steps leave.
    assert distance < 2.2 / math.sqrt(n) + 0.01


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


# --- density -------------------------------------------------------------------------------------


@each_process
def test_log_prob_of_gaussian_data(process: LinearProcess) -> None:
    model, data = gaussian_model(process, 0.7, 0.6, dim=2)
    x = 0.7 * torch.randn(20, 2, dtype=F64)
    truth = data.log_prob(x, model.t_min)
    errors = [float((model.log_prob(x, n) - truth).abs().max()) for n in (10, 80)]
    assert errors[1] < 2e-3  # the 50 rates of the chain jump inside of steps
    if not isinstance(process, DiscreteVP):
        assert errors[1] < errors[0] / 30  # Heun's order 2, eight times
        assert torch.allclose(model.log_prob(x, 40, solver="rk4"), truth, atol=1e-5)
        assert torch.allclose(model.log_prob(x, solver="dopri5"), truth, atol=1e-3)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(0.01, 20.0)], ids=["vp", "subvp", "ve"])
@pytest.mark.parametrize("t_cutoff", [0.3, 1.0])
def test_log_prob_of_a_mixture(process: LinearProcess, t_cutoff: float) -> None:
    data = two_peaks(process)
    flow = data.marginal(torch.tensor(t_cutoff, dtype=F64))
    model = DiNof(data.eps, flow, process, t_cutoff)
    x = torch.linspace(-2, 2, 21, dtype=F64)[:, None]
    truth = data.log_prob(x, model.t_min)
    steps = round(30 + 120 * t_cutoff)
    assert torch.allclose(model.log_prob(x, steps, solver="rk4"), truth, atol=2e-4)
    # Another density at the noise end is another model.
    moved = DiNof(data.eps, StandardNormal(2.0), process, t_cutoff)
    assert float((moved.log_prob(x, 30) - truth).abs().max()) > 0.01


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0)], ids=["vp", "ve"])
def test_density_with_a_flow_integrates_to_one(process: LinearProcess) -> None:
    """A spline flow and a network that nobody trained, which fit neither data nor each other."""
    flow = zuko.flows.NSF(1, transforms=2, hidden_features=(16,)).double()
    for p in flow.parameters():
        p.data.add_(0.1 * torch.randn_like(p))

    def net(t: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(x) + 0.2 * torch.sin(2 * x + t)

    model = DiNof(net, flow, process, 0.6)
    # Close together where the density is narrow, and far out in its tails.
    u = torch.linspace(-7.8, 7.8, 4001, dtype=F64)
    points = 0.05 * torch.sinh(u)
    density = model.log_prob(points[:, None], 100, solver="rk4").exp()
    cdf = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(density, points)])
    assert float(cdf[-1]) == pytest.approx(1.0, abs=1e-3)
    # The density is that of samples of the ODE.
    x = model.sample((4000, 1), 100, KEY, sampler="ode", solver="rk4")[:, 0].sort().values
    above = torch.searchsorted(points, x)
    part = (x - points[above - 1]) / (points[above] - points[above - 1])
    at_x = torch.lerp(cdf[above - 1], cdf[above], part)
    empirical = (torch.arange(4000) + 0.5) / 4000
    assert float((at_x - empirical).abs().max()) < 2.2 / math.sqrt(4000)


def test_probes_of_a_diagonal_jacobian_are_exact() -> None:
    model, _ = gaussian_model(VP(), 0.7, 0.6, dim=6)
    model.eps_net = WavyNet().double()
    x = torch.randn(4, 6, dtype=F64)
    exact = model.log_prob(x, 6, divergence="exact")
    # The network is elementwise, and the squares of random signs are 1.
    for key in (KEY, KEY.at(9)):
        probed = model.log_prob(x, 6, key, divergence="hutchinson")
        assert torch.allclose(probed, exact, rtol=1e-9)


# --- what all calls have in common ---------------------------------------------------------------

CALLS: dict[str, Any] = {
    "score_loss": lambda m, x, **on: m.score_loss(x, KEY, **on),
    "flow_loss": lambda m, x, **on: m.flow_loss(x, KEY, **on),
    "log_prob": lambda m, x, **on: m.log_prob(x, 5, KEY, **on),
    "em": lambda m, x, **on: m.sample(
        tuple(x.shape), 4, KEY, sampler="em", last_step="tweedie", **on
    ),
    "reverse": lambda m, x, **on: m.sample(
        tuple(x.shape), 4, KEY, sampler="reverse_diffusion", corrector_steps=1, **on
    ),
    "ode": lambda m, x, **on: m.sample(tuple(x.shape), 4, KEY, sampler="ode", **on),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each_call
@pytest.mark.parametrize("name", ["vp", "ve"])
@torch.no_grad()
def test_results_do_not_depend_on_how_a_batch_is_split(call: Any, name: Any) -> None:
    model, x = DiNof(WavyNet(), None, name), torch.randn(50, 4)
    whole = call(model, x)
    parts = [call(model, x[a:b], sample_offset=a) for a, b in ((0, 1), (1, 30), (30, 50))]
    assert torch.equal(torch.cat(parts), whole)


@torch.no_grad()
def test_samples_through_a_spline_flow_follow_their_index() -> None:
    model = DiNof(WavyNet(), zuko.flows.NSF(3, transforms=1, hidden_features=(8,)), "ve")
    whole = model.sample((9, 3), 4, KEY)
    parts = [model.sample((b - a, 3), 4, KEY, sample_offset=a) for a, b in ((0, 4), (4, 9))]
    # The flow's matrix products may round by the size of a batch.
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


@each_call
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("event", [(), (3,), (2, 4, 4)])
@torch.no_grad()
def test_shapes_and_dtypes(call: Any, event: tuple[int, ...], dtype: torch.dtype) -> None:
    model = DiNof(WavyNet().to(dtype))
    for batch in (5, 0):
        value = call(model, torch.randn(batch, *event).to(dtype))
        assert value.shape in ((batch, *event), (batch,))
        assert value.dtype == dtype
        assert value.isfinite().all()


@each_call
def test_networks_in_bfloat16(call: Any) -> None:
    net, x = WavyNet(), torch.randn(20, 4)
    value = call(DiNof(lambda t, x: net(t, x).bfloat16()), x).detach()
    exact = call(DiNof(net), x).detach()
    assert value.dtype == torch.float32
    # Predictions of size 1 are right to 2^-9; four steps divide them by sigma.
    assert torch.allclose(value, exact, rtol=0.05, atol=0.05)


def test_default_keys_come_from_torch() -> None:
    model, x = DiNof(WavyNet()), torch.randn(5, 2)
    for call in (model.score_loss, model.flow_loss, lambda x: model.sample(tuple(x.shape), 3)):
        torch.manual_seed(3)
        first, second = call(x), call(x)
        torch.manual_seed(3)
        assert torch.equal(call(x), first)
        assert not torch.equal(first, second)


@torch.no_grad()
def test_a_key_may_be_a_tensor() -> None:
    model, x = DiNof(WavyNet(), None, "ve"), torch.randn(5, 2)
    for call in (
        lambda key: model.score_loss(x, key),
        lambda key: model.flow_loss(x, key),
        lambda key: model.sample((5, 2), 3, key),
    ):
        assert torch.equal(call(KEY.to_tensor()), call(KEY))


def test_module_behaviour() -> None:
    model = DiNof(WavyNet(), zuko.flows.NSF(2, transforms=1, hidden_features=(8,)), SubVP())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = DiNof(WavyNet(1.0), zuko.flows.NSF(2, transforms=1, hidden_features=(8,)), SubVP())
    other.load_state_dict(torch.load(file))
    x0 = torch.randn(4, 2)
    assert torch.equal(other.mean_loss(x0, KEY), model.mean_loss(x0, KEY))
    clone = copy.deepcopy(model).double()
    assert clone.sample((3, 2), 2).dtype == F64
    assert clone.log_prob(x0.double(), 2).dtype == F64
    parts = [set(model.score_parameters()), set(model.flow_parameters())]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(model.parameters())


def test_defaults_of_processes() -> None:
    assert DiNof(WavyNet()).process == VP()
    assert [DiNof(WavyNet(), None, p).t_min for p in ("vp", "subvp", "ve")] == [1e-3, 1e-3, 1e-5]
    ve = VE(sigma_max=7.0)
    for cutoff, scale in ((1.0, 7.0), (0.6, at(ve.sigma, 0.6))):
        prior = DiNof(WavyNet(), None, ve, cutoff).prior
        assert isinstance(prior, StandardNormal)
        assert prior.scale == scale


def test_score_takes_one_time_or_many() -> None:
    model, x = DiNof(WavyNet()), torch.randn(4, 2, 3)
    one = model.score(0.4, x)
    assert torch.equal(model.score(torch.tensor(0.4), x), one)
    assert torch.allclose(model.score(torch.full((4,), 0.4), x), one, rtol=1e-6)
    assert torch.allclose(one, -model.eps_net(torch.tensor(0.4), x) / at(VP().sigma, 0.4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: DiNof(3), TypeError, r"DiNof: expected eps_net to be callable .* got 3"),
        (lambda m, x: DiNof(m.eps_net, 3), TypeError, "FlowPrior: expected a flow"),
        (lambda m, x: DiNof(m.eps_net, None, "edm"), ValueError, "expected one of"),
        (lambda m, x: DiNof(m.eps_net, None, "vp", 1.1), ValueError, "t_cutoff <= 1.0"),
        (lambda m, x: DiNof(m.eps_net, None, "vp", 1e-3), ValueError, "0 < t_min < t_cutoff"),
        (lambda m, x: DiNof(m.eps_net, None, "vp", 0.6, 0.0), ValueError, "got t_min=0.0"),
        (lambda m, x: DiNof(m.eps_net, loss_weight="g"), ValueError, "expected loss_weight to be"),
        (lambda m, x: m.score_loss(x.half()), TypeError, "score_loss: expected x0 to be float32"),
        (lambda m, x: m.flow_loss(x / 0), ValueError, "flow_loss: expected finite x0, got"),
        (lambda m, x: m.mean_loss(3), TypeError, "expected x0 to be a tensor"),
        (lambda m, x: m.score_loss(x, 3), TypeError, "expected key to be a NoiseKey"),
        (lambda m, x: m.flow_loss(x, sample_offset=-1), ValueError, "sample_offset"),
        (lambda m, x: m.mean_loss(x, weight=x), ValueError, r"expected weight of shape \(3,\)"),
        (lambda m, x: m.log_prob(x, "5"), TypeError, "expected a TimeGrid or a number of steps"),
        (lambda m, x: m.log_prob(x, TimeGrid.power(5, 1.0, 0.1)), ValueError, "to 0.6, got"),
        (lambda m, x: m.sample((3, 2), TimeGrid.power(5, 0.6)), ValueError, "from a time > 0"),
        (lambda m, x: m.sample((3, 2), 0), ValueError, "num_steps=0"),
        (lambda m, x: m.sample(3), TypeError, "expected shape to be a shape"),
        (lambda m, x: m.sample((3, 2), 4, sampler="pc"), ValueError, "expected sampler to be one"),
        (lambda m, x: m.sample((3, 2), 4, snr=0.0), ValueError, "expected 0 < snr <= 1e.100, got 0.0"),
        (lambda m, x: m.sample((3, 2), 4, last_step="x"), ValueError, "expected last_step to be"),
        (
            lambda m, x: m.sample((3, 2), 4, sampler="ode", corrector_steps=1),
            ValueError,
            "expected corrector_steps=0 for sampler='ode', got 1",
        ),
        (
            lambda m, x: m.sample((3, 2), 4, sampler="ode", solver="em"),
            ValueError,
            "expected solver to be one of",
        ),
        (
            lambda m, x: DiNof(lambda t, x: x[:, :1]).score_loss(x),
            ValueError,
            r"expected eps_net\(t, x\) to have the shape of x",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(DiNof(WavyNet()), torch.ones(3, 2))


@pytest.mark.parametrize("cutoff", [0.6, 0.8])
def test_the_default_prior_of_ve_has_the_noise_of_the_cutoff(cutoff: float) -> None:
    """With the exact score of N(0, 1) data, samples have their spread: no jump at the cutoff."""
    process = VE()

    def eps(t: Tensor, x: Tensor) -> Tensor:
        sigma = process.sigma(t).reshape(-1, *(1,) * (x.dim() - 1))
        return sigma * x / (1 + sigma**2)

    model = DiNof(eps, None, "ve", t_cutoff=cutoff)
    x = model.sample((4000, 2), 200, NoiseKey(3), sampler="ode")
    # N(0, sigma^2) in the place of N(0, 1 + sigma^2) leaves a little to be wished.
    assert abs(float(x.std()) - 1) < 0.2
    assert DiNof(eps, None, "ve", t_cutoff=1.0).prior.scale == process.prior_scale


def test_arguments_that_a_sampler_does_not_take_are_refused() -> None:
    model = DiNof(lambda t, x: x, None, "vp")
    with pytest.raises(ValueError, match="corrector_steps"):
        model.sample((2, 2), 5, sampler="ode", corrector_steps=2)
    with pytest.raises(ValueError, match="solver"):
        model.sample((2, 2), 5, solver="nonsense")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model.mean_loss(x, KEY),
        lambda model, x: model.log_prob(x, 3),
        lambda model, x: model.sample(tuple(x.shape), 3, KEY),
        lambda model, x: model.sample(tuple(x.shape), 3, KEY, sampler="ode"),
    ],
)
def test_a_network_that_writes_into_its_arguments_is_refused(call: Any) -> None:
    for net in (lambda t, x: x.mul_(2), lambda t, x: x + t.mul_(2).sum()):
        with pytest.raises(RuntimeError, match=r"modified x or t in place|in-place operation"):
            call(DiNof(net), torch.ones(3, 2))


def test_there_is_no_score_without_noise() -> None:
    with pytest.raises(ValueError, match="expected t > 0"):
        DiNof(WavyNet()).score(0.0, torch.ones(3, 2))


def test_steps_may_be_integers_of_numpy_and_a_process_no_object() -> None:
    model, x = DiNof(WavyNet()), torch.ones(3, 2)
    assert torch.equal(model.log_prob(x, np.int64(4)), model.log_prob(x, 4))  # pyright: ignore
    with pytest.raises(TypeError, match="process as a name"):
        DiNof(WavyNet(), process=object())  # pyright: ignore[reportArgumentType]


def test_evaluation_stays_out_of_compiled_graphs() -> None:
    model, x = DiNof(WavyNet()), torch.randn(3, 2)
    calls = [lambda: model.log_prob(x, 3), lambda: model.sample((3, 2), 3, KEY)]
    for call in calls:
        expected = call()
        assert torch.equal(torch.compile(call, backend="eager")(), expected)
