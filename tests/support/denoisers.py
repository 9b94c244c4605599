"""Data whose noise can be predicted exactly: the closed forms that models are tested against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffflow_ext.processes import LinearProcess


def rows(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape () or (B,) beside a state of shape (B, *event)."""
    return values.reshape(values.shape + (1,) * (x.dim() - 1) * values.dim())


@dataclass
class GaussianMixture:
    """Data sum_k w_k N(m_k, s_k^2 I), and what a linear process makes of them."""

    process: LinearProcess
    means: Tensor  # (K, d), float64
    deviations: Tensor  # (K,)
    weights: Tensor  # (K,)

    @classmethod
    def single(cls, process: LinearProcess, deviation: float, dim: int = 1) -> GaussianMixture:
        one = torch.ones(1, dtype=torch.float64)
        return cls(process, torch.zeros(1, dim, dtype=torch.float64), deviation * one, one)

    def marginal(self, t: Tensor) -> torch.distributions.MixtureSameFamily:
        """The law of x_t, t of shape ()."""
        alpha, sigma = self.process.alpha(t.double()), self.process.sigma(t.double())
        spread = (alpha**2 * self.deviations**2 + sigma**2).sqrt()
        parts = torch.distributions.Independent(
            torch.distributions.Normal(
                alpha * self.means, spread[:, None].expand_as(self.means), validate_args=False
            ),
            1,
        )
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(self.weights, validate_args=False), parts
        )

    def log_prob(self, x: Tensor, t: float = 0.0) -> Tensor:
        return self.marginal(torch.tensor(t, dtype=torch.float64)).log_prob(x.double())

    def eps(self, t: Tensor, x: Tensor) -> Tensor:
        """-sigma times the gradient of log p_t: the expected noise."""
        alpha = self.process.alpha(t.double()).reshape(-1, 1)
        sigma = self.process.sigma(t.double()).reshape(-1, 1)
        variance = alpha**2 * self.deviations**2 + sigma**2  # (B or 1, K)
        if len(self.means) == 1:
            return (sigma * (x.double() - alpha * self.means) / variance).to(x.dtype)
        away = x.double()[:, None, :] - alpha[..., None] * self.means  # (B, K, d)
        dim = x.shape[1]
        log_weight = self.weights.log() - 0.5 * dim * variance.log()
        log_weight = log_weight - 0.5 * away.square().sum(2) / variance
        each = away / variance[..., None]
        return (sigma * (log_weight.softmax(1)[..., None] * each).sum(1)).to(x.dtype)


class WavyNet(nn.Module):
    """An arbitrary smooth network of few parameters, elementwise, so that rows never mix."""

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        values = scale * torch.tensor([0.9, -1.2, 0.7, 0.4])
        self.weight = nn.Parameter(values)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        a, b, c, d = self.weight
        return a * x + b * torch.sin(2 * x + rows(t, x)) + c * rows(t, x) + d


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))
