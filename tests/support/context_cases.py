"""Networks with a context that tests share, and Gaussians that depend on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

F64 = torch.float64


class Told(nn.Module):
    """A network that is linear neither in x, nor in t, nor in its context."""

    def __init__(self, dim: int = 3, context_dim: int = 2) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(dim + 1 + context_dim, 8), nn.Linear(8, dim)
        self.double()

    def forward(self, t: Tensor, x: Tensor, context: Any) -> Tensor:
        c = context if isinstance(context, Tensor) else context["c"]
        column = t.expand(x.shape[0]).unsqueeze(1)
        value = self.two(torch.tanh(self.one(torch.cat([x, column, c], 1))))
        if not isinstance(context, Tensor):
            value = value * (1 + context["label"])[:, None]
        return value


def bound_to(net: Callable[..., Tensor], context: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of t and x alone, for loops in plain torch."""
    return lambda t, x: net(t, x, context)


class GaussianGiven:
    """x | c ~ N(m(c), s(c)^2 I), m and s known, through x_t = alpha x + sigma eps."""

    def __init__(self, process: Any) -> None:
        self.process = process

    @staticmethod
    def mean(c: Tensor) -> Tensor:
        return torch.cat([2 * c, c.sin()], 1)

    @staticmethod
    def scale(c: Tensor) -> Tensor:
        return (0.5 * c).exp()

    def law(self, t: float | Tensor, c: Tensor) -> Independent:
        """The marginal at time t."""
        t = torch.as_tensor(t, dtype=F64)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        spread = (alpha * self.scale(c)).square() + sigma.square()
        mean = alpha * self.mean(c)
        return Independent(Normal(mean, spread.sqrt().expand_as(mean)), 1)

    def eps(self, t: Tensor, x: Tensor, c: Tensor) -> Tensor:
        """The best prediction of the noise, -sigma times the score."""
        base: Any = self.law(t, c).base_dist
        return self.process.sigma(t) * (x - base.loc) / base.scale.square()


class LazyGaussian(nn.Module):
    """The marginal at a time as a flow of a context, called as those of zuko are."""

    def __init__(self, data: GaussianGiven, t: float) -> None:
        super().__init__()
        self.data, self.t = data, t

    def forward(self, context: Tensor) -> Independent:
        return self.data.law(self.t, context)
