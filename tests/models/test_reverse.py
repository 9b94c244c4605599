"""The reverse family's other solvers and the Langevin corrector against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.engines import integrate
from diffflow_ext.flows import StandardNormal
from diffflow_ext.functional import normal
from diffflow_ext.models.reverse import ReverseSampler
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(23, 1)
START = 0.25  # variance of the data


def variance(t: Tensor) -> Tensor:
    """Of dx = -x/2 dt + dw from N(0, START)."""
    return START * torch.exp(-t) + 1 - torch.exp(-t)


def ou(t_end: float = 1.0) -> DiffFlowSDE:
    prior = StandardNormal(math.sqrt(variance(torch.tensor(t_end, dtype=torch.float64))))
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    return DiffFlowSDE(
        lambda t, x: -0.5 * x, lambda t, x: -x / variance(t), 1.0, params=[parameter], prior=prior
    )


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_ode_samples_scale_the_prior_at_the_order_of_the_solver(solver: str, order: int) -> None:
    """The ODE maps x_T to x_T sqrt(v(0) / v(T)), exactly."""
    sde, errors = ou(), []
    for n in (8, 16):
        path = sde.sample_path((6, 2), TimeGrid.power(n, 1.0, power=1.0), KEY, 0.0, solver=solver)
        exact = path[-1] * math.sqrt(START / float(variance(torch.tensor(1.0).double())))
        errors.append(float((path[0] - exact).abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.45


def test_ode_samples_solve_the_same_equation_as_log_prob() -> None:
    sde = DiffFlowSDE(FourierMLP(3, 16, 1), FourierMLP(3, 16, 1), 0.7).double()
    grid = TimeGrid.power(6, 0.8)
    path = sde.sample_path((4, 3), grid, KEY, 0.0, solver="heun")
    back, _ = integrate(sde.probability_flow(), path[-1], grid, reverse=True, solver="heun")
    torch.testing.assert_close(path[0], back, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("corrector_steps", [0, 2])
def test_samplers_and_corrector_keep_marginals(stochasticity: float, corrector_steps: int) -> None:
    grid, n = TimeGrid.power(60, 1.0, power=1.0), 40_000
    moves = {"corrector_steps": corrector_steps, "corrector_scale": 0.5}
    x = ou().sample((n, 2), grid, KEY, stochasticity, **moves)
    # Euler and Langevin steps are of first order in dt = 1/60.
    assert abs(float(x.var()) - START) < 0.02 + 4.5 * START * math.sqrt(2 / (2 * n))


def test_the_corrector_mends_a_wrong_prior() -> None:
    """Langevin moves forget where a sample came from; the reverse steps alone do not."""
    sde = ou()
    sde.prior = None  # N(0, I), too wide by 1 / v(1)
    short = TimeGrid.power(20, 1.0, power=1.0)
    wrong = float(sde.sample((20_000, 2), short, KEY, 0.0).var())
    mended = float(sde.sample((20_000, 2), short, KEY, 0.0, corrector_steps=5).var())
    assert abs(mended - START) < 0.5 * abs(wrong - START)


def test_a_langevin_move_is_the_documented_formula() -> None:
    sde, grid = ou(), TimeGrid.from_times([0.0, 0.4, 1.0])
    path = sde.sample_path((5, 2), grid, KEY, 0.0, corrector_steps=1, corrector_scale=0.3)
    plain = sde.sample_path((5, 2), grid, KEY, 0.0)
    eta, t = 0.3 * 0.6, torch.tensor(0.4, dtype=torch.float64)
    # The one move is at i = 1, with dt_1 = 0.6.
    z = normal((5, 2), KEY, purpose="langevin", step=1, dtype=torch.float64)
    expected = plain[1] + eta * (-plain[1] / variance(t)) + math.sqrt(2 * eta) * z
    torch.testing.assert_close(path[1], expected, rtol=1e-6, atol=1e-6)


def test_samples_with_a_corrector_do_not_depend_on_the_split() -> None:
    sde, grid = ou(), TimeGrid.power(4, 1.0)
    whole = sde.sample((7, 2), grid, KEY, corrector_steps=2)
    parts = [
        sde.sample((3, 2), grid, KEY, corrector_steps=2),
        sde.sample((4, 2), grid, KEY, corrector_steps=2, sample_offset=3),
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_bad_arguments() -> None:
    for options, word in (
        ({"stochasticity": -0.1}, "stochasticity"),
        ({"stochasticity": 1.0, "solver": "heun"}, "heun"),
        ({"stochasticity": 0.0, "solver": "rk5"}, "solver"),
        ({"stochasticity": 0.0, "solver": "heun", "last_step": "mean"}, "last_step"),
        ({"last_step": "loud"}, "last_step"),
        ({"corrector_steps": -1}, "corrector_steps"),
        ({"corrector_scale": 0.0}, "corrector_scale"),
    ):
        with pytest.raises(ValueError, match=word):
            ReverseSampler(**options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"2\^24"):
        ou().sample((1, 2), TimeGrid.power(2**10, 1.0), KEY, corrector_steps=2**15)
