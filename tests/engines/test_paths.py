"""The two engines behind one interface."""

from __future__ import annotations

import torch

from diffflow_ext import GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.engines.adjoint.paths import AdjointPaths
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.paths import path_engine
from diffflow_ext.engines.problem import PathModel, build_problem
from diffflow_ext.nets import FourierMLP

GRID = TimeGrid.power(6, 1.0)


def test_forward_paths_of_both_engines() -> None:
    nets = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    model = PathModel(
        *nets, GeometricDiffusion(0.3, 0.9), [p for n in nets for p in n.parameters()]
    )
    p, x0 = build_problem("test", model, torch.randn(9, 2), GRID, key=NoiseKey(3))
    engines = [path_engine("test", name, p, x0) for name in ("fused", "autograd")]
    assert [type(engine) for engine in engines] == [FusedPaths, AdjointPaths]
    assert isinstance(path_engine("test", "auto", p, x0), FusedPaths)
    states = [torch.full((7, 9, 2), torch.nan) for _ in engines]
    with torch.no_grad():
        for engine, room in zip(engines, states, strict=True):
            last = engine.forward(x0, room)
            assert torch.equal(room[0], x0)
            assert torch.equal(room[-1], last)
            assert torch.equal(engine.forward(x0), last)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


def test_a_problem_carries_g_once() -> None:
    level = torch.tensor(0.5, requires_grad=True)
    model = PathModel(torch.neg, torch.neg, lambda t: level * (1 + t))  # pyright: ignore
    p, _ = build_problem("test", model, torch.randn(3, 2), GRID)
    assert p.learned_g
    assert p.g_values == p.g.tolist()
    assert torch.autograd.grad(p.g.sum(), level)[0] == (1 + GRID.times.float()).sum()
    with torch.no_grad():
        p, _ = build_problem("test", model, torch.randn(3, 2), GRID)
    assert not p.learned_g
