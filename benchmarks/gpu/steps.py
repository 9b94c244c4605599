"""What do training steps take on this GPU, as they are and as one CUDA graph?

DiffFlow on points with perceptrons and on images with U-Nets in bfloat16, each step with Adam and
a clipped gradient: launched one by one, replayed as a CUDA graph, with half of the scores in one
call, by the kernels for whole paths, and in the way of computing of the authors' release; DDPM on
the same network beside them. What cannot be had is a row with the reason.
"""

from __future__ import annotations

import contextlib
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid, functional
from diffflow_ext.engines import CapturedStep, Engine
from diffflow_ext.engines.fused import paths_cuda
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.fused.workspace import Rounding
from diffflow_ext.engines.paths import fused_or_reason

from ..speed.problem import Problem
from ..speed.torch_steps import release_gradients
from .bandwidth import milliseconds
from .section import Record

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
#: Problems, and how many steps are timed. On a GPU the two-dimensional problem of
#: benchmarks.speed.steps, and images of the size of MNIST; on the CPU small ones, to see that
#: everything runs.
POINTS = {"cuda": (Problem(), 30), "cpu": (Problem(batch=16, num_steps=3), 2)}
IMAGES = {
    "cuda": (Problem(side=28, batch=64, width=64, depth=2), 5),
    "cpu": (Problem(side=4, batch=2, num_steps=2, width=4, depth=1), 2),
}
#: Batch, and two numbers of steps between which memory grows.
MEMORY = {"cuda": (8192, (64, 512)), "cpu": (64, (4, 8))}
#: By how many states a step memory may grow, by the distance of kept states.
STATES = {1: 1.1, 16: 0.15}
PHASES = ("forward", "residuals", "score", "backward")

Loss = Callable[[Tensor, TimeGrid, Tensor], Tensor]
Build = Callable[[], Callable[[], Any]]


# --- sections ------------------------------------------------------------------------------------


def points(device: str, record: Record) -> None:
    """Steps on points, the fused engine among them."""
    measure(record, device, *POINTS[device])


def images(device: str, record: Record) -> None:
    """Steps on images."""
    measure(record, device, *IMAGES[device])


def paths(device: str, record: Record) -> None:
    """Steps on points by engine and by rounding of products, and single launches."""
    problem, repeats = POINTS[device]
    ways: tuple[tuple[str, Engine, Any], ...] = (
        ("autograd", "autograd", eager),
        ("fused", "fused", eager),
        ("fused_graph", "fused", captured),
    )
    for name in ROUNDINGS:
        about = {"rounding": name, "batch": problem.batch, "num_steps": problem.num_steps}
        with rounding(name, device):
            sde = path_model(device, problem)
            for title, engine, way in ways:
                build = partial(way, sde, partial(sde.mean_loss, engine=engine), problem, device)
                measured(record, {"step": title, **about}, device, repeats, build)
            for phase in (*PHASES, "products") if device != "cpu" else ():
                build = partial(launch, device, problem, name, phase)
                measured(record, {"step": f"launch: {phase}", **about}, device, repeats, build)


def memory(device: str, record: Record) -> None:
    """The peak of one loss and its gradient, and by how many states it grows with each step."""
    batch, (few, many) = MEMORY[device]
    peak(device, batch, few, 1)  # Libraries take their workspaces now.
    for every, most in STATES.items():
        least, largest = (peak(device, batch, steps, every) for steps in (few, many))
        state = batch * POINTS[device][0].dim * 4
        states = (largest - least) / (many - few) / state
        record(
            step=f"checkpoint_every={every}", batch=batch, num_steps=many,
            mebibytes=largest / 2**20, states_a_step=states, states_allowed=most,
            status="skipped" if device == "cpu" else "passed" if states < most else "failed",
            why="the CPU has no counter of its memory" if device == "cpu" else "",
        )  # fmt: skip


# --- measurements --------------------------------------------------------------------------------


def measure(record: Record, device: str, problem: Problem, repeats: int) -> None:
    """Records each way to take a step, and how many of DDPM's the same way it takes."""
    about = {"batch": problem.batch, "num_steps": problem.num_steps}
    of_ddpm: dict[str, float | None] = {}
    every: dict[str, Build] = {}
    for name, (model, loss) in losses(device, problem).items():
        every[name] = partial(eager, model, loss, problem, device)
        every[f"{name}_graph"] = partial(captured, model, loss, problem, device)
    every["release"] = partial(release, problem, device)
    for name, build in every.items():
        graph = "_graph" if name.endswith("_graph") else ""
        took = measured(
            record, {"step": name, **about}, device, repeats, build, of_ddpm.get(graph)
        )
        if name == f"ddpm{graph}":
            of_ddpm[graph] = took


def measured(
    record: Record, about: Mapping[str, Any], device: str, repeats: int, build: Build,
    of_ddpm: float | None = None,
) -> float | None:  # fmt: skip
    """Records the median of a step's milliseconds and its peak, or why it cannot be had."""
    try:
        step = build()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        took = statistics.median(milliseconds(lambda _: step(), device, repeats))
    except ValueError as refused:
        record(**about, status="skipped", why=str(refused).splitlines()[0])
        return None
    except RuntimeError as error:
        if device != "cpu":
            torch.cuda.synchronize()  # An error that stays ends the section.
        record(**about, status="failed", why=str(error).splitlines()[0])
        return None
    found: dict[str, float] = {"milliseconds": took}
    if of_ddpm is not None:
        found["over_ddpm"] = took / of_ddpm
    if device != "cpu":
        found["mebibytes"] = torch.cuda.max_memory_allocated() / 2**20
    record(**about, **found)
    return took


def peak(device: str, batch: int, num_steps: int, every: int) -> int:
    """Returns the most bytes beyond model and batch, 0 on the CPU."""
    problem = Problem(batch=batch, num_steps=num_steps)
    sde, x0 = path_model(device, problem), data(problem, device)
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device != "cpu" else 0
    loss = sde.mean_loss(
        x0, problem.grid(), NoiseKey(0), checkpoint_every=every, engine="autograd"
    )
    loss.backward()
    return torch.cuda.max_memory_allocated() - before if device != "cpu" else 0


# --- models and steps ----------------------------------------------------------------------------


@contextlib.contextmanager
def rounding(name: Rounding, device: str) -> Iterator[None]:
    """Lets torch and the kernels round the factors of products in one way."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def path_model(device: str, problem: Problem) -> DiffFlowSDE:
    torch.manual_seed(0)
    return DiffFlowSDE(*(network(problem, device) for _ in range(2)), diffusion=problem.g)


def launch(device: str, problem: Problem, name: Rounding, phase: str) -> Callable[[], Any]:
    """One launch of the kernels for whole paths, or the products behind the last one."""
    sde, x0 = path_model(device, problem), data(problem, device)
    path_problem, x0 = sde._problem("launch", x0, problem.grid(), NoiseKey(0))
    fused = fused_or_reason(path_problem, x0, by_name=True)
    if not isinstance(fused, FusedPaths):
        raise ValueError(str(fused))
    fused.rounding = name
    run = fused.on_gpu(path_problem.g, fused.tensors)
    with torch.autocast(device, enabled=False):
        part = paths_cuda.Part(run, x0, 0, keep=True)
        part.gradients(torch.full((len(x0),), 1 / len(x0), device=device))

    def call() -> None:
        with torch.autocast(device, enabled=False):
            part.sums() if phase == "products" else part.launch(phase)

    return call


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
        "diffflow": (sde, partial(sde.mean_loss, engine="autograd")),
        "diffflow_batched": (batched, partial(batched.mean_loss, engine="autograd")),
    }
    if problem.side is None:
        every["fused"] = sde, partial(sde.mean_loss, engine="fused")
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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            whole.step(x0, grid)
    if device != "cpu" and whole.num_captures != 1:
        why = " ".join(str(one.message) for one in caught)
        raise RuntimeError(f"expected one capture, got {whole.num_captures}: {why}")
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
