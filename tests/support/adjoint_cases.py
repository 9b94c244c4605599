"""Networks, a prior and the unrolled loop that tests of the adjoint share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import NoiseKey, TimeGrid, diffflow_loss, diffflow_mean_loss
from diffflow_ext.functional import normal

KEY = NoiseKey(5, 6)
GRID = TimeGrid.power(7, 1.3, t_start=0.1, power=0.7)
EXACT = 1e-10  # of the largest entry: float64 sums of a few thousand terms, with room
#: checkpoint_every and scores_per_call.
Mode = tuple[int, int]
MODES: list[Mode] = [(0, 1), *itertools.product((1, 3, 10), (1, 3))]
ALL_MODES: list[Mode] = [
    *itertools.product((0,), (1, 3)),
    *itertools.product((1, 2, 3, 7, 10), (1, 2, 3, 7, 100)),
]


class Small(nn.Module):
    """A network that is linear neither in x nor in t, with dropout."""

    def __init__(self, dim: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(dim + 1, 8), nn.Linear(8, dim)
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        column = t.expand(x.shape[0]).unsqueeze(1)
        return self.two(self.dropout(torch.tanh(self.one(torch.cat([x, column], 1)))))


class Bent(nn.Module):
    """A density that is not Gaussian: z = a x + b + sin(x)/3, with optional noise in log_prob."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.8, 1.2, 1.5], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.1, -0.3, 0.0], dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def log_prob(self, x: Tensor) -> Tensor:
        z = self.a * x + self.dropout(self.b.expand_as(x)) + x.sin() / 3
        slope = self.a + x.cos() / 3
        return (slope.log() - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1)


class Counted:
    """A network that counts its evaluations."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(t, x)


def parameters(*modules: nn.Module) -> list[Tensor]:
    return [p for module in modules for p in module.parameters()]


def data(samples: int = 5) -> Tensor:
    return torch.randn(samples, 3, dtype=torch.float64)


def unrolled(
    drift: Any,
    score: Any,
    x0: Tensor,
    grid: TimeGrid,
    g: Tensor,
    prior: Any = None,
) -> Tensor:
    """The loss in plain torch: nothing of the package but its noise."""
    t, x, total = grid.times.to(x0.dtype), x0, torch.zeros(x0.shape[0], dtype=x0.dtype)
    f = drift(t[0], x)
    for i in range(grid.num_steps):
        dt = float(grid.times[i + 1] - grid.times[i])
        eps = normal(tuple(x.shape), KEY, step=i, dtype=x.dtype)
        x_next = x + f * dt + g[i] * math.sqrt(dt) * eps
        f_next, s_next = drift(t[i + 1], x_next), score(t[i + 1], x_next)
        delta_b = x - x_next + (f_next - g[i + 1] ** 2 * s_next) * dt
        delta_b = delta_b / (g[i + 1] * math.sqrt(dt))
        total = total + 0.5 * delta_b.flatten(1).square().sum(1)
        x, f = x_next, f_next
    if prior is not None:
        return total - prior.log_prob(x)
    d = x[0].numel()
    return total + 0.5 * x.flatten(1).square().sum(1) + 0.5 * d * math.log(2 * math.pi)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))


def assert_same(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(actual, expected, strict=True):
        if b is None:
            assert a is None or not a.any()
            continue
        assert a is not None
        assert (a - b).abs().max() <= EXACT * b.abs().max()


def check(
    drift: Any,
    score: Any,
    params: list[Tensor],
    *,
    dim: int = 3,
    g: Callable[[Tensor], Tensor] | float = 0.7,
    extra: tuple[Tensor, ...] = (),
    modes: list[Mode] = MODES,
    grid: TimeGrid = GRID,
    prior: Any = None,
) -> None:
    """Value and all gradients, for every way of keeping states, of `loss` and `mean_loss`."""
    x0 = torch.randn(5, dim, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64)
    inputs = [x0, *extra, *params]
    values = g(grid.times) if callable(g) else torch.full_like(grid.times, g)
    expected = unrolled(drift, score, x0, grid, values, prior=prior)
    truth = gradients((weight * expected).sum(), inputs)
    for every, scores in modes:
        options: dict[str, Any] = {
            "diffusion": g, "params": params, "key": KEY, "prior": prior,
            "checkpoint_every": every, "scores_per_call": scores,
        }  # fmt: skip
        loss = diffflow_loss(drift, score, x0, grid, **options)
        assert torch.allclose(loss, expected, rtol=EXACT, atol=0)
        assert_same(gradients((weight * loss).sum(), inputs), truth)
        mean = diffflow_mean_loss(drift, score, x0, grid, weight=weight, **options)
        assert abs(float((mean - (weight * expected).sum()).detach())) < EXACT * float(
            expected.detach().abs().sum()
        )
        assert_same(gradients(mean, inputs), truth)
