"""Fused probability flows against float64, and against linear equations' closed form."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from fused_cases import KEY, apart, batch
from torch import Tensor, nn

from diffflow_ext import DDPM, DiffFlowSDE, DiNof, TimeGrid
from diffflow_ext.engines import ProbabilityFlow, integrate
from diffflow_ext.engines.fused import ode, workspace
from diffflow_ext.flows import StandardNormal
from diffflow_ext.likelihood import flow_log_prob
from diffflow_ext.nets import FourierMLP

pytestmark = pytest.mark.usefixtures("same_threads")


def nets(
    dim: int = 2, width: int = 32, depth: int = 2, activation: str = "gelu", count: int = 2
) -> nn.ModuleList:
    """Networks of different sizes; the first is the larger one."""
    torch.manual_seed(0)
    sizes = [(width, depth), (max(width - 9, 1), max(depth - 1, 0))][:count]
    return nn.ModuleList(
        FourierMLP(dim, *size, activation, time_scale=0.1, output_scale=scale)
        for size, scale in zip(sizes, (1.0, 0.6), strict=False)
    )


def flow(parts: nn.ModuleList) -> ProbabilityFlow:
    """With a term in x and coefficients that vary."""
    return ProbabilityFlow(
        tuple(parts), lambda t: (-0.5 - t, math.cos(t), 2.0 * t - 0.7)[: 1 + len(parts)]
    )


def solve(
    parts: nn.ModuleList, x: Tensor, grid: TimeGrid, engine: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """The fused engine in float32, or the equation in float64."""
    if engine == "autograd":
        parts, x = copy.deepcopy(parts).double(), x.double()
    options = {"divergence": "exact", "key": KEY, **options}
    end, change = integrate(flow(parts), x, grid, engine=engine, **options)
    assert change is not None
    assert end.dtype == x.dtype
    assert change.dtype == torch.float64
    return end, change


# --- values --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize(
    ("dim", "width", "depth", "samples", "num_steps"),
    [(1, 1, 0, 1, 1), (2, 33, 3, 97, 4), (3, 32, 1, 41, 3), (10, 100, 2, 23, 2)],
)
def test_states_and_divergence_are_those_of_the_equation_in_float64(
    solver: str,
    activation: str,
    dim: int,
    width: int,
    depth: int,
    samples: int,
    num_steps: int,
) -> None:
    parts, x = nets(dim, width, depth, activation), batch(samples, dim)
    grid = TimeGrid.power(num_steps, 1.0, 0.1)
    for options in (
        {},
        {"reverse": True},
        {"divergence": "hutchinson", "sample_offset": 5},
        {"divergence": "hutchinson", "num_probes": 3},
    ):
        found = solve(parts, x, grid, "fused", solver=solver, **options)
        exact = solve(parts, x, grid, "autograd", solver=solver, **options)
        for a, b in zip(found, exact, strict=True):
            assert apart(a, b) < 2e-6


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("dim", [1, 8, 9, 70])
def test_one_network_of_any_dimension(dim: int, divergence: str) -> None:
    parts, x, grid = nets(dim, 40, 2, count=1), batch(43, dim), TimeGrid.power(3, 1.0)
    found = solve(parts, x, grid, "fused", divergence=divergence)
    exact = solve(parts, x, grid, "autograd", divergence=divergence)
    for a, b in zip(found, exact, strict=True):
        assert apart(a, b) < 2e-6


def nearly_linear(matrix: Tensor) -> FourierMLP:
    """tanh(s x) / s = x - s^2 x^3 / 3 ..., through a layer of its own size."""
    dim, small = len(matrix), 1e-3
    net = FourierMLP(dim, dim, 0, "tanh")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.input.weight.copy_(small * torch.eye(dim))
        net.output.weight.copy_(matrix / small)
    return net


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dim", [1, 2, 3, 10])
def test_density_of_a_linear_equation(dim: int) -> None:
    """Heun's steps of dx/dt = (A - B/2) x are products of I + h C + h^2 C^2 / 2."""
    generator = torch.Generator().manual_seed(dim)
    a, b = torch.randn(2, dim, dim, generator=generator) / dim
    sde = DiffFlowSDE(nearly_linear(a), nearly_linear(b), 1.0)
    x, grid = batch(50, dim), TimeGrid.power(7, 0.9)
    c, y = (a - b / 2).double(), x.double()
    for h in grid.steps():
        y = y @ (torch.eye(dim) + h * c + h**2 * c @ c / 2).T
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(1) + 0.9 * c.trace()
    found = sde.log_prob(x, grid, engine="fused")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("solver", ["heun", "rk4"])
def test_every_state_of_a_reverse_path(solver: Any) -> None:
    drift, score = nets(3)
    sde, grid = DiffFlowSDE(drift, score, 0.7), TimeGrid.power(5, 1.0)
    options = {"stochasticity": 0.0, "solver": solver, "sample_offset": 5}
    found = sde.sample_path((45, 3), grid, KEY, **options)
    exact = copy.deepcopy(sde).double().sample_path((45, 3), grid, KEY, **options)
    assert found.dtype == torch.float32
    for a, b in zip(found, exact, strict=True):
        assert apart(a, b) < 2e-6
    assert torch.equal(sde.sample((45, 3), grid, KEY, **options), found[0])


MODELS = {
    "DiffFlowSDE": (lambda net: DiffFlowSDE(net, net, 0.6), TimeGrid.power(6, 1.0)),
    "DDPM": (lambda net: DDPM(net, "cosine"), 6),
    "DiNof": (DiNof, 6),
}


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_densities_of_models(name: str, divergence: Any) -> None:
    make, grid = MODELS[name]
    model, x = make(nets(count=1)[0]), batch(30)
    found = model.log_prob(x, grid, KEY, divergence=divergence, engine="fused")
    exact = make(copy.deepcopy(nets(count=1)[0]).double()).log_prob(
        x.double(), grid, KEY, divergence=divergence
    )
    assert found.dtype == torch.float32
    assert apart(found, exact) < 5e-6


def test_samples_of_the_ordinary_equation_of_dinof() -> None:
    model = DiNof(nets(count=1)[0])
    found = model.sample((30, 2), 6, KEY, sampler="ode")
    exact = copy.deepcopy(model).double().sample((30, 2), 6, KEY, sampler="ode")
    assert apart(found, exact) < 2e-6


def test_probes_are_drawn_from_the_generator_as_ever() -> None:
    parts, x, grid = nets(), batch(20), TimeGrid.power(3, 1.0)
    results = []
    for engine in ("fused", "autograd"):
        torch.manual_seed(7)
        results.append(
            solve(parts, x, grid, engine, divergence="hutchinson", key=None)[1].tolist()
            + torch.rand(1).tolist()
        )
    assert apart(*map(torch.tensor, results)) < 2e-6


@pytest.mark.usefixtures("bf16_instructions")
def test_bfloat16_is_that_of_autocast() -> None:
    parts, x, grid = nets(2, 128, 3), batch(50), TimeGrid.power(6, 1.0)
    exact = solve(parts, x, grid, "autograd")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = solve(parts, x, grid, "fused")
        generic = integrate(flow(parts), x, grid, divergence="exact", engine="autograd")
    for a, b, c in zip(rounded, exact, generic, strict=True):
        assert c is not None
        assert 1e-6 < apart(a, b) < 0.01
        assert apart(a, b) < apart(c, b)


# --- what results depend on ----------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("samples", [1, 8, 333])
def test_results_do_not_depend_on_the_number_of_threads(samples: int, divergence: str) -> None:
    parts = nets(count=1)
    x, grid, results = batch(samples), TimeGrid.power(4, 1.0), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(solve(parts, x, grid, "fused", divergence=divergence))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("dim", [2, 9])
def test_samples_do_not_depend_on_their_neighbours(dim: int, divergence: str) -> None:
    parts, x, grid = nets(dim), batch(101, dim), TimeGrid.power(4, 1.0)
    whole = solve(parts, x, grid, "fused", divergence=divergence)
    split = [
        solve(parts, part, grid, "fused", divergence=divergence, sample_offset=first)
        for first, part in zip((0, 37, 74), x.split(37), strict=True)
    ]
    for one, several in zip(whole, zip(*split, strict=True), strict=True):
        assert torch.equal(torch.cat(several), one)


def test_data_in_another_layout_and_on_no_default_device() -> None:
    parts, x, grid = nets(), batch(20), TimeGrid.power(3, 1.0)
    expected = solve(parts, x, grid, "fused")
    with torch.device("meta"):
        found = solve(parts, x.t().contiguous().t(), grid, "fused")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_nothing_carries_a_graph_without_gradients_and_inputs_stay() -> None:
    parts, x, grid = nets(), batch(20), TimeGrid.power(3, 1.0)
    for net in parts:
        net.requires_grad_(False)
    before = x.detach().clone()
    end, change = solve(parts, x, grid, "fused")
    assert not end.requires_grad
    assert not change.requires_grad
    assert torch.equal(x, before)
    with torch.inference_mode():
        assert torch.equal(solve(parts, before.clone(), grid, "fused")[1], change)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("value", [1e30, math.nan])
def test_what_diverges_is_not_finite(value: float) -> None:
    parts, x, grid = nets(), batch(5), TimeGrid.power(3, 1.0)
    with torch.no_grad():
        parts[0].output.weight.fill_(value)  # pyright: ignore
    end, change = solve(parts, x, grid, "fused")
    assert not torch.isfinite(end).any()
    assert not torch.isfinite(change).any()


@pytest.mark.usefixtures("instructions")
def test_a_sample_that_overflows_harms_no_other() -> None:
    parts, x, grid = nets(), batch(44), TimeGrid.power(3, 1.0)
    expected = solve(parts, x, grid, "fused", divergence="hutchinson")
    x[43] = 3e38
    found = solve(parts, x, grid, "fused", divergence="hutchinson")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[:43], b[:43])


# --- where it does not apply ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"solver": "dopri5"}, "it takes fixed steps"),
        ({"ode": ProbabilityFlow((lambda t, x: x,), lambda t: (0.0, 1.0))}, "network 1 of 1: no"),
        (
            {"x": batch(3).double()},
            r"it takes vectors, float32 of shape \(B, D\), got float64 of shape \(3",
        ),
        (
            {"x": batch(6).view(3, 2, 2)},
            r"it takes vectors, float32 of shape \(B, D\), got float32 of shape \(3, 2, 2",
        ),
        ({"x": batch(3)[:0]}, "it takes 1 to 1024 components of at least one"),
        ({"key": KEY.to_tensor("cpu"), "divergence": "hutchinson"}, "the key is a tensor"),
        ({"ode": flow(nets(2, 8, 2, "relu"))}, "network 1 of 2: it has the activation 'relu'"),
    ],
)
def test_calls_that_it_does_not_take(change: dict[str, Any], reason: str) -> None:
    options = {"ode": flow(nets()), "x": batch(3), "grid": TimeGrid.power(2, 1.0), **change}
    with pytest.raises(ValueError, match=rf"engine='fused' is not possible here: {reason}"):
        integrate(**options, engine="fused")


def test_other_networks_are_solved_by_torch() -> None:
    sde, x, grid = (
        DiffFlowSDE(lambda t, x: torch.sin(x), nets()[0]),
        batch(9),
        TimeGrid.power(4, 1),
    )
    found = sde.log_prob(x, grid)
    assert torch.equal(sde.log_prob(x, grid, engine="autograd"), found)
    with pytest.raises(ValueError, match="network 1 of 2: no network with perceptron_at"):
        sde.log_prob(x, grid, engine="fused")
    with pytest.raises(ValueError, match="expected engine to be one of"):
        sde.log_prob(x, grid, engine="fast")  # pyright: ignore[reportArgumentType]


def test_the_engine_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, solve = [], ode.FusedOde.solve
    monkeypatch.setattr(
        ode.FusedOde,
        "solve",
        lambda *args, **options: taken.append(1) or solve(*args, **options),
    )
    x, grid = batch(3), TimeGrid.power(2, 1.0)
    flow_log_prob(flow(nets()), x, grid, StandardNormal())
    assert len(taken) == 1
    flow_log_prob(flow(nets()), x, grid, StandardNormal(), engine="autograd")
    monkeypatch.setattr(workspace, "MAX_SCRATCH", 2**12)
    flow_log_prob(flow(nets()), x, grid, StandardNormal())
    assert len(taken) == 1
    with pytest.raises(ValueError, match="MiB of memory"):
        flow_log_prob(flow(nets()), x, grid, StandardNormal(), engine="fused")
