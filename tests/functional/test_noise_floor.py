"""Residuals near the smallest noise that is allowed: finite and right above it, refused below."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffflow_ext import (
    ConstantDiffusion,
    DiffFlowSDE,
    GeometricDiffusion,
    NoiseKey,
    TimeGrid,
    functional,
)
from diffflow_ext.functional.residual import NOISE_FLOORS

F32, F64 = torch.float32, torch.float64
#: Relative to the sum of the magnitudes of all terms, as the docstring of the op promises.
RELATIVE = 1e-5
#: The promised size of data: M sqrt(d) <= 1e4.
SIZE = 1e4


def smallest(dtype: torch.dtype) -> tuple[float, float]:
    """The smallest g and g sqrt(dt), above the bounds by a rounding of float32."""
    g, noise = NOISE_FLOORS[dtype]
    return g * (1 + 1e-6), noise * (1 + 1e-6)


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """Float32 arguments between the floor and 1e3, data of sizes up to what is promised."""
    low_g, low = smallest(F32)
    g = 10 ** draw(st.floats(math.log10(low_g), 3))
    shortest = max((low / g) ** 2, 1e-35)
    dt = 10 ** draw(st.floats(math.log10(shortest), max(math.log10(shortest), 3)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)))
    size = 10 ** draw(st.floats(-6, math.log10(SIZE / shape[1] ** 0.5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x, z, f, s = ((2 * torch.rand(shape, generator=generator) - 1) * size for _ in range(4))
    x_next = x + z * draw(st.sampled_from([0.0, 1e-7, g * math.sqrt(dt) / size, 1.0]))
    f, s = f / max(dt, 1.0), s / max(g * g * dt, 1.0)
    rows = {"x": x, "x_next": x_next.clamp(-size, size), "f_next": f, "s_next": s}
    return {**rows, "dt": dt, "g": g}


def truth(problem: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All results in float64 from the formulas, and the same of the terms' magnitudes."""
    x, x_next, f, s = (problem[n].double() for n in ("x", "x_next", "f_next", "s_next"))
    dt, g = (torch.tensor(problem[n]).double() for n in ("dt", "g"))
    noise = g * dt.sqrt()
    delta = (x - x_next + (f - g * g * s) * dt) / noise
    size = (x.abs() + x_next.abs() + (f.abs() + g * g * s.abs()) * dt) / noise
    along = 2 * noise * s
    values = {
        "residual": delta, "cost": 0.5 * delta.square().sum(1), "x": delta / noise,
        "f_next": delta * dt / noise, "s_next": -delta * noise,
        "g": -(delta * (delta + along) / g).sum(),
    }  # fmt: skip
    sizes = {
        "residual": size, "cost": 0.5 * size.square().sum(1), "x": size / noise,
        "f_next": size * dt / noise, "s_next": size * noise,
        "g": (size * (size + along.abs()) / g).sum(),
    }  # fmt: skip
    return values, sizes


def computed(problem: dict[str, Any]) -> dict[str, Tensor]:
    leaves = {n: problem[n].clone().requires_grad_() for n in ("x", "x_next", "f_next", "s_next")}
    g = torch.tensor(problem["g"], requires_grad=True)
    cost = functional.residual_cost(**leaves, dt=problem["dt"], g_next=g)
    cost.sum().backward()
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    assert torch.equal(grads.pop("x_next"), -grads["x"])
    with torch.no_grad():
        delta = functional.backward_residual(**leaves, dt=problem["dt"], g_next=g)
    return {"residual": delta, "cost": cost.detach(), "g": g.grad, **grads}


@given(problems())
def test_above_the_floor_results_are_finite_and_right(problem: dict[str, Any]) -> None:
    values, sizes = truth(problem)
    for name, value in computed(problem).items():
        assert value.isfinite().all(), name
        error = (value.double() - values[name]).abs()
        # Where a result is subnormal, its last bit is all there is.
        assert bool((error <= RELATIVE * sizes[name] + 1e-37).all()), name


@pytest.mark.parametrize("corner", ["g", "noise"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_largest_data_at_the_floor_is_finite(dtype: torch.dtype, corner: str) -> None:
    low_g, low = smallest(dtype)
    g = torch.tensor(low_g if corner == "g" else 1.0, dtype=dtype, requires_grad=True)
    dt = (low / float(g.detach())) ** 2
    x = torch.full((1, 4), SIZE / 2, dtype=dtype, requires_grad=True)
    f, s = x.detach() / dt if dt > 1 else x.detach(), x.detach()
    cost = functional.residual_cost(x, -x, f, -s, dt=dt, g_next=g)
    cost.sum().backward()
    for value in (cost, x.grad, g.grad):
        assert value is not None
        assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("op", [functional.backward_residual, functional.residual_cost])
def test_below_the_floor_is_refused(op: Any, dtype: torch.dtype) -> None:
    low_g, low = NOISE_FLOORS[dtype]
    x = torch.ones(2, 3, dtype=dtype)
    for g, dt in ((low_g * 0.99, 1e9), (1.0, (0.99 * low) ** 2), (1e-5, (0.99 * low / 1e-5) ** 2)):
        for value in (g, torch.tensor(g, dtype=dtype)):
            with pytest.raises(ValueError, match=rf"{op.__name__}: expected g >= .* float64"):
                op(x, x, x, x, dt=max(dt, torch.finfo(dtype).tiny), g_next=value)


def zero(t: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("diffusion", "times"),
    [
        (1e-10, [0.0, 1e6]),
        (ConstantDiffusion(1e-5), [0.0, 1e-11, 1.0]),
        (GeometricDiffusion(1.0, 1e-12), [0.0, 0.5, 1.0]),
    ],
)
def test_losses_name_the_step_below_the_floor(diffusion: Any, times: list[float]) -> None:
    sde, grid = DiffFlowSDE(zero, zero, diffusion), TimeGrid.from_times(times)
    step = len(times) - 2 if isinstance(diffusion, GeometricDiffusion) else 0
    for call in (sde.loss, sde.mean_loss, sde.elbo):
        with pytest.raises(ValueError, match=rf"DiffFlowSDE\.\w+: .* at step {step}: "):
            call(torch.zeros(2, 3), grid, NoiseKey(0))


def test_losses_just_above_the_floor_are_finite() -> None:
    low_g, low = smallest(F32)
    sde = DiffFlowSDE(zero, zero, low_g)
    grid = TimeGrid.from_times([0.0, (low / low_g) ** 2])
    x0 = torch.randn(8, 3, requires_grad=True)
    loss = sde.mean_loss(x0, grid, NoiseKey(0))
    loss.backward()
    assert loss.isfinite()
    assert x0.grad is not None
    assert x0.grad.isfinite().all()
