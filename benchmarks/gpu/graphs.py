"""What is a training step worth as one CUDA graph, and with its activations kept?

DiffFlow on points with perceptrons and on images with U-Nets in bfloat16, each step with Adam and
a clipped gradient: launched one by one, replayed as a graph, with kept activations, and in the way
of computing of the authors' release; DDPM on the same network beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid, functional
from diffflow_ext.engines import CapturedStep
from diffflow_ext.nets import FourierMLP, UNet

from .speed import milliseconds

G, T_END = 0.5, 1.0


@dataclass(frozen=True)
class Problem:
    """A step to measure.

    Arguments:
        event: The shape of a sample: points (2,) get perceptrons, images (C, S, S) U-Nets.
        batch: Samples.
        num_steps: Steps N of the paths.
        repeats: Steps that are timed.
        kept: Bytes for kept activations.
        base: Channels of the U-Nets at full size.
    """

    event: tuple[int, ...]
    batch: int
    num_steps: int
    repeats: int
    kept: int
    base: int = 64

    @property
    def is_image(self) -> bool:
        """Whether networks are U-Nets, which compute in bfloat16."""
        return len(self.event) == 3

    def net(self, device: str) -> nn.Module:
        """Returns a network with weights of its own."""
        if not self.is_image:
            return FourierMLP(2).to(device)
        net = UNet(self.event[0], self.event[1], self.base, (1, 2, 2), 2, attention=(16,))
        return net.to(device=device, memory_format=torch.channels_last)  # pyright: ignore

    def data(self, device: str) -> Tensor:
        """Returns a batch."""
        return torch.randn(self.batch, *self.event, device=device)

    def grid(self) -> TimeGrid:
        """Returns the times."""
        return TimeGrid.power(self.num_steps, T_END)


#: The size of MNIST, and of the paper's sets of points.
FULL = {
    "points": Problem((2,), 512, 30, repeats=30, kept=2**30),
    "images": Problem((1, 28, 28), 64, 30, repeats=5, kept=2**35),
}
SMALL = {
    "points": Problem((2,), 16, 3, repeats=2, kept=2**24),
    "images": Problem((1, 16, 16), 2, 2, repeats=2, kept=2**26, base=8),
}

Loss = Callable[[Tensor, TimeGrid, Tensor], Tensor]


def measure(device: str, problems: dict[str, Problem]) -> dict[str, Any]:
    """Measures all steps of all problems."""
    return {name: measure_problem(device, problem) for name, problem in problems.items()}


def measure_problem(device: str, problem: Problem) -> dict[str, Any]:
    """Returns milliseconds a step, and how many bytes it takes at its peak."""
    found: dict[str, Any] = {
        "batch": problem.batch, "num_steps": problem.num_steps, "event": list(problem.event),
    }  # fmt: skip
    for name, (model, loss) in losses(device, problem).items():
        for suffix, way in (("", eager), ("_graph", captured)):
            build = partial(way, model, loss, problem, device)
            found[name + suffix] = measured(device, problem, build)
    found["release"] = measured(device, problem, partial(release, problem, device))
    return found


def losses(device: str, problem: Problem) -> dict[str, tuple[nn.Module, Loss]]:
    """Returns each model with its loss."""
    torch.manual_seed(0)
    net = problem.net(device)
    sde = DiffFlowSDE(problem.net(device), problem.net(device), diffusion=G)

    def noise_matching(x0: Tensor, grid: object, key: Tensor) -> Tensor:
        shape, place = (len(x0), *[1] * (x0.dim() - 1)), {"dtype": x0.dtype, "device": x0.device}
        t = torch.special.ndtr(functional.normal(shape, key, purpose="data", **place)).flatten()
        alpha, sigma = torch.cos(1.5 * t), torch.sin(1.5 * t)
        x_t, eps = functional.perturb(x0, alpha_t=alpha, sigma_t=sigma, key=key)
        return (net(t, x_t) - eps).square().mean()

    def path(**options: Any) -> Loss:
        return lambda x0, grid, key: sde.mean_loss(x0, grid, key, **options)

    every = {
        "ddpm": (net, noise_matching),
        "diffflow": (sde, path()),
        "diffflow_kept": (sde, path(activation_memory=problem.kept)),
    }
    return {name: (model, lowered(loss, problem, device)) for name, (model, loss) in every.items()}


def lowered(loss: Loss, problem: Problem, device: str) -> Loss:
    """Returns the loss under autocast, for images."""

    def cast(x0: Tensor, grid: TimeGrid, key: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=problem.is_image):
            return loss(x0, grid, key)

    return cast


def measured(device: str, problem: Problem, build: Callable[[], Callable[[], Any]]) -> Any:
    """Returns the median of a step's milliseconds and its memory, or why it cannot be had."""
    try:
        step = build()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        times = milliseconds(lambda _: step(), device, problem.repeats)
    except (RuntimeError, ValueError) as error:
        return {"why": str(error).splitlines()[0]}
    found = {"milliseconds": statistics.median(times)}
    if device != "cpu":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def eager(model: nn.Module, loss: Loss, problem: Problem, device: str) -> Callable[[], Any]:
    """A step in PyTorch's usual way."""
    adam, x0, grid = torch.optim.Adam(model.parameters()), problem.data(device), problem.grid()
    key = NoiseKey(0).to_tensor(device)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        loss(x0, grid, key).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return step


def captured(model: nn.Module, loss: Loss, problem: Problem, device: str) -> Callable[[], Any]:
    """The same as one graph; on the CPU without."""
    adam, x0, grid = torch.optim.Adam(model.parameters()), problem.data(device), problem.grid()
    whole = CapturedStep(loss, model, adam, NoiseKey(0), clip=1.0, warm_up=2)
    for _ in range(3):
        whole.step(x0, grid)
    if device != "cpu" and whole.num_captures != 1:
        raise RuntimeError(f"expected one capture, got {whole.num_captures}")
    return lambda: whole.step(x0, grid)


# --- the release's way of computing --------------------------------------------------------------


def release(problem: Problem, device: str) -> Callable[[], Any]:
    """A step by :func:`release_gradients`."""
    torch.manual_seed(0)
    nets = problem.net(device), problem.net(device)
    params = [p for net in nets for p in net.parameters()]
    adam, x0, grid = torch.optim.Adam(params), problem.data(device), problem.grid()

    def step() -> None:
        noise = [torch.randn_like(x0) for _ in range(grid.num_steps)]
        with torch.autocast(device, torch.bfloat16, enabled=problem.is_image):
            total = release_gradients(nets, params, x0, grid, noise)
        parts = total.split([p.numel() for p in params])
        for p, part in zip(params, parts, strict=True):
            p.grad = part.view_as(p)
        nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()

    return step


def release_gradients(
    nets: Sequence[nn.Module],
    params: Sequence[Tensor],
    x0: Tensor,
    grid: TimeGrid,
    noise: Sequence[Tensor],
) -> Tensor:
    """Returns the gradient of the mean loss, in 12 N forward-equivalents.

    Going forward each step evaluates drift, drift and score, without a graph; going back it does
    so again with one, and takes the vector-Jacobian products of residual and step apart.
    """
    drift, times = nets[0], grid.times.to(x0.device, x0.dtype)
    states = [x0]
    with torch.no_grad():
        for i, dt in enumerate(grid.steps()):
            x = states[-1]
            x_next = x + drift(times[i], x) * dt + G * math.sqrt(dt) * noise[i]
            _residual(nets, times[i + 1], x, x_next, dt).flatten(1).square().sum(1)
            states.append(x_next)
    total, slope = x0.new_zeros(sum(p.numel() for p in params)), states[-1] / len(x0)
    for i, dt in reversed(list(enumerate(grid.steps()))):
        x, x_next = (state.detach().requires_grad_() for state in states[i : i + 2])
        cost = 0.5 * _residual(nets, times[i + 1], x, x_next, dt).flatten(1).square().sum(1)
        by_cost = _grads(cost, [x, x_next, *params], torch.full_like(cost, 1 / len(x0)))
        moved = x + drift(times[i], x) * dt
        by_step = _grads(moved, [x, *params], slope + by_cost[1])
        slope = by_cost[0] + by_step[0]
        for grads in (by_cost[2:], by_step[1:]):
            total += torch.cat([grad.flatten() for grad in grads])
    return total


def _residual(
    nets: Sequence[nn.Module], t: Tensor, x: Tensor, x_next: Tensor, dt: float
) -> Tensor:
    f, s = (net(t, x_next) for net in nets)
    return (x - x_next + (f - G**2 * s) * dt) / (G * math.sqrt(dt))


def _grads(value: Tensor, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, inputs, cotangent, allow_unused=True)
    return [
        torch.zeros_like(x) if grad is None else grad
        for grad, x in zip(found, inputs, strict=True)
    ]


# --- for a person --------------------------------------------------------------------------------


def lines(found: dict[str, Any]) -> list[str]:
    """Returns a line for each problem."""
    return [
        f"training step, {name}, batch {one['batch']}, N = {one['num_steps']}: "
        + ", ".join(f"{key} {_words(one[key])}" for key in one if isinstance(one[key], dict))
        for name, one in found.items()
    ]


def _words(row: dict[str, Any]) -> str:
    return f"{row['milliseconds']:.2f} ms" if "milliseconds" in row else f"not ({row['why']})"
