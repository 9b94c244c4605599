"""The training step that is measured: its sizes, its networks and data, and one update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import TimeGrid
from diffflow_ext.nets import FourierMLP, UNet

Step = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    """Sizes of a step.

    With a `side`, data are images of one channel and networks are U-Nets of two levels, of
    `width` channels and `depth` blocks; else data have `dim` components and networks are
    perceptrons.
    """

    dim: int = 2
    batch: int = 2000
    num_steps: int = 30
    width: int = 128
    depth: int = 3
    g: float = 1.0
    t_end: float = 1.0
    side: int | None = None

    def grid(self) -> TimeGrid:
        return TimeGrid.power(self.num_steps, self.t_end)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return (self.dim,) if self.side is None else (1, self.side, self.side)

    def network(self) -> nn.Module:
        """A drift or score, drawn from torch's generator."""
        if self.side is None:
            return FourierMLP(self.dim, self.width, self.depth)
        scale = 1000 / self.t_end
        return UNet(
            1, self.side, self.width, (1, 2), self.depth, attention=(), time_scale=scale
        )  # fmt: skip


@dataclass
class Pair:
    """Drift, score and a batch of data, the same for every variant."""

    problem: Problem
    drift: nn.Module = field(init=False)
    score: nn.Module = field(init=False)
    data: Tensor = field(init=False)
    noise: Sequence[Tensor] | None = None

    def draw(self, i: int) -> Tensor:
        """The noise of step i: fresh, or what was given to compare variants."""
        return torch.randn_like(self.data) if self.noise is None else self.noise[i]

    def __post_init__(self) -> None:
        p = self.problem
        torch.manual_seed(0)
        self.drift, self.score = (p.network() for _ in range(2))
        self.data = torch.randn(p.batch, *p.event)

    def double(self) -> Pair:
        """The same in float64, in place."""
        self.drift.double()
        self.score.double()
        self.data = self.data.double()
        return self

    def parameters(self) -> list[nn.Parameter]:
        return [*self.drift.parameters(), *self.score.parameters()]


def update(parameters: Sequence[nn.Parameter], gradients: Callable[[], Any]) -> Step:
    """One call: gradients, then Adam."""
    adam = torch.optim.Adam(parameters, 1e-4)

    def step() -> None:
        adam.zero_grad()
        gradients()
        adam.step()

    return step


def residual(x: Any, x_next: Any, f: Any, s: Any, dt: Any, g: float) -> Any:
    """The backward residual of a step, of torch tensors or jax arrays."""
    return (x - x_next + (f - g**2 * s) * dt) / (g * dt**0.5)
