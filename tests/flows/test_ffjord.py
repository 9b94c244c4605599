"""FFJORD: densities against closed forms, quadrature and zuko's own flow."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from densities import mass
from torch import Tensor, nn

from diffflow_ext.flows import FFJORD, StandardNormal
from diffflow_ext.nets import FourierMLP, UNet


class Linear(nn.Module):
    """v = c(t) A x, c = 2 t / t_end^2, so that the integral of c over [0, t_end] is 1."""

    def __init__(self, dim: int, t_end: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(0.7 * torch.randn(dim, dim, dtype=torch.float64))
        self.t_end = t_end

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        rows = x.flatten(1) @ self.matrix.T
        return (2 * t / self.t_end**2 * rows).reshape(x.shape)


FINE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "dopri5", **FINE},
        {"solver": "dopri8", **FINE},
        {"solver": "rk4", "num_steps": 100},
        {"solver": "rk4", "num_steps": 100, "adjoint": False},
        {"solver": "dopri5", "adjoint": False, **FINE},
    ],
)
def test_a_linear_velocity_has_a_closed_form(options: dict[str, Any]) -> None:
    net = Linear(6, t_end=2.0)
    flow = FFJORD(net, t_end=2.0, **options)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    z = x.flatten(1) @ torch.linalg.matrix_exp(net.matrix).T
    truth = StandardNormal().log_prob(z) + net.matrix.trace()
    value = flow.log_prob(x)
    torch.testing.assert_close(value, truth, rtol=1e-6, atol=1e-6)
    weights = torch.randn(5, dtype=torch.float64)
    inputs = [x, net.matrix]
    expected = torch.autograd.grad((truth * weights).sum(), inputs)
    actual = torch.autograd.grad((value * weights).sum(), inputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.encode(x).flatten(1), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.sample_from(flow.encode(x)), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [FINE, {"solver": "rk4", "num_steps": 200}])
def test_a_path_has_the_states_of_the_closed_form(options: dict[str, Any]) -> None:
    """x(t) = exp(A t^2 / T^2) x(0)."""
    net = Linear(2, t_end=2.0)
    flow, x = FFJORD(net, t_end=2.0, **options), torch.randn(5, 2, dtype=torch.float64)
    times = [0.0, 0.5, 1.1, 2.0]
    states = flow.path(x, times)
    assert torch.equal(states[0], x)
    assert not states.requires_grad
    for time, state in zip(times, states, strict=True):
        truth = x @ torch.linalg.matrix_exp(net.matrix.detach() * time**2 / 4.0).T
        torch.testing.assert_close(state, truth, rtol=1e-4, atol=1e-4)
    back = flow.path(states[-1], times[::-1])
    torch.testing.assert_close(back.flip(0), states, rtol=1e-5, atol=1e-5)
    assert flow.path(x[:0], times).shape == (4, 0, 2)
    for wrong in ([0.0], [0.0, 3.0], [0.0, 1.0, 0.5], [1.0, 1.0]):
        with pytest.raises(ValueError, match=r"FFJORD.path: expected two or more increasing or"):
            flow.path(x, wrong)


def curved(dim: int = 2, **options: Any) -> FFJORD:
    net = FourierMLP(dim, width=16, depth=1, time_scale=0.1).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return FFJORD(net, **options)


@pytest.mark.parametrize(("dim", "count"), [(1, 500), (2, 80)])
def test_ffjords_density_integrates_to_one(dim: int, count: int) -> None:
    flow = curved(dim, solver="rk4", num_steps=30)
    values = flow.log_prob(torch.randn(20, dim, dtype=torch.float64))
    gaussian = StandardNormal().log_prob(torch.randn(20, dim, dtype=torch.float64))
    assert (values - gaussian).abs().max() > 0.1
    assert mass(flow.log_prob, dim, count) == pytest.approx(1.0, abs=1e-4)


def test_gradients_are_slopes() -> None:
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    discrete = curved(solver="rk4", num_steps=4, adjoint=False)
    assert torch.autograd.gradcheck(discrete.log_prob, (x,))
    for flow in (discrete, curved(rtol=1e-7, atol=1e-7)):
        parameters = list(flow.parameters())
        grads = torch.autograd.grad(flow.log_prob(x).sum(), parameters)
        directions = [torch.randn_like(p) for p in parameters]
        values, step = [], 1e-4
        for move in (step, -2 * step):
            for p, direction in zip(parameters, directions, strict=True):
                p.data.add_(direction, alpha=move)
            values.append(float(flow.log_prob(x).sum().detach()))
        slope = (values[0] - values[1]) / (2 * step)
        expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
        assert slope == pytest.approx(expected, rel=1e-4)


def test_small_cotangents_of_a_mean_keep_their_precision_in_the_adjoint() -> None:
    """Cotangents of 1e-3 for each sample, with an absolute tolerance of 1e-5."""
    flow = curved()
    x = torch.randn(1000, 2, dtype=torch.float64)
    fine = curved(solver="rk4", num_steps=30, adjoint=False)
    fine.load_state_dict(flow.state_dict())
    rough, exact = (
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(one.log_prob(x).mean(), list(one.parameters()))
            ]
        )
        for one in (flow, fine)
    )
    assert float((rough - exact).norm() / exact.norm()) < 1e-3


def test_hutchinson_over_all_signs_is_exact() -> None:
    exact = curved(3, solver="rk4", num_steps=5)
    estimate = curved(3, solver="rk4", num_steps=5, divergence="hutchinson")
    estimate.load_state_dict(exact.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    values = torch.stack([estimate.log_prob(x, row.expand(4, 3)) for row in signs])
    torch.testing.assert_close(values.mean(0), exact.log_prob(x), rtol=1e-10, atol=1e-10)
    assert values.std(0).min() > 1e-3
    # By itself it draws signs from torch's generator.
    torch.manual_seed(3)
    drawn = [estimate.log_prob(x), estimate.log_prob(x)]
    torch.manual_seed(3)
    assert torch.equal(estimate.log_prob(x), drawn[0])
    assert (values - drawn[0]).abs().min(0).values.max() < 1e-12
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("t_end", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("num_steps", [1, 7, 30])
def test_a_fixed_solver_takes_as_many_steps_as_it_is_told(num_steps: int, t_end: float) -> None:
    times = []

    def net(t: Tensor, x: Tensor) -> Tensor:
        times.append(float(t))
        return -x

    flow = FFJORD(net, t_end, solver="euler", num_steps=num_steps)
    x = torch.randn(3, 2)
    z = flow.encode(x)
    assert times == pytest.approx([t_end * i / num_steps for i in range(num_steps)])
    torch.testing.assert_close(z, x * (1 - t_end / num_steps) ** num_steps)
    times.clear()
    flow.sample_from(z)
    assert times == pytest.approx([t_end * (1 - i / num_steps) for i in range(num_steps)])


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_u_net_is_a_velocity(divergence: Any) -> None:
    net = UNet(1, 3, base=4, mults=(1,), blocks=1, attention=(3,))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    flow = FFJORD(net, solver="euler", num_steps=2, divergence=divergence)
    flow.log_prob(torch.randn(2, 1, 3, 3)).mean().neg().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert flow.sample(4).shape == (4, 1, 3, 3)


def test_shapes_of_samples() -> None:
    assert FFJORD(FourierMLP(3, 4)).sample(5).shape == (5, 3)
    flow = FFJORD(lambda _, x: -x, event_shape=(2, 2))
    assert flow.sample(5).shape == (5, 2, 2)
    assert FFJORD(lambda _, x: -x).sample((5, 4)).shape == (5, 4)
    with pytest.raises(ValueError, match=r"FFJORD\.sample: expected a shape \(B, \*event\)"):
        FFJORD(lambda _, x: -x).sample(5)
    assert flow.log_prob(torch.zeros(0, 2, 2)).shape == (0,)


def test_wrong_nets_are_named() -> None:
    with pytest.raises(TypeError, match=r"net to be callable as net\(t, x\), got 3"):
        FFJORD(3)
    with pytest.raises(ValueError, match=r"the shape of x \(4, 2\), got \(4, 1\)"):
        FFJORD(lambda _, x: x[:, :1]).log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"probe of the shape of x \(4, 2\), got \(4, 3\)"):
        FFJORD(FourierMLP(2, 4)).log_prob(torch.zeros(4, 2), torch.ones(4, 3))
    with pytest.raises(RuntimeError, match="FFJORD: expected a solvable equation"):
        FFJORD(lambda _, x: x / 0).log_prob(torch.ones(4, 2))
