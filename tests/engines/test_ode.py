"""Probability flows against matrix exponentials, Jacobians, and torchdiffeq."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import NoiseKey, TimeGrid
from diffflow_ext.engines import ProbabilityFlow, integrate
from diffflow_ext.flows import StandardNormal
from diffflow_ext.likelihood import flow_log_prob

KEY = NoiseKey(5, 2)
MATRIX = torch.tensor([[-0.7, 1.3], [-0.9, 0.2]], dtype=torch.float64)


def linear(matrix: Tensor = MATRIX) -> ProbabilityFlow:
    return ProbabilityFlow((lambda t, x: x @ matrix.to(x.dtype).T,), lambda t: (0.0, 1.0))


class Wave(nn.Module):
    """Smooth, nonlinear, mixes components and depends on time."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(dim)
        self.first = torch.randn(dim, 8, generator=generator, dtype=torch.float64)
        self.second = torch.randn(8, dim, generator=generator, dtype=torch.float64)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        hidden = torch.sin(flat @ self.first.to(x.dtype) + t)
        return (hidden @ self.second.to(x.dtype)).reshape(x.shape)


def waves(dim: int = 3) -> ProbabilityFlow:
    """Two networks and a term in x, all with coefficients that vary."""
    return ProbabilityFlow(
        (Wave(dim), Wave(dim).double()), lambda t: (-0.5 - t, math.cos(t), 0.3 * t)
    )


def points(n: int = 5, dim: int = 3) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64)


def solve(
    flow: ProbabilityFlow, x: Tensor, grid: TimeGrid, **options: Any
) -> tuple[Tensor, Tensor]:
    """The end and the integral of the divergence, exact where no other is named."""
    end, change = integrate(flow, x, grid, **{"divergence": "exact", **options})
    assert change is not None
    return end, change


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_fixed_solvers_converge_at_their_order(solver: str, order: int) -> None:
    x, t_end = points(4, 2), 1.5
    exact = x @ torch.matrix_exp(t_end * MATRIX).T
    errors = []
    for n in (20, 40):
        grid = TimeGrid.power(n, t_end, power=1.0)
        y, change = solve(linear(), x, grid, solver=solver)
        errors.append(float((y - exact).abs().max()))
        # A linear field has the same divergence everywhere, so its integral is exact.
        torch.testing.assert_close(change, torch.full_like(change, 1.5 * float(MATRIX.trace())))
    rate = math.log2(errors[0] / errors[1])
    assert abs(rate - order) < 0.3
    assert errors[1] > 1e-12


def test_coefficients_and_two_networks_agree_with_torchdiffeq() -> None:
    flow, x = waves(), points()
    grid = TimeGrid.power(400, 1.0, power=1.0)
    fine, fine_change = solve(flow, x, grid, solver="rk4")
    adaptive, change = solve(
        flow, x, TimeGrid.from_times([0.0, 1.0]), solver="dopri5",
        rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    torch.testing.assert_close(fine, adaptive, rtol=0, atol=1e-8)
    torch.testing.assert_close(fine_change, change, rtol=0, atol=1e-8)


def test_exact_divergence_is_the_trace_of_the_jacobian() -> None:
    flow, x, h = waves(), points(4), 1e-3
    _, change = solve(flow, x, TimeGrid.from_times([0.4, 0.4 + h]), solver="euler")
    for row, value in zip(x, change, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda y: flow.velocity(0.4, y[None])[0], row
        )
        assert isinstance(jacobian, Tensor)
        assert math.isclose(float(value), h * float(jacobian.trace()), rel_tol=1e-9)


def test_heun_sums_the_divergence_to_second_order() -> None:
    flow, x = waves(), points()
    reference = solve(flow, x, TimeGrid.power(300, 1.0), solver="rk4")[1]
    errors = []
    for n in (16, 32):
        grid = TimeGrid.power(n, 1.0, power=1.0)
        change = solve(flow, x, grid, solver="heun")[1]
        errors.append(float((change - reference).abs().max()))
    assert 1.6 < math.log2(errors[0] / errors[1]) < 2.6


def test_the_way_back_returns() -> None:
    flow, x = waves(), points()
    grid = TimeGrid.power(200, 1.0)
    there, change = solve(flow, x, grid, solver="rk4")
    back, change_back = solve(flow, there, grid, reverse=True, solver="rk4")
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(change_back, -change, rtol=0, atol=1e-7)


def test_hutchinson_is_unbiased_and_its_variance_falls_with_probes() -> None:
    flow, x, grid = waves(), points(1).expand(4000, 3).contiguous(), TimeGrid.power(3, 0.5)
    exact = solve(flow, x[:1], grid)[1]
    spread = []
    for probes in (1, 8):
        estimate = solve(flow, x, grid, divergence="hutchinson", key=KEY, num_probes=probes)[1]
        error = float(estimate.std()) / math.sqrt(len(estimate))
        assert abs(float(estimate.mean() - exact)) < 4.5 * error
        spread.append(float(estimate.std()))
    assert 0.8 < spread[0] / spread[1] / math.sqrt(8) < 1.25


def test_probes_belong_to_samples() -> None:
    flow, x, grid = waves(), points(7), TimeGrid.power(4, 0.5)
    whole = flow_log_prob(flow, x, grid, StandardNormal(), divergence="hutchinson", key=KEY)
    parts = [
        flow_log_prob(
            flow, part, grid, StandardNormal(), divergence="hutchinson", key=KEY, sample_offset=at
        )
        for at, part in ((0, x[:3]), (3, x[3:]))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=1e-13)
    other = flow_log_prob(flow, x, grid, StandardNormal(), divergence="hutchinson", key=KEY.at(3))
    assert not torch.allclose(other, whole)


def test_auto_is_exact_for_few_dimensions_and_an_estimate_for_many() -> None:
    grid = TimeGrid.power(2, 0.5)
    for dim, other in ((64, "exact"), (65, "hutchinson")):
        flow, x = waves(dim), points(2, dim)
        auto = flow_log_prob(flow, x, grid, StandardNormal(), key=KEY)
        same = flow_log_prob(flow, x, grid, StandardNormal(), key=KEY, divergence=other)
        assert torch.equal(auto, same)


def test_images_keep_their_shape() -> None:
    flow, x = waves(12), torch.randn(3, 1, 3, 4, dtype=torch.float64)
    grid = TimeGrid.power(5, 0.5)
    flat, change = solve(flow, x.flatten(1), grid)
    image, change_image = solve(flow, x, grid)
    assert torch.equal(image.flatten(1), flat)
    assert torch.equal(change, change_image)


def test_networks_that_ignore_their_input_have_no_divergence() -> None:
    flow = ProbabilityFlow((lambda t, x: torch.ones_like(x),), lambda t: (0.25, 1.0))
    _, change = solve(flow, points(), TimeGrid.power(5, 2.0))
    torch.testing.assert_close(change, torch.full_like(change, 3 * 0.25 * 2.0))


def test_inference_mode_keeps_the_divergence() -> None:
    flow, x, grid = waves(), points(), TimeGrid.power(4, 0.5)
    for solver in ("heun", "dopri5"):
        outside = flow_log_prob(flow, x, grid, StandardNormal(), solver=solver)
        with torch.inference_mode():
            inside = flow_log_prob(flow, x.clone(), grid, StandardNormal(), solver=solver)
        assert torch.equal(inside, outside)


def test_a_network_that_hides_its_graph_is_refused() -> None:
    flow = ProbabilityFlow((torch.no_grad()(Wave(3)),), lambda t: (0.0, 1.0))
    with pytest.raises(RuntimeError, match="differentiable in x"):
        flow_log_prob(flow, points(), TimeGrid.power(2, 0.5), StandardNormal())


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "dopri5"])
@pytest.mark.parametrize("reverse", [False, True])
def test_networks_are_asked_about_times_of_the_grid_alone(solver: str, reverse: bool) -> None:
    asked = []
    wave = Wave(3)

    def net(t: Tensor, x: Tensor) -> Tensor:
        asked.append(float(t))
        return wave(t, x)

    flow, grid = ProbabilityFlow((net,), lambda t: (0.0, 1.0)), TimeGrid.power(13, 0.5, 0.1)
    integrate(flow, points(), grid, solver=solver, reverse=reverse)
    assert min(asked) >= 0.1
    assert max(asked) <= 0.5


def test_fixed_solvers_draw_fresh_probes_at_each_step() -> None:
    """With the same probes at both, a constant Jacobian would have equal shares."""
    matrix = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    x = points(200, 2)
    change = solve(
        linear(matrix), x, TimeGrid.from_times([0.0, 0.5, 1.0]), solver="euler",
        divergence="hutchinson", key=KEY,
    )[1]  # fmt: skip
    # A step contributes +-1: together -2, 0 or 2, and 0 only where the probes differ.
    assert 60 < int((change.abs() < 1e-12).sum()) < 140


def test_channels_last_networks() -> None:
    flow = ProbabilityFlow(
        (lambda t, x: torch.sin(x).contiguous(memory_format=torch.channels_last),),
        lambda t: (0.0, 1.0),
    )
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    value = flow_log_prob(flow, x, TimeGrid.power(3, 0.5), StandardNormal())
    plain = ProbabilityFlow((lambda t, x: torch.sin(x),), lambda t: (0.0, 1.0))
    torch.testing.assert_close(
        value, flow_log_prob(plain, x, TimeGrid.power(3, 0.5), StandardNormal())
    )


def test_a_graph_is_there_where_something_requires_a_gradient() -> None:
    """Nothing is kept for a network of no module, whose tensors are not known."""
    net, grid = nn.Linear(3, 3).double(), TimeGrid.power(3, 1.0)
    flow = ProbabilityFlow((lambda t, x: net(x),), lambda t: (0.0, 1.0))
    for x in (points(), points().requires_grad_()):
        assert [value.requires_grad for value in solve(flow, x, grid)] == [x.requires_grad] * 2
    with torch.no_grad():
        assert not solve(flow, x, grid)[1].requires_grad


def test_bad_arguments() -> None:
    flow, x, grid = waves(), points(), TimeGrid.power(3, 1.0)
    with pytest.raises(ValueError, match="solver"):
        integrate(flow, x, grid, solver="rk5")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="divergence"):
        integrate(flow, x, grid, divergence="guess")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_probes"):
        integrate(flow, x, grid, divergence="hutchinson", num_probes=0)
    with pytest.raises(ValueError, match=r"2\^24 probes"):
        integrate(flow, x, TimeGrid.power(300, 1.0), divergence="hutchinson", num_probes=65535)
    with pytest.raises(ValueError, match="rtol"):
        integrate(flow, x, grid, solver="dopri5", rtol=-1.0)
    for options in ({"reverse": True}, {"divergence": None}):
        with pytest.raises(ValueError, match="direction"):
            flow_log_prob(flow, x, grid, StandardNormal(), **options)
    with pytest.raises(TypeError, match="TimeGrid"):
        integrate(flow, x, [0.0, 1.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="finite"):
        integrate(flow, x * math.nan, grid)
    bad = ProbabilityFlow((lambda t, x: x[:, :2],), lambda t: (0.0, 1.0))
    with pytest.raises(ValueError, match=r"net\(t, x\)"):
        integrate(bad, x, grid)


def test_missing_torchdiffeq_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match="torchdiffeq"):
        integrate(waves(), points(), TimeGrid.power(3, 1.0), solver="dopri5")


def test_a_key_is_checked_where_it_is_not_needed() -> None:
    flow = ProbabilityFlow((lambda t, x: x,), lambda t: (0.0, 1.0))
    for divergence in ("exact", "hutchinson"):
        with pytest.raises(TypeError, match="expected key"):
            integrate(flow, torch.ones(2, 2), TimeGrid.power(2, 1.0), divergence=divergence, key=5)  # pyright: ignore
