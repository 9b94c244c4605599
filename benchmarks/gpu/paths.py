"""What the kernels that carry whole paths on a GPU take, as a step and launch by launch.

The two-dimensional problem of benchmarks/speed/steps.py: two perceptrons of width 128, batch 2000,
30 steps. Part of gpu_check.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.engines.fused import paths_cuda, workspace
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.paths import call_or_reason
from diffflow_ext.nets import FourierMLP

Times = Callable[[Callable[[int], Any]], list[float]]

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


def measure_paths(device: str, times: Times, batch: int, num_steps: int = 30) -> dict[str, Any]:
    """Returns milliseconds of a step by engine and rounding, and of each launch."""
    out: dict[str, Any] = {"batch": batch, "num_steps": num_steps}
    for name in ("float32", "tf32", "bfloat16"):
        with rounding(name, device):
            out[name] = {
                "autograd_ms": step_time("autograd", device, times, batch, num_steps),
                "fused_ms": step_time("fused", device, times, batch, num_steps),
            }
            if device == "cuda":
                out[name]["graph"] = graph_time(device, times, batch, num_steps)
                out[name]["launches_ms"] = launch_times(device, times, batch, num_steps, name)
    return out


def problem(device: str, batch: int, num_steps: int) -> tuple[DiffFlowSDE, torch.Tensor, TimeGrid]:
    torch.manual_seed(0)
    sde = DiffFlowSDE(FourierMLP(2), FourierMLP(2)).to(device)
    return sde, torch.randn(batch, 2, device=device), TimeGrid.power(num_steps, t_end=1.0)


def step_time(engine: Any, device: str, times: Times, batch: int, num_steps: int) -> float:
    """An update: loss, gradient, Adam."""
    sde, x0, grid = problem(device, batch, num_steps)
    adam = torch.optim.Adam(sde.parameters())

    def step(i: int) -> None:
        adam.zero_grad(set_to_none=True)
        sde.mean_loss(x0, grid, NoiseKey(0, i), engine=engine).backward()
        adam.step()

    return statistics.median(times(step))


def graph_time(device: str, times: Times, batch: int, num_steps: int) -> dict[str, Any]:
    """The same captured in one graph, with the noise's key in device memory."""
    sde, x0, grid = problem(device, batch, num_steps)
    adam = torch.optim.Adam(sde.parameters(), capturable=True)
    key = NoiseKey(0).to_tensor(device)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        sde.mean_loss(x0, grid, key, engine="fused").backward()
        adam.step()

    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    except (RuntimeError, ValueError) as error:
        return {"captured": False, "why": str(error).splitlines()[0]}
    return {"captured": True, "replay_ms": statistics.median(times(lambda _: graph.replay()))}


def launch_times(
    device: str, times: Times, batch: int, num_steps: int, name: workspace.Rounding
) -> dict[str, float]:
    """Each launch by itself, repeated, and the products behind the last one."""
    sde, x0, grid = problem(device, batch, num_steps)
    p, x0, g = sde._problem("gpu_paths", x0, grid, NoiseKey(0))
    fused = call_or_reason(p, x0, by_name=True)
    assert isinstance(fused, FusedPaths), fused
    run = replace(fused.on_gpu(g, fused.tensors), rounding=name)
    with torch.autocast(device, enabled=False):
        part = paths_cuda.Part(run, x0, 0, keep=True)
        part.gradients(torch.full((batch,), 1 / batch, device=device))
        out = {
            phase: statistics.median(times(lambda _, phase=phase: part.launch(phase)))
            for phase in PHASES
        }
        return out | {"products": statistics.median(times(lambda _: part.sums()))}
