"""DiNof's densities, and what all its methods have in common."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import zuko
from denoisers import WavyNet
from model_cases import (
    F64,
    KEY,
    at,
    each_process,
    gaussian_model,
)
from torch import Tensor

from diffflow_ext import DiNof, TimeGrid
from diffflow_ext.flows import StandardNormal, spline_flow
from diffflow_ext.processes import VE, VP, DiscreteVP, LinearProcess

# --- density -------------------------------------------------------------------------------------


@each_process
def test_log_prob_of_gaussian_data(process: LinearProcess) -> None:
    model, data = gaussian_model(process, 0.7, 0.6, dim=2)
    x = 0.7 * torch.randn(20, 2, dtype=F64)
    truth = data.log_prob(x, model.t_min)
    errors = [float((model.log_prob(x, n) - truth).abs().max()) for n in (10, 80)]
    assert errors[1] < 2e-3  # the 50 rates of the chain jump inside of steps
    if not isinstance(process, DiscreteVP):
        assert errors[1] < errors[0] / 30  # Heun's order 2, eight times
        assert torch.allclose(model.log_prob(x, 40, solver="rk4"), truth, atol=1e-5)
        assert torch.allclose(model.log_prob(x, solver="dopri5"), truth, atol=1e-3)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0)], ids=["vp", "ve"])
def test_density_with_a_flow_integrates_to_one(process: LinearProcess) -> None:
    """A spline flow and a network that nobody trained, which fit neither data nor each other."""
    flow = zuko.flows.NSF(1, transforms=2, hidden_features=(16,)).double()
    for p in flow.parameters():
        p.data.add_(0.1 * torch.randn_like(p))

    def net(t: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(x) + 0.2 * torch.sin(2 * x + t)

    model = DiNof(net, flow, process, 0.6)
    # Close together where the density is narrow, and far out in its tails.
    u = torch.linspace(-7.8, 7.8, 4001, dtype=F64)
    points = 0.05 * torch.sinh(u)
    density = model.log_prob(points[:, None], 100, solver="rk4").exp()
    cdf = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(density, points)])
    assert float(cdf[-1]) == pytest.approx(1.0, abs=1e-3)
    # The density is that of samples of the ODE.
    x = model.sample((4000, 1), 100, KEY, sampler="ode", solver="rk4")[:, 0].sort().values
    above = torch.searchsorted(points, x)
    part = (x - points[above - 1]) / (points[above] - points[above - 1])
    at_x = torch.lerp(cdf[above - 1], cdf[above], part)
    empirical = (torch.arange(4000) + 0.5) / 4000
    assert float((at_x - empirical).abs().max()) < 2.2 / math.sqrt(4000)


def test_probes_of_a_diagonal_jacobian_are_exact() -> None:
    model, _ = gaussian_model(VP(), 0.7, 0.6, dim=6)
    model.eps_net = WavyNet().double()
    x = torch.randn(4, 6, dtype=F64)
    exact = model.log_prob(x, 6, divergence="exact")
    # The network is elementwise, and the squares of random signs are 1.
    for key in (KEY, KEY.at(9)):
        probed = model.log_prob(x, 6, key, divergence="hutchinson")
        assert torch.allclose(probed, exact, rtol=1e-9)


# --- what all calls have in common ---------------------------------------------------------------


@torch.no_grad()
def test_samples_through_a_spline_flow_follow_their_index() -> None:
    model = DiNof(WavyNet(), spline_flow(3, transforms=1, hidden=(8,)), "ve")
    whole = model.sample((9, 3), 4, KEY)
    parts = [model.sample((b - a, 3), 4, KEY, sample_offset=a) for a, b in ((0, 4), (4, 9))]
    # The flow's matrix products may round by the size of a batch.
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_defaults_of_processes() -> None:
    assert DiNof(WavyNet()).process == VP()
    assert [DiNof(WavyNet(), None, p).t_min for p in ("vp", "subvp", "ve")] == [1e-3, 1e-3, 1e-5]
    ve = VE(sigma_max=7.0)
    for cutoff, scale in ((1.0, 7.0), (0.6, at(ve.sigma, 0.6))):
        prior = DiNof(WavyNet(), None, ve, cutoff).prior
        assert isinstance(prior, StandardNormal)
        assert prior.scale == scale


def test_score_takes_one_time_or_many() -> None:
    model, x = DiNof(WavyNet()), torch.randn(4, 2, 3)
    one = model.score(0.4, x)
    assert torch.equal(model.score(torch.tensor(0.4), x), one)
    assert torch.allclose(model.score(torch.full((4,), 0.4), x), one, rtol=1e-6)
    assert torch.allclose(one, -model.eps_net(torch.tensor(0.4), x) / at(VP().sigma, 0.4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: DiNof(3), TypeError, r"DiNof: expected eps_net to be callable .* got 3"),
        (lambda m, x: DiNof(m.eps_net, 3), TypeError, "FlowPrior: expected a flow"),
        (lambda m, x: DiNof(m.eps_net, None, "edm"), ValueError, "expected one of"),
        (lambda m, x: DiNof(m.eps_net, None, "vp", 1.1), ValueError, "t_cutoff <= 1.0"),
        (lambda m, x: DiNof(m.eps_net, None, "vp", 1e-3), ValueError, "0 < t_min < t_cutoff"),
        (lambda m, x: DiNof(m.eps_net, None, "vp", 0.6, 0.0), ValueError, "got t_min=0.0"),
        (lambda m, x: DiNof(m.eps_net, loss_weight="g"), ValueError, "expected loss_weight to be"),
        (lambda m, x: m.score_loss(x.half()), TypeError, "score_loss: expected x0 to be float32"),
        (lambda m, x: m.flow_loss(x / 0), ValueError, "flow_loss: expected finite x0, got"),
        (lambda m, x: m.mean_loss(3), TypeError, "expected x0 to be a tensor"),
        (lambda m, x: m.score_loss(x, 3), TypeError, "expected key to be a NoiseKey"),
        (lambda m, x: m.flow_loss(x, sample_offset=-1), ValueError, "sample_offset"),
        (lambda m, x: m.mean_loss(x, weight=x), ValueError, r"expected weight of shape \(3,\)"),
        (lambda m, x: m.log_prob(x, "5"), TypeError, "expected a TimeGrid or a number of steps"),
        (lambda m, x: m.log_prob(x, TimeGrid.power(5, 1.0, 0.1)), ValueError, "to 0.6, got"),
        (lambda m, x: m.sample((3, 2), TimeGrid.power(5, 0.6)), ValueError, "from a time > 0"),
        (lambda m, x: m.sample((3, 2), 0), ValueError, "num_steps=0"),
        (lambda m, x: m.sample(3), TypeError, "expected shape to be a shape"),
        (lambda m, x: m.sample((3, 2), 4, sampler="pc"), ValueError, "expected sampler to be one"),
        (
            lambda m, x: m.sample((3, 2), 4, snr=0.0),
            ValueError,
            "expected 0 < snr <= 1e.100",
        ),
        (lambda m, x: m.sample((3, 2), 4, last_step="x"), ValueError, "expected last_step to be"),
        (
            lambda m, x: m.sample((3, 2), 4, sampler="ode", corrector_steps=1),
            ValueError,
            "expected corrector_steps=0 for sampler='ode', got 1",
        ),
        (
            lambda m, x: m.sample((3, 2), 4, sampler="ode", solver="em"),
            ValueError,
            "expected solver to be one of",
        ),
        (lambda m, x: m.sample((3, 2), 4, solver="nonsense"), ValueError, "solver"),
        (lambda m, x: m.score(0.0, x), ValueError, "expected t > 0"),
        (
            lambda m, x: DiNof(lambda t, x: x[:, :1]).score_loss(x),
            ValueError,
            r"expected eps_net\(t, x\) to have the shape of x",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(DiNof(WavyNet()), torch.ones(3, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model.mean_loss(x, KEY),
        lambda model, x: model.log_prob(x, 3),
        lambda model, x: model.sample(tuple(x.shape), 3, KEY),
        lambda model, x: model.sample(tuple(x.shape), 3, KEY, sampler="ode"),
    ],
)
def test_a_network_that_writes_into_its_arguments_is_refused(call: Any) -> None:
    for net in (lambda t, x: x.mul_(2), lambda t, x: x + t.mul_(2).sum()):
        with pytest.raises(RuntimeError, match=r"modified x or t in place|in-place operation"):
            call(DiNof(net), torch.ones(3, 2))


def test_steps_may_be_integers_of_numpy_and_a_process_no_object() -> None:
    model, x = DiNof(WavyNet()), torch.ones(3, 2)
    assert torch.equal(model.log_prob(x, np.int64(4)), model.log_prob(x, 4))  # pyright: ignore
    with pytest.raises(TypeError, match="process as a name"):
        DiNof(WavyNet(), process=object())  # pyright: ignore[reportArgumentType]


def test_evaluation_stays_out_of_compiled_graphs() -> None:
    model, x = DiNof(WavyNet()), torch.randn(3, 2)
    calls = [lambda: model.log_prob(x, 3), lambda: model.sample((3, 2), 3, KEY)]
    for call in calls:
        expected = call()
        assert torch.equal(torch.compile(call, backend="eager")(), expected)
