"""Training steps of DiffFlow and DDPM on the same networks, as they can be had.

Each variant is one update: noise, loss, gradient, Adam. All of DiffFlow's compute the same loss
on the same grid; only how differs. Those of plain PyTorch are written from the mathematics, in the
way of computing of the code that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import DDPM, DiffFlowSDE, TimeGrid
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
        return UNet(
            1,
            self.side,
            self.width,
            (1, 2),
            self.depth,
            attention=(),
            time_scale=1000 / self.t_end,
        )


@dataclass
class Pair:
    """Drift, score and a batch of data, the same for every variant."""

    problem: Problem
    drift: nn.Module = field(init=False)
    score: nn.Module = field(init=False)
    data: Tensor = field(init=False)
    noise: list[Tensor] | None = None

    def draw(self, i: int) -> Tensor:
        """The noise of step i: fresh, or what was given to compare variants."""
        return torch.randn_like(self.data) if self.noise is None else self.noise[i]

    def __post_init__(self) -> None:
        p = self.problem
        torch.manual_seed(0)
        self.drift, self.score = (p.network() for _ in range(2))
        self.data = torch.randn(p.batch, *p.event)

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


# --- ours ----------------------------------------------------------------------------------------


def ours(problem: Problem, **options: Any) -> Step:
    """DiffFlowSDE with an engine, or with the graph of every step (checkpoint_every=0)."""
    pair = Pair(problem)
    sde, grid = DiffFlowSDE(pair.drift, pair.score, problem.g), problem.grid()
    return update(pair.parameters(), lambda: sde.mean_loss(pair.data, grid, **options).backward())


def in_bfloat16(step: Step) -> Step:
    def cast() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    return cast


def ddpm(problem: Problem, *, fused: bool) -> Step:
    """One time for each sample; fused, each distinct time of the chain is embedded once."""
    net = Pair(problem).score
    # A partial object is not known to be a perceptron, so its loss is torch's.
    model, data = DDPM(net if fused else partial(net)), Pair(problem).data
    return update(list(net.parameters()), lambda: model.mean_loss(data).backward())


# --- plain PyTorch -------------------------------------------------------------------------------


def residual(
    x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: float | Tensor, g: float
) -> Tensor:
    return (x - x_next + (f - g**2 * s) * dt) / (g * dt**0.5)


def graph(problem: Problem) -> Step:
    """Autograd of the loop, the drift evaluated once a state."""
    pair = Pair(problem)
    return update(pair.parameters(), lambda: loop_loss(pair).backward())


def compiled(problem: Problem) -> Step:
    """The same, one step of the loop through torch.compile: seconds to compile."""
    # Code made for other problems would count towards the limit of recompilations.
    torch.compiler.reset()
    pair, one = Pair(problem), torch.compile(one_step)
    return update(pair.parameters(), lambda: loop_loss(pair, one).backward())


def compiled_loop(problem: Problem) -> Step:
    """The same, the whole loop through torch.compile: minutes to compile."""
    torch.compiler.reset()
    pair = Pair(problem)
    loss = torch.compile(partial(loop_loss, pair))
    return update(pair.parameters(), lambda: loss().backward())


def one_step(
    pair: Pair, x: Tensor, f: Tensor, t_next: Tensor, dt: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The next state, the drift there, and the cost of the step."""
    g = pair.problem.g
    x_next = x + f * dt + g * dt**0.5 * noise
    f_next, s_next = pair.drift(t_next, x_next), pair.score(t_next, x_next)
    return x_next, f_next, 0.5 * residual(x, x_next, f_next, s_next, dt, g).square().sum()


def loop_loss(pair: Pair, step: Callable[..., tuple[Tensor, Tensor, Tensor]] = one_step) -> Tensor:
    p, times = pair.problem, pair.problem.grid().times
    lengths, times = (t.to(pair.data.dtype) for t in (times.diff(), times))
    x, cost = pair.data, torch.zeros(())
    f = pair.drift(times[0], x)
    for i in range(p.num_steps):
        x, f, here = step(pair, x, f, times[i + 1], lengths[i], pair.draw(i))
        cost = cost + here
    return (cost + 0.5 * x.square().sum()) / p.batch


def release(problem: Problem) -> Step:
    """The stochastic adjoint as in the authors' release: 12 N forward-equivalents.

    Going forward each step evaluates drift, drift and score, without a graph; going back it does
    so again with one, and takes the vector-Jacobian products of residual and step apart.
    """
    pair = Pair(problem)
    return update(pair.parameters(), lambda: release_gradients(pair))


def release_gradients(pair: Pair) -> None:
    parameters, p = pair.parameters(), pair.problem
    total = torch.zeros(sum(q.numel() for q in parameters), dtype=pair.data.dtype)
    states = walk(pair)
    slope = states[-1] / p.batch
    for i in range(p.num_steps - 1, -1, -1):
        slope = back(pair, states[i], states[i + 1], i, slope, parameters, total)
    first = 0
    for q in parameters:
        q.grad = total[first : first + q.numel()].view_as(q).clone()
        first += q.numel()


@torch.no_grad()
def walk(pair: Pair) -> list[Tensor]:
    """States of a forward path, with its cost, which the release computes on the way."""
    p, times = pair.problem, pair.problem.grid().times.to(pair.data.dtype)
    states, cost = [pair.data], torch.zeros(())
    for i, dt in enumerate(p.grid().steps()):
        x = states[-1]
        x_next = x + pair.drift(times[i], x) * dt + p.g * math.sqrt(dt) * pair.draw(i)
        f, s = pair.drift(times[i + 1], x_next), pair.score(times[i + 1], x_next)
        cost = cost + 0.5 * residual(x, x_next, f, s, dt, p.g).square().sum()
        states.append(x_next)
    return states


def back(
    pair: Pair,
    x: Tensor,
    x_next: Tensor,
    i: int,
    slope: Tensor,
    parameters: Sequence[nn.Parameter],
    total: Tensor,
) -> Tensor:
    """The gradient at state i from that at state i + 1; adds that of the weights to `total`."""
    p, grid = pair.problem, pair.problem.grid()
    times, dt = grid.times.to(pair.data.dtype), grid.steps()[i]
    x, x_next = x.detach().requires_grad_(), x_next.detach().requires_grad_()
    f, s = pair.drift(times[i + 1], x_next), pair.score(times[i + 1], x_next)
    cost = 0.5 * residual(x, x_next, f, s, dt, p.g).square().flatten(1).sum(1)
    by_cost = torch.autograd.grad(
        cost, [x, x_next, *parameters], torch.full_like(cost, 1 / p.batch), allow_unused=True
    )
    moved = x + pair.drift(times[i], x) * dt
    by_step = torch.autograd.grad(moved, [x, *parameters], slope + by_cost[1], allow_unused=True)
    for grads in (by_cost[2:], by_step[1:]):
        total += torch.cat(
            [
                (torch.zeros_like(q) if grad is None else grad).flatten()
                for grad, q in zip(grads, parameters, strict=True)
            ]
        )
    return by_cost[0] + by_step[0]


# --- torchsde ------------------------------------------------------------------------------------


class _Forward(nn.Module):
    """The forward SDE in the time u = i, in which every step of the grid has length 1."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.net, p = pair.drift, pair.problem
        self.times, self.steps = p.grid().times.to(pair.data.dtype), p.grid().steps()
        self.scale = p.g

    def f(self, u: Tensor, x: Tensor) -> Tensor:
        i = min(round(float(u)), len(self.steps) - 1)
        return self.net(self.times[i], x) * self.steps[i]

    def g(self, u: Tensor, x: Tensor) -> Tensor:
        i = min(round(float(u)), len(self.steps) - 1)
        size = self.scale * math.sqrt(self.steps[i])
        return size * torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)


def torchsde_loss(pair: Pair, solve: Callable[..., Any], **options: Any) -> Tensor:
    """The states from torchsde, the residuals outside: its own losses cannot express them."""
    p, times = pair.problem, pair.problem.grid().times.to(pair.data.dtype)
    u = torch.arange(p.num_steps + 1, dtype=pair.data.dtype)
    states = solve(_Forward(pair), pair.data, u, dt=1.0, method="euler", **options)
    cost = 0.5 * states[-1].square().sum()
    for i, dt in enumerate(p.grid().steps()):
        f = pair.drift(times[i + 1], states[i + 1])
        s = pair.score(times[i + 1], states[i + 1])
        cost = cost + 0.5 * residual(states[i], states[i + 1], f, s, dt, p.g).square().sum()
    return cost / p.batch


def torchsde(problem: Problem, *, adjoint: bool) -> Step:
    """torchsde's solver: backpropagation through it, or its adjoint."""
    import torchsde as library

    solve = library.sdeint_adjoint if adjoint else library.sdeint
    pair = Pair(problem)
    return update(pair.parameters(), lambda: torchsde_loss(pair, solve).backward())


def torchsde_gradient_error(problem: Problem) -> float:
    """How far the drift's gradient by torchsde's adjoint is from that through its solver.

    In float64, on the same Brownian path: backpropagation through the solver is exact.
    """
    import torchsde as library

    found = []
    for solve in (library.sdeint_adjoint, library.sdeint):
        pair = Pair(problem)
        pair.drift.double()
        pair.score.double()
        pair.data = pair.data.double()
        path = library.BrownianInterval(
            0.0, float(problem.num_steps), pair.data.shape, dtype=torch.float64, entropy=7
        )
        torchsde_loss(pair, solve, bm=path).backward()
        grads = [p.grad.flatten() for p in pair.drift.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    return float((found[0] - found[1]).norm() / found[1].norm())


# --- jax -----------------------------------------------------------------------------------------


def in_jax(problem: Problem, loss: str) -> Step:
    """The step in one jit, by the name of its loss in jax_variants."""
    from . import jax_steps as jax_variants

    return jax_variants.training_step(problem, getattr(jax_variants, loss))


#: Those that need a `side` of None: their engine or library knows vectors only.
VECTORS_ONLY = (
    *("ddpm_fused", "torchsde", "torchsde_adjoint", "jax", "diffrax"),
    *("fused", "fused_bf16"),
)
#: What a variant needs beside this package; those of jax stand in one file.
NEEDS = {
    "torchsde": ("torchsde",),
    "torchsde_adjoint": ("torchsde",),
    "jax": ("diffrax", "optax"),
    "diffrax": ("diffrax", "optax"),
}
#: Those whose gradient is exact, in float32, and whose networks run in plain PyTorch.
EXACT_TORCH = ("release", "graph", "adjoint")
#: Every variant by name: how to build it, and what it is.
VARIANTS: dict[str, tuple[Callable[[Problem], Step], str]] = {
    "ddpm": (partial(ddpm, fused=False), "DDPM, PyTorch"),
    "ddpm_fused": (partial(ddpm, fused=True), "DDPM, fused"),
    "release": (release, "the authors' adjoint, PyTorch"),
    "torchsde": (partial(torchsde, adjoint=False), "torchsde, sdeint"),
    "torchsde_adjoint": (partial(torchsde, adjoint=True), "torchsde, sdeint_adjoint"),
    "graph": (graph, "autograd of the loop"),
    "graph_bf16": (lambda p: in_bfloat16(graph(p)), "autograd of the loop, bfloat16 autocast"),
    "compiled": (compiled, "autograd of the loop, each step compiled"),
    "compiled_loop": (compiled_loop, "autograd of the loop, compiled as a whole"),
    "jax": (partial(in_jax, loss="scan_loss"), "jax, the loop by `scan`, in one jit"),
    "diffrax": (partial(in_jax, loss="diffrax_loss"), "diffrax, in one jit"),
    "adjoint": (partial(ours, engine="autograd"), "`engine=\"autograd\"`"),
    "fused": (partial(ours, engine="fused"), "`engine=\"fused\"`"),
    "fused_bf16": (lambda p: in_bfloat16(ours(p, engine="fused")), "`engine=\"fused\"`, bfloat16"),
}  # fmt: skip
