"""What is a training step worth as one CUDA graph, or with its scores batched?

DiffFlow on points with perceptrons and on images with U-Nets in bfloat16, each step with Adam and
a clipped gradient: launched one by one, replayed as a CUDA graph, with half of the scores in one
call, and in the way of computing of the authors' release; DDPM on the same network beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid, functional
from diffflow_ext.engines import CapturedStep

from ..speed.problem import Problem
from ..speed.torch_steps import release_gradients
from .speed import milliseconds

#: Problems, and how many steps are timed. On a GPU the size of MNIST, and of the paper's sets of
#: points; on the CPU small ones, to see that everything runs.
PROBLEMS = {
    "cuda": {
        "points": (Problem(batch=512), 30),
        "images": (Problem(side=28, batch=64, width=64, depth=2), 5),
    },
    "cpu": {
        "points": (Problem(batch=16, num_steps=3), 2),
        "images": (Problem(side=4, batch=2, num_steps=2, width=4, depth=1), 2),
    },
}

Loss = Callable[[Tensor, TimeGrid, Tensor], Tensor]


def measure(device: str) -> dict[str, Any]:
    """Returns milliseconds a step, and how many bytes it takes at its peak, of all problems."""
    return {name: measure_problem(device, *one) for name, one in PROBLEMS[device].items()}


def measure_problem(device: str, problem: Problem, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {"batch": problem.batch, "num_steps": problem.num_steps}
    for name, (model, loss) in losses(device, problem).items():
        for suffix, way in (("", eager), ("_graph", captured)):
            build = partial(way, model, loss, problem, device)
            found[name + suffix] = measured(device, repeats, build)
    found["release"] = measured(device, repeats, partial(release, problem, device))
    return found


def network(problem: Problem, device: str) -> nn.Module:
    """Returns a network with weights of its own; U-Nets have their channels last."""
    net = problem.network()
    if problem.side is None:
        return net.to(device)
    return net.to(device=device, memory_format=torch.channels_last)  # pyright: ignore


def data(problem: Problem, device: str) -> Tensor:
    return torch.randn(problem.batch, *problem.event, device=device)


def losses(device: str, problem: Problem) -> dict[str, tuple[nn.Module, Loss]]:
    """Returns each model with its loss."""
    torch.manual_seed(0)
    net, *nets = (network(problem, device) for _ in range(3))
    sde = DiffFlowSDE(*nets, diffusion=problem.g)
    half = max(1, problem.num_steps // 2)
    batched = DiffFlowSDE(*nets, diffusion=problem.g, scores_per_call=half)
    every: dict[str, tuple[nn.Module, Loss]] = {
        "ddpm": (net, partial(noise_matching, net)),
        "diffflow": (sde, sde.mean_loss),
        "diffflow_batched": (batched, batched.mean_loss),
    }
    return {name: (model, lowered(loss, problem, device)) for name, (model, loss) in every.items()}


def noise_matching(net: nn.Module, x0: Tensor, grid: object, key: Tensor) -> Tensor:
    """The loss of DDPM's kind, at one time for each sample."""
    shape, like = (len(x0), *[1] * (x0.dim() - 1)), {"dtype": x0.dtype, "device": x0.device}
    t = torch.special.ndtr(functional.normal(shape, key, purpose="data", **like)).flatten()
    alpha, sigma = torch.cos(1.5 * t), torch.sin(1.5 * t)
    x_t, eps = functional.perturb(x0, alpha_t=alpha, sigma_t=sigma, key=key)
    return (net(t, x_t) - eps).square().mean()


def lowered(loss: Loss, problem: Problem, device: str) -> Loss:
    """Returns the loss under autocast, for images."""

    def cast(x0: Tensor, grid: TimeGrid, key: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=problem.side is not None):
            return loss(x0, grid, key)

    return cast


def measured(device: str, repeats: int, build: Callable[[], Callable[[], Any]]) -> Any:
    """Returns the median of a step's milliseconds and its memory, or why it cannot be had."""
    try:
        step = build()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        times = milliseconds(lambda _: step(), device, repeats)
    except (RuntimeError, ValueError) as error:
        return {"why": str(error).splitlines()[0]}
    found = {"milliseconds": statistics.median(times)}
    if device != "cpu":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def eager(model: nn.Module, loss: Loss, problem: Problem, device: str) -> Callable[[], Any]:
    """A step in PyTorch's usual way."""
    adam, x0, grid = torch.optim.Adam(model.parameters()), data(problem, device), problem.grid()
    key = NoiseKey(0).to_tensor(device)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        loss(x0, grid, key).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return step


def captured(model: nn.Module, loss: Loss, problem: Problem, device: str) -> Callable[[], Any]:
    """The same as one graph; on the CPU without."""
    adam, x0, grid = torch.optim.Adam(model.parameters()), data(problem, device), problem.grid()
    whole = CapturedStep(loss, model, adam, NoiseKey(0), clip=1.0, warm_up=2)
    for _ in range(3):
        whole.step(x0, grid)
    if device != "cpu" and whole.num_captures != 1:
        raise RuntimeError(f"expected one capture, got {whole.num_captures}")
    return lambda: whole.step(x0, grid)


def release(problem: Problem, device: str) -> Callable[[], Any]:
    """A step in the way of computing of the authors' release."""
    torch.manual_seed(0)
    nets = network(problem, device), network(problem, device)
    params = [p for net in nets for p in net.parameters()]
    adam, x0, grid = torch.optim.Adam(params), data(problem, device), problem.grid()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=problem.side is not None):
            release_gradients(nets, x0, grid, problem.g, lambda _: torch.randn_like(x0))
        nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()

    return step
