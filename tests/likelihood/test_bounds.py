"""log_prob and the importance-weighted bound against closed forms and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import VP

KEY = NoiseKey(17, 4)


def mixture(alpha: float = 1.0, sigma: float = 0.0) -> MixtureSameFamily:
    """Three Gaussians in the plane, shrunk by alpha and blurred by sigma."""
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.2]], dtype=torch.float64)
    scales = torch.tensor([[0.3, 0.5], [0.4, 0.3], [0.6, 0.4]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    blurred = (alpha**2 * scales**2 + sigma**2).sqrt()
    return MixtureSameFamily(Categorical(weights), Independent(Normal(alpha * means, blurred), 1))


def mixture_sde(t_end: float) -> DiffFlowSDE:
    """VP's linear drift, the mixture's exact score, and its exact marginal at the end."""
    process = VP()

    def score(t: Tensor, x: Tensor) -> Tensor:
        blurred = mixture(float(process.alpha(t)), float(process.sigma(t)))
        y = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            log_p = blurred.log_prob(y).sum()
            return torch.autograd.grad(log_p, y, create_graph=x.requires_grad)[0]

    end = torch.tensor(t_end, dtype=torch.float64)
    prior = mixture(float(process.alpha(end)), float(process.sigma(end)))
    return DiffFlowSDE(
        lambda t, x: process.drift_rate(t) * x, score, process.diffusion, prior=prior
    )


def test_log_prob_of_a_mixture_under_a_linear_drift() -> None:
    sde, x = mixture_sde(0.7), mixture().sample((40,))
    exact = mixture().log_prob(x)
    errors = []
    for n in (60, 120):
        grid = TimeGrid.power(n, 0.7, power=0.5)
        errors.append(float((sde.log_prob(x, grid) - exact).abs().max()))
    assert errors[1] < 3e-3
    assert errors[0] / errors[1] > 3  # Heun is of second order
    adaptive = sde.log_prob(x, TimeGrid.from_times([0.0, 0.7]), solver="dopri5",
                            rtol=1e-8, atol=1e-8)  # fmt: skip
    torch.testing.assert_close(adaptive, exact, rtol=0, atol=1e-6)


def test_hutchinson_log_prob_is_unbiased() -> None:
    sde, x = mixture_sde(0.7), mixture().sample((1,)).expand(600, 2).contiguous()
    grid = TimeGrid.power(12, 0.7, power=0.5)
    exact = sde.log_prob(x[:1], grid)
    estimate = sde.log_prob(x, grid, KEY, divergence="hutchinson")
    error = float(estimate.std()) / math.sqrt(len(estimate))
    assert error > 0
    assert abs(float(estimate.mean() - exact)) < 4.5 * error


def test_the_density_of_any_networks_has_mass_one() -> None:
    nets = [FourierMLP(1, width=24, depth=1, time_scale=0.4) for _ in range(2)]
    for parameter in (p for net in nets for p in net.parameters()):
        nn.init.normal_(parameter, std=0.4)
    sde = DiffFlowSDE(*nets, GeometricDiffusion(0.2, 0.4, 0.5)).double()
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_p = sde.log_prob(x[:, None], TimeGrid.power(40, 0.5)).detach()
    assert math.isclose(float(torch.trapezoid(log_p.exp(), x)), 1.0, abs_tol=2e-3)
    assert float((log_p - Normal(0.0, 1.0).log_prob(x)).abs()[abs(x) < 1].max()) > 0.1


# --- importance weighting ------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.slope.to(x.dtype) * x + self.shift.to(x.dtype)


GRID = TimeGrid.from_times([0.0, 0.2, 0.5, 1.0])


def linear_pair() -> DiffFlowSDE:
    return DiffFlowSDE(Linear(-0.4, 0.2), Linear(-0.9, 0.1), GeometricDiffusion(0.6, 0.9, 1.0))


def path_density(sde: DiffFlowSDE, x0: Tensor) -> Tensor:
    """log p(x0) of the discrete reverse chain, a Gaussian, by following mean and variance."""
    g = sde.diffusion(GRID.times)
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i in reversed(range(GRID.num_steps)):
        dt, f, s = GRID.steps()[i], sde.drift, sde.score
        gain = 1 - (f.slope - g[i + 1] ** 2 * s.slope) * dt
        mean = gain * mean - (f.shift - g[i + 1] ** 2 * s.shift) * dt
        variance = gain**2 * variance + g[i + 1] ** 2 * dt
    return Normal(mean, variance.sqrt()).log_prob(x0).sum(1)


def test_bounds_rise_to_the_density_of_the_path_model() -> None:
    sde = linear_pair()
    x0 = 1.2 * torch.randn(300, 2, dtype=torch.float64)
    with torch.no_grad():
        exact = path_density(sde, x0).mean()
        gaps = {
            paths: float(exact - sde.elbo(x0, GRID, KEY, num_paths=paths).mean())
            for paths in (1, 4, 32, 2000)
        }
    assert gaps[1] > gaps[4] > gaps[32] > gaps[2000]
    assert gaps[1] > 0.05
    assert abs(gaps[2000]) < 0.02 * gaps[1] + 2e-3


def test_single_paths_average_to_the_same_bound() -> None:
    sde, x0 = linear_pair(), torch.full((1, 2), 0.7, dtype=torch.float64)
    with torch.no_grad():
        single = sde.elbo(x0.expand(400 * 8, 2).contiguous(), GRID, KEY)
        paths = sde.elbo(x0.expand(400, 2).contiguous(), GRID, KEY, num_paths=8)
    expected = single.reshape(400, 8).logsumexp(1) - math.log(8)
    torch.testing.assert_close(paths, expected, rtol=1e-12, atol=1e-12)


def test_weighted_bound_does_not_depend_on_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    sde, x0 = linear_pair(), torch.randn(7, 2, dtype=torch.float64)
    whole = sde.elbo(x0, GRID, KEY, num_paths=5).detach()
    parts = [
        sde.elbo(x0[:3], GRID, KEY, num_paths=5),
        sde.elbo(x0[3:], GRID, KEY, num_paths=5, sample_offset=3),
    ]
    torch.testing.assert_close(torch.cat(parts).detach(), whole, rtol=1e-13, atol=1e-13)
    monkeypatch.setattr("diffflow_ext.likelihood.bounds.PATHS_PER_CALL", 12)
    with torch.no_grad():
        chunked = sde.elbo(x0, GRID, KEY, num_paths=5)
    torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=1e-13)


def test_gradient_of_the_weighted_bound() -> None:
    """Against finite differences of the same, with the same noise."""
    sde, x0 = linear_pair(), torch.randn(4, 2, dtype=torch.float64)
    slope = sde.score.slope
    sde.elbo(x0, GRID, KEY, num_paths=6).sum().backward()
    assert slope.grad is not None
    values = []
    for shift in (1e-6, -1e-6):
        with torch.no_grad():
            slope += shift
            values.append(float(sde.elbo(x0, GRID, KEY, num_paths=6).sum()))
            slope -= shift
    assert math.isclose(float(slope.grad), (values[0] - values[1]) / 2e-6, rel_tol=1e-6)


def test_bad_arguments() -> None:
    sde, x0 = linear_pair(), torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="num_paths"):
        sde.elbo(x0, GRID, num_paths=0)
    with pytest.raises(TypeError, match="x0"):
        sde.elbo([1.0], GRID, num_paths=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sample_offset"):
        sde.elbo(x0, GRID, sample_offset=-1)
    empty = sde.elbo(x0[:0], GRID, KEY, num_paths=3)
    assert empty.shape == (0,)
