"""Training steps of DiffFlow in plain PyTorch and with torchsde.

Each is written from the mathematics, in the way of computing of the code that it stands for. All
compute the same loss on the same grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import TimeGrid

from .problem import Pair, Problem, Step, residual, update

# --- autograd of the loop ------------------------------------------------------------------------


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
    """The mean loss, whose graph is that of all steps."""
    p, times = pair.problem, pair.problem.grid().times
    lengths, times = (t.to(pair.data.dtype) for t in (times.diff(), times))
    x, cost = pair.data, torch.zeros(())
    f = pair.drift(times[0], x)
    for i in range(p.num_steps):
        x, f, here = step(pair, x, f, times[i + 1], lengths[i], pair.draw(i))
        cost = cost + here
    return (cost + 0.5 * x.square().sum()) / p.batch


# --- the authors' release ------------------------------------------------------------------------


def release(problem: Problem) -> Step:
    """The stochastic adjoint as in the authors' release."""
    pair = Pair(problem)
    return update(pair.parameters(), lambda: set_release_gradients(pair))


def set_release_gradients(pair: Pair) -> None:
    """Sets the gradients of a pair's weights."""
    p, nets = pair.problem, (pair.drift, pair.score)
    release_gradients(nets, pair.data, p.grid(), p.g, pair.draw)


def release_gradients(
    nets: tuple[nn.Module, nn.Module],
    x0: Tensor,
    grid: TimeGrid,
    g: float,
    draw: Callable[[int], Tensor],
) -> None:
    """Sets the gradient of the mean loss, in 12 N forward-equivalents.

    Going forward each step evaluates drift, drift and score, without a graph; going back it does
    so again with one, and takes the vector-Jacobian products of residual and step apart.
    """
    drift, times = nets[0], grid.times.to(x0.device, x0.dtype)
    params = [p for net in nets for p in net.parameters()]
    states = _release_path(nets, x0, grid, g, draw)
    total, slope = x0.new_zeros(sum(p.numel() for p in params)), states[-1] / len(x0)
    for i, dt in reversed(list(enumerate(grid.steps()))):
        x, x_next = (state.detach().requires_grad_() for state in states[i : i + 2])
        cost = _cost(nets, times[i + 1], x, x_next, dt, g)
        by_cost = _grads(cost, [x, x_next, *params], torch.full_like(cost, 1 / len(x0)))
        moved = x + drift(times[i], x) * dt
        by_step = _grads(moved, [x, *params], slope + by_cost[1])
        slope = by_cost[0] + by_step[0]
        for grads in (by_cost[2:], by_step[1:]):
            total += torch.cat([grad.flatten() for grad in grads])
    for p, part in zip(params, total.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p).clone()


@torch.no_grad()
def _release_path(
    nets: tuple[nn.Module, nn.Module],
    x0: Tensor,
    grid: TimeGrid,
    g: float,
    draw: Callable[[int], Tensor],
) -> list[Tensor]:
    """States of a forward path; its cost, which the release computes on the way, is dropped."""
    states, times = [x0], grid.times.to(x0.device, x0.dtype)
    for i, dt in enumerate(grid.steps()):
        x = states[-1]
        x_next = x + nets[0](times[i], x) * dt + g * math.sqrt(dt) * draw(i)
        _cost(nets, times[i + 1], x, x_next, dt, g)
        states.append(x_next)
    return states


def _cost(
    nets: tuple[nn.Module, nn.Module], t: Tensor, x: Tensor, x_next: Tensor, dt: float, g: float
) -> Tensor:
    f, s = (net(t, x_next) for net in nets)
    return 0.5 * residual(x, x_next, f, s, dt, g).square().flatten(1).sum(1)


def _grads(value: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, inputs, cotangent, allow_unused=True)
    pairs = zip(found, inputs, strict=True)
    return [torch.zeros_like(x) if grad is None else grad for grad, x in pairs]


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
        pair = Pair(problem).double()
        path = library.BrownianInterval(
            0.0, float(problem.num_steps), pair.data.shape, dtype=torch.float64, entropy=7
        )
        torchsde_loss(pair, solve, bm=path).backward()
        grads = [p.grad.flatten() for p in pair.drift.parameters() if p.grad is not None]
        found.append(torch.cat(grads))
    return float((found[0] - found[1]).norm() / found[1].norm())
