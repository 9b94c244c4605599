"""DiffFlow's pair of SDEs that starts as a diffusion, held to Gaussian data."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.nets import FromNoise
from diffflow_ext.processes import ConstantDiffusion, GeometricDiffusion, NoisePath

F64 = torch.float64
SPREAD = 0.7
PATHS = [
    NoisePath(3.0, t_end=0.05),
    NoisePath(0.2, 0.9, 0.5, 2.5),
    NoisePath(2.0, 1.0, t_end=1.0, beta_max=4.0),
]


class ExactNoise(nn.Module):
    """The expected noise in states of data N(0, SPREAD^2)."""

    def __init__(self, path: NoisePath) -> None:
        super().__init__()
        self.path = path

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        sigma = self.path.process.sigma(self.path.unit_time(t))
        factor = sigma / variance(self.path, t)
        return x * (factor if t.dim() == 0 else factor[:, None])


def variance(path: NoisePath, t: Tensor) -> Tensor:
    """That of the process in a time that has no floor."""
    u = (t - path.t_start) / (path.t_end - path.t_start)
    return path.process.alpha(u) ** 2 * SPREAD**2 + path.process.sigma(u) ** 2


def diffusion(path: NoisePath) -> ConstantDiffusion | GeometricDiffusion:
    """The geometric function is of t / t_end, so that of an interval has other ends."""
    assert path.g_end is not None
    if path.g_end == path.g:
        return ConstantDiffusion(path.g)
    rate = math.log(path.g_end / path.g) / (path.t_end - path.t_start)
    first = path.g * math.exp(-rate * path.t_start)
    return GeometricDiffusion(first, path.g_end, path.t_end)


def times(path: NoisePath) -> Tensor:
    return path.t_start + (path.t_end - path.t_start) * torch.linspace(0.01, 0.99, 15, dtype=F64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_sde_has_the_marginals_of_the_linear_process(path: NoisePath) -> None:
    """The variance of dx = a x dt + g dw obeys dv/dt = 2 a v + g^2."""
    t = times(path).requires_grad_()
    v = variance(path, t)
    (expected,) = torch.autograd.grad(v.sum(), t)
    with torch.no_grad():
        p, q = path.drift(t)
        sigma = path.process.sigma(path.unit_time(t))
        g = diffusion(path)(t)
        rate = 2 * (p + q * sigma / v) * v + g * g
    # The module has g in float32.
    torch.testing.assert_close(rate, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_exact_noise_gives_the_score_of_noisy_data(path: NoisePath) -> None:
    x, t = torch.randn(15, 3, dtype=F64), times(path)
    score = FromNoise(ExactNoise(path), path.score)
    torch.testing.assert_close(score(t, x), -x / variance(path, t)[:, None], rtol=1e-10, atol=0)


def test_the_bound_of_exact_noise_is_the_density() -> None:
    path = NoisePath(0.8, t_end=1.0, beta_max=9.0)
    net = ExactNoise(path)
    sde = DiffFlowSDE(FromNoise(net, path.drift), FromNoise(net, path.score), path.g).double()
    x = SPREAD * torch.randn(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    exact = torch.distributions.Normal(0.0, SPREAD).log_prob(x).sum(1).mean()
    gaps = []
    for num_steps in (50, 200):
        bound = sde.elbo(x, TimeGrid.power(num_steps, 1.0), NoiseKey(0)).mean()
        gaps.append(float(exact - bound))
    # Steps of Euler-Maruyama alone are left, and the prior's distance.
    assert 0 < gaps[1] < 0.35 * gaps[0] < 0.1


def test_numbers_of_other_types_become_floats() -> None:
    path = NoisePath(Fraction(1, 5), t_end=np.float64(0.05))  # pyright: ignore[reportArgumentType]
    assert path == NoisePath(0.2, 0.2, t_end=0.05)
    assert path.drift(torch.tensor([0.01]))[0].dtype == torch.float32


def test_factors_are_finite_at_the_data() -> None:
    for path in PATHS:
        for part in (path.drift, path.score):
            p, q = part(torch.tensor(path.t_start))
            assert p.isfinite()
            assert q.isfinite()
            # Before the floor they are those at the floor.
            floor = torch.tensor(path.t_start + 0.5e-4 * (path.t_end - path.t_start))
            torch.testing.assert_close((p, q), part(floor))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"g": 0.0}, "expected g > 0, got 0.0"),
        ({"g_end": -1.0}, "expected g_end > 0, got -1.0"),
        ({"t_start": 0.05}, "expected t_start < t_end, got 0.05 and 0.05"),
        ({"floor": 1.0}, "expected 0 < floor < 1, got 1.0"),
        ({"g": 1e200}, r"expected beta_max >= g\^2 \(t_end - t_start\), got 3.0 < inf"),
        ({"g": 20.0}, r"expected beta_max >= g\^2 \(t_end - t_start\), got 3.0 < 20"),
    ],
)
def test_wrong_values_are_named(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=f"NoisePath: {said}"):
        NoisePath(**{"g": 1.0, **values})
    with pytest.raises(TypeError, match="NoisePath: expected g "):
        NoisePath("1.0")  # pyright: ignore[reportArgumentType]
