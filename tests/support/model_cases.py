"""Models whose losses, bounds and samples are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from denoisers import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from diffflow_ext import DDPM, DiNof, NoiseKey
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


def exact_model(deviation: float, schedule: Any = "linear", T: int | None = None, dim: int = 1):
    """A model of N(0, deviation^2 I) that predicts the noise exactly."""
    model = DDPM(lambda t, x: x, schedule, T)
    data = GaussianMixture.single(model.process, deviation, dim)
    model.eps_net = data.eps
    return model, data


class Textbook:
    """The quantities of Ho et al., i = 1 ... T, from the betas alone."""

    def __init__(self, betas: Tensor) -> None:
        one = torch.ones(1, dtype=F64)
        self.beta = torch.cat([0 * one, betas])
        self.alpha = 1 - self.beta
        self.bar = self.alpha.cumprod(0)

    def posterior(self, i: int, k: int) -> tuple[float, float, float]:
        """Factors of x_0 and x_i in the mean of q(x_k | x_i, x_0), and its variance."""
        bar_i, bar_k = float(self.bar[i]), float(self.bar[k])
        step = bar_i / bar_k
        of_x0 = math.sqrt(bar_k) * (1 - step) / (1 - bar_i)
        of_x = math.sqrt(step) * (1 - bar_k) / (1 - bar_i)
        return of_x0, of_x, (1 - step) * (1 - bar_k) / (1 - bar_i)


class WavyForward(nn.Module):
    """An arbitrary smooth network for a learned forward process, elementwise."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.8, -0.4]))

    def shift(self, k: int, x0: Tensor) -> Tensor:
        """h_k."""
        a, b, *_ = self.weight
        return a * torch.sin(x0 + k) + b

    def logit(self, k: int, x0: Tensor) -> Tensor:
        """u_k."""
        *_, c, d, e = self.weight
        return c * torch.cos(d * x0 - k) + e

    def forward(self, x0: Tensor) -> Tensor:
        h = [self.shift(k, x0) for k in range(self.count)]
        return torch.cat([*h, *(self.logit(k, x0) for k in range(self.count))], 1)
