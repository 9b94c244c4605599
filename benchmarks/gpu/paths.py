"""What the kernels that carry whole paths on a GPU take, as a step and launch by launch.

The two-dimensional problem of benchmarks.speed.steps: two perceptrons of width 128, batch 2000,
30 steps. Part of check.py.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from diffflow_ext import DiffFlowSDE, NoiseKey
from diffflow_ext.engines import Engine
from diffflow_ext.engines.fused import paths_cuda, workspace
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.paths import fused_or_reason

from ..speed.problem import Problem
from .graphs import captured, data, eager, measured, network
from .speed import milliseconds

#: A problem, and how many steps are timed.
PROBLEM = {"cuda": (Problem(), 30), "cpu": (Problem(batch=40), 3)}
WAYS: tuple[tuple[Engine, Any], ...] = (("autograd", eager), ("fused", eager), ("fused", captured))
PHASES = ("forward", "residuals", "score", "backward")


@contextlib.contextmanager
def rounding(name: workspace.Rounding, device: str) -> Iterator[None]:
    """Lets torch and the kernels round the factors of products in one way."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure(device: str) -> dict[str, Any]:
    """Returns milliseconds of a step by engine and rounding, and of each launch."""
    problem, repeats = PROBLEM[device]
    out: dict[str, Any] = {"batch": problem.batch, "num_steps": problem.num_steps}
    for name in ("float32", "tf32", "bfloat16"):
        with rounding(name, device):
            sde, part = path_model(device, problem), {}
            for engine, way in WAYS:
                loss = partial(sde.mean_loss, engine=engine)
                build = partial(way, sde, loss, problem, device)
                title = f"{engine}_graph" if way is captured else engine
                part[title] = measured(device, repeats, build)
            if device == "cuda":
                part["launches_ms"] = launch_times(device, problem, repeats, name)
            out[name] = part
    return out


def path_model(device: str, problem: Problem) -> DiffFlowSDE:
    torch.manual_seed(0)
    return DiffFlowSDE(*(network(problem, device) for _ in range(2)), diffusion=problem.g)


def launch_times(
    device: str, problem: Problem, repeats: int, name: workspace.Rounding
) -> dict[str, float]:
    """Each launch by itself, repeated, and the products behind the last one."""
    sde, x0, grid = path_model(device, problem), data(problem, device), problem.grid()
    problem_of_path, x0 = sde._problem("gpu_paths", x0, grid, NoiseKey(0))
    fused = fused_or_reason(problem_of_path, x0, by_name=True)
    assert isinstance(fused, FusedPaths), fused
    run = replace(fused.on_gpu(problem_of_path.g, fused.tensors), rounding=name)
    with torch.autocast(device, enabled=False):
        part = paths_cuda.Part(run, x0, 0, keep=True)
        part.gradients(torch.full((len(x0),), 1 / len(x0), device=device))
        calls = {phase: partial(part.launch, phase) for phase in PHASES}
        calls["products"] = part.sums
        return {
            title: statistics.median(milliseconds(lambda _, c=c: c(), device, repeats))
            for title, c in calls.items()
        }
