"""The steps that are measured on a GPU, on the CPU: they run, and the exact ones are exact."""

from __future__ import annotations

import torch

from benchmarks.gpu import graphs as gpu_graphs
from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP


def test_the_releases_way_has_the_gradient_of_the_package() -> None:
    nets = [FourierMLP(2, 8, 1).double() for _ in range(2)]
    sde = DiffFlowSDE(nets[0], nets[1], diffusion=gpu_graphs.G)
    x0, grid, key = torch.randn(5, 2, dtype=torch.float64), TimeGrid.power(4, 1.0), NoiseKey(5)
    sde.mean_loss(x0, grid, key).backward()
    params = list(sde.parameters())
    expected = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    noise = [normal((5, 2), key, step=i, dtype=torch.float64) for i in range(4)]
    found = gpu_graphs.release_gradients(nets, params, x0, grid, noise)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_every_step_is_measured() -> None:
    found = gpu_graphs.measure("cpu", gpu_graphs.SMALL)
    names = {"ddpm", "diffflow", "diffflow_kept"}
    names |= {f"{name}_graph" for name in names} | {"release"}
    for one in found.values():
        rows = {key: row for key, row in one.items() if isinstance(row, dict)}
        assert set(rows) == names
        assert all(row["milliseconds"] > 0 for row in rows.values())
    assert len(gpu_graphs.lines(found)) == 2
    broken = {"points": {"batch": 1, "num_steps": 2, "ddpm": {"why": "no"}}}
    assert gpu_graphs.lines(broken) == ["training step, points, batch 1, N = 2: ddpm not (no)"]


def test_what_cannot_be_had_is_named() -> None:
    def build() -> None:
        raise RuntimeError("no such thing\nmore")

    problem = gpu_graphs.SMALL["points"]
    assert gpu_graphs.measured("cpu", problem, build) == {"why": "no such thing"}  # pyright: ignore
