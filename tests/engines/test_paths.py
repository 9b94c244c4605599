"""The two engines behind one interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffflow_ext import GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.engines.adjoint.paths import AdjointPaths
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.paths import PathEngine, engine_choice, path_engine
from diffflow_ext.engines.problem import PathModel, PathProblem, SweepOptions, build_problem
from diffflow_ext.nets import FourierMLP

GRID = TimeGrid.power(6, 1.0)


def problem(**options: Any) -> tuple[PathProblem, Tensor]:
    nets = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    params = [p for net in nets for p in net.parameters()]
    model = PathModel(*nets, GeometricDiffusion(0.3, 0.9), params)
    return build_problem("test", model, torch.randn(9, 2), GRID, key=NoiseKey(3), **options)


def both() -> tuple[list[PathEngine], Tensor]:
    p, x0 = problem()
    engines = [path_engine("test", name, p, x0) for name in ("fused", "autograd")]
    assert [type(engine) for engine in engines] == [FusedPaths, AdjointPaths]
    return engines, x0


def test_forward_paths_of_both_engines() -> None:
    engines, x0 = both()
    states = [torch.full((7, 9, 2), torch.nan) for _ in engines]
    with torch.no_grad():
        for engine, room in zip(engines, states, strict=True):
            last = engine.forward(x0, room)
            assert torch.equal(room[0], x0)
            assert torch.equal(room[-1], last)
            assert torch.equal(engine.forward(x0), last)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


def test_the_choice_of_an_engine() -> None:
    p, x0 = problem()
    assert engine_choice(p, x0) == ("fused", "")
    assert isinstance(path_engine("test", "auto", p, x0), FusedPaths)
    p, x0 = problem(sweeps=SweepOptions(checkpoint_every=0))
    assert engine_choice(p, x0).name == "autograd"
    assert "graph of every step" in engine_choice(p, x0).reason
    assert isinstance(path_engine("test", "auto", p, x0), AdjointPaths)
    with pytest.raises(ValueError, match=r"test: engine='fused' is not possible here: .*every"):
        path_engine("test", "fused", p, x0)
    with pytest.raises(ValueError, match="expected engine to be one of"):
        path_engine("test", "fast", p, x0)  # pyright: ignore


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
