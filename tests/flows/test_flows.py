"""Flows: densities against closed forms, Jacobians and quadrature; ActNorm's first batch."""

from __future__ import annotations

import copy
import doctest
import importlib
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zuko
from helpers import ROOT
from torch import Tensor, distributions, nn
from torch.optim.swa_utils import AveragedModel

from diffflow_ext import NoiseKey
from diffflow_ext.flows import FFJORD, ActNorm, FlowPrior, StandardNormal, glow, spline_flow
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP, UNet

KEY = NoiseKey(5, 2)


def awake(flow: Any, std: float) -> Any:
    """The flow with its weights drawn: layers that start at zero would hide errors."""
    for parameter in flow.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    return flow


def mass(log_prob: Callable[[Tensor], Tensor], dim: int, count: int, half: float = 14.0) -> float:
    """The integral of a density over a cube, by the midpoint rule."""
    width = 2 * half / count
    axis = -half + width * (torch.arange(count, dtype=torch.float64) + 0.5)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    with torch.no_grad():
        return float(log_prob(points).exp().sum()) * width**dim


def jacobian_log_det(map_to: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log |det dz/dx| of each sample, from the whole Jacobian."""
    rows = []
    for one in x:
        jacobian = torch.autograd.functional.jacobian(lambda y: map_to(y[None])[0].flatten(), one)
        rows.append(torch.linalg.slogdet(jacobian.reshape(one.numel(), -1))[1])
    return torch.stack(rows)


# --- libraries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("zuko", lambda: spline_flow(2)),
        ("normflows", lambda: glow((1, 4, 4))),
        ("torchdiffeq", lambda: FFJORD(FourierMLP(2, 4))),
    ],
)
def test_a_missing_library_is_named(
    name: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name} .* pip install 'diffflow_ext\[flows\]'"):
        make()


def test_importing_the_flows_loads_no_library() -> None:
    code = "import sys, diffflow_ext.flows, diffflow_ext.flows.prior; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "diffflow_ext.flows.ffjord" in loaded
    assert not loaded & {"zuko", "normflows", "torchdiffeq"}


def test_doctests() -> None:
    names = {"torch": torch, "NoiseKey": NoiseKey}
    modules = {"priors": 2, "nets.unet": 2, "flows.ffjord": 4, "flows.glow": 2, "flows.spline": 2}
    for name in modules:
        module = importlib.import_module(f"diffflow_ext.{name}")
        failed, attempted = doctest.testmod(module, extraglobs=names)
        assert failed == 0, name
        assert attempted >= modules[name], name


# --- splines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(1, 4000), (2, 250)])
def test_a_splines_density_integrates_to_one(dim: int, count: int) -> None:
    flow = awake(spline_flow(dim, hidden=(16,)), 0.2).double()
    assert mass(flow().log_prob, dim, count, half=7.0) == pytest.approx(1.0, abs=2e-3)


def test_a_splines_density_is_that_of_its_map() -> None:
    flow = awake(spline_flow(3, transforms=2, hidden=(16,), bins=4), 0.3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    z = flow().transform(x)
    truth = StandardNormal().log_prob(z) + jacobian_log_det(flow().transform, x)
    torch.testing.assert_close(flow().log_prob(x), truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow().transform.inv(z), x, rtol=1e-9, atol=1e-9)


def test_a_spline_leaves_what_is_outside_as_it_is() -> None:
    flow = awake(spline_flow(2), 0.3)
    x = torch.tensor([[6.0, -7.0], [-5.5, 9.0]])
    torch.testing.assert_close(flow().transform(x), x)
    assert (flow().transform(x / 4) - x / 4).abs().max() > 0.1


def test_a_spline_learns_two_humps() -> None:
    torch.manual_seed(1)
    flow = spline_flow(1, transforms=2, hidden=(32,))
    optimiser = torch.optim.Adam(flow.parameters(), lr=2e-2)
    x = 0.2 * torch.randn(512, 1) + torch.randint(0, 2, (512, 1)) * 2 - 1
    for _ in range(80):
        optimiser.zero_grad()
        loss = -flow().log_prob(x).mean()
        loss.backward()
        optimiser.step()
    # The entropy of the humps is log 2 + log(0.2 sqrt(2 pi e)); a Gaussian reaches 1.44.
    assert float(loss.detach()) < 0.502 + 0.15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim >= 1, got 0"),
        ({"dim": 2, "transforms": 0}, "transforms >= 1, got 0"),
        ({"dim": 2, "bins": 1}, "bins >= 2, got 1"),
        ({"dim": 2, "hidden": ()}, r"widths >= 1, got \(\)"),
    ],
)
def test_spline_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"spline_flow: expected .*{words}"):
        spline_flow(**options)


# --- Glow ----------------------------------------------------------------------------------------


def small_glow(shape: tuple[int, ...] = (1, 4, 4)) -> Any:
    """A flow that has seen a batch and is far from the identity."""
    flow = glow(shape, blocks=2, hidden=8).double()
    # Matrices of 1 x 1 convolutions stay what they are: random rotations.
    for name, parameter in flow.named_parameters():
        if "param_map" in name or name.startswith("q0"):
            nn.init.normal_(parameter, std=0.2)
    flow.log_prob(0.5 + 2 * torch.randn(64, *shape, dtype=torch.float64), None)
    return flow


def test_the_size_of_dinofs_glow() -> None:
    flow = glow((3, 32, 32), levels=3, blocks=16, hidden=256)
    assert sum(p.numel() for p in flow.parameters()) == 7_923_456


@pytest.mark.parametrize(
    ("shape", "levels"), [((3, 32, 32), 3), ((1, 28, 28), 2), ((1, 16, 16), 3), ((1, 2, 6), 1)]
)
def test_glow_takes_the_usual_images(shape: tuple[int, ...], levels: int) -> None:
    flow = glow(shape, blocks=1, hidden=8)
    assert flow.num_levels == levels
    assert flow.log_prob(torch.randn(3, *shape), None).shape == (3,)
    x, _ = flow.sample(2)
    assert x.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 2)])
def test_glows_density_is_that_of_its_map(shape: tuple[int, ...]) -> None:
    flow = small_glow(shape).eval()

    def noise(x: Tensor) -> Tensor:
        parts, _ = flow.inverse_and_log_det(x)
        white = [
            (z - base.loc) / base.log_scale.exp() for z, base in zip(parts, flow.q0, strict=True)
        ]
        return torch.cat([z.flatten(1) for z in white], 1)

    x = 2 * torch.randn(3, *shape, dtype=torch.float64)
    truth = StandardNormal().log_prob(noise(x)) + jacobian_log_det(noise, x)
    torch.testing.assert_close(flow.log_prob(x, None), truth, rtol=1e-9, atol=1e-9)
    back = flow.forward_and_log_det(flow.inverse_and_log_det(x)[0])[0]
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)


def norms(flow: nn.Module) -> list[ActNorm]:
    return [module for module in flow.modules() if isinstance(module, ActNorm)]


def test_the_first_batch_of_training_sets_every_norm() -> None:
    flow = glow((2, 8, 8), levels=2, blocks=2, hidden=8)
    assert len(norms(flow)) == 4
    seen = []
    for norm in norms(flow):
        assert not norm.initialised
        norm.register_forward_hook(lambda *_: pytest.fail("this direction is for samples"))
    originals = [norm.inverse for norm in norms(flow)]
    for norm, original in zip(norms(flow), originals, strict=True):
        norm.inverse = lambda x, run=original: seen.append(run(x)) or seen[-1]
    flow.log_prob(3.0 + 5.0 * torch.randn(32, 2, 8, 8), None)
    assert all(norm.initialised for norm in norms(flow))
    for z, _ in seen:
        std, mean = torch.std_mean(z, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)


def test_the_second_batch_sets_nothing() -> None:
    flow = small_glow()
    before = copy.deepcopy(flow.state_dict())
    flow.log_prob(100 * torch.randn(8, 1, 4, 4, dtype=torch.float64), None)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_samples_and_evaluation_leave_a_new_flow_new() -> None:
    flow = glow((1, 4, 4), blocks=1, hidden=4)
    flow.sample(8)
    flow.eval()
    flow.log_prob(torch.randn(8, 1, 4, 4), None)
    flow.train()
    flow.log_prob(torch.randn(0, 1, 4, 4), None)
    assert not any(norm.initialised for norm in norms(flow))
    flow.log_prob(torch.randn(8, 1, 4, 4), None)
    assert all(norm.initialised for norm in norms(flow))


def test_a_loaded_flow_does_not_start_again() -> None:
    flow = small_glow()
    other = glow((1, 4, 4), blocks=2, hidden=8).double()
    other.load_state_dict(flow.state_dict())
    x = 30 * torch.randn(8, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(other.train().log_prob(x, None), flow.log_prob(x, None))
    fresh = glow((1, 4, 4), blocks=2, hidden=8).double()
    other.load_state_dict(fresh.state_dict())
    other.log_prob(x, None)
    scales = torch.stack([norm.s.exp().mean() for norm in norms(other)])
    assert scales.max() > 10


def test_an_averaged_twin_does_not_start_again() -> None:
    flow = glow((1, 4, 4), blocks=1, hidden=4)
    twin = AveragedModel(flow)
    flow.log_prob(2 * torch.randn(16, 1, 4, 4), None)
    twin.update_parameters(flow)
    x = 30 * torch.randn(8, 1, 4, 4)
    assert torch.equal(twin.module.log_prob(x, None), flow.log_prob(x, None))


def test_a_channel_that_does_not_vary_keeps_its_scale() -> None:
    norm = ActNorm(2)
    x = torch.stack([torch.full((4, 3, 3), 7.0), 5 * torch.randn(4, 3, 3)], 1)
    z, log_det = norm.inverse(x)
    assert not z[:, 0].any()
    assert norm.s[0, 0] == 0
    assert log_det.item() == pytest.approx(-9 * norm.s.sum().item())
    back, log_det_back = norm(z)
    torch.testing.assert_close(back, x)
    assert torch.equal(log_det_back, -log_det)


def test_glow_as_a_prior_gives_samples_by_their_index() -> None:
    prior = FlowPrior(glow((1, 8, 8), blocks=2, hidden=8))
    for _ in range(2):
        whole = prior.sample((10, 1, 8, 8), KEY)
        parts = [
            prior.sample((4, 1, 8, 8), KEY),
            prior.sample((6, 1, 8, 8), KEY, sample_offset=4),
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
        prior.log_prob(0.3 * torch.randn(32, 1, 8, 8))
    strided = torch.randn(4, 8, 8, 1).permute(0, 3, 2, 1)
    torch.testing.assert_close(prior.log_prob(strided), prior.log_prob(strided.contiguous()))


def test_glow_learns() -> None:
    prior = FlowPrior(glow((1, 4, 4), blocks=2, hidden=16))
    optimiser = torch.optim.Adam(prior.parameters(), lr=3e-3)
    # Two Gaussians beside one another: neighbouring pixels are equal up to noise.
    x = torch.randn(256, 1, 4, 2).repeat_interleave(2, 3) + 0.1 * torch.randn(256, 1, 4, 4)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = -prior.log_prob(x).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    covariance = torch.cov(x.flatten(1).T)
    independent = 16 * 0.5 * math.log(2 * math.pi * math.e)
    gaussian = independent + 0.5 * float(torch.logdet(covariance))
    assert losses[-1] < 0.5 * (independent + gaussian)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (16, 16)}, r"a shape \(C, H, W\), got \(16, 16\)"),
        ({"shape": (0, 4, 4)}, r"a shape \(C, H, W\), got \(0, 4, 4\)"),
        ({"shape": (1, 28, 28), "levels": 3}, r"divisible by 2\^3, got 28 x 28; take at most 2"),
        ({"shape": (1, 7, 8)}, r"divisible by 2\^1, got 7 x 8"),
        ({"shape": (1, 8, 8), "levels": 0}, "levels >= 1, got 0"),
        ({"shape": (1, 8, 8), "blocks": 0}, "blocks >= 1, got 0"),
        ({"shape": (1, 8, 8), "hidden": 0}, "hidden >= 1, got 0"),
    ],
)
def test_glow_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"glow: expected .*{words}"):
        glow(**options)


# --- FFJORD --------------------------------------------------------------------------------------


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


def test_hutchinson_draws_signs_from_torchs_generator() -> None:
    flow = curved(3, solver="rk4", num_steps=5, divergence="hutchinson")
    x = torch.randn(4, 3, dtype=torch.float64)
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(flow.log_prob(x))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(flow.log_prob(x), values[0])
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    every = torch.stack([flow.log_prob(x, row.expand(4, 3)) for row in signs])
    assert (every - values[0]).abs().min(0).values.max() < 1e-12


def test_it_agrees_with_zukos_continuous_flow() -> None:
    other = zuko.flows.CNF(2, hidden_features=(8,), atol=1e-9, rtol=1e-9).double()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.3)

    class Velocity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = other.transform

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.transform.f(t, x)

    x = torch.randn(6, 2, dtype=torch.float64)
    with torch.no_grad():
        mine, theirs = FFJORD(Velocity(), rtol=1e-8, atol=1e-8).log_prob(x), other().log_prob(x)
    # Errors add up over steps, to a hundred times and more what is allowed in one.
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
    assert (mine - StandardNormal().log_prob(x)).abs().max() > 0.1


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


def test_samples_follow_the_density() -> None:
    flow = curved(2, solver="rk4", num_steps=20)
    x = flow.sample(4000)
    with torch.no_grad():
        log_p = flow.log_prob(x)
    q = distributions.MultivariateNormal(x.mean(0), 0.6 * torch.cov(x.T))
    weights = (q.log_prob(x) - log_p).exp()
    error = float(weights.std()) / math.sqrt(len(x))
    assert error < 0.1
    assert abs(float(weights.mean()) - 1) < 5 * error


def test_as_a_prior_it_is_fed_by_philox() -> None:
    flow = curved(2, solver="rk4", num_steps=5)
    prior = FlowPrior(flow)
    x = prior.sample((10, 2), KEY, dtype=torch.float64)
    z = normal((10, 2), KEY, purpose="prior", dtype=torch.float64)
    assert torch.equal(x, flow.sample_from(z).detach())
    assert torch.equal(prior.sample((6, 2), KEY, sample_offset=4, dtype=torch.float64), x[4:])
    value = prior.log_prob(x)
    assert torch.equal(value, flow.log_prob(x))
    assert value.requires_grad


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "magic"}, "solver to be one of .*, got 'magic'"),
        ({"divergence": "none"}, "divergence to be one of .*, got 'none'"),
        ({"t_end": 0.0}, "positive, finite t_end, got 0.0"),
        ({"rtol": -1.0}, "positive, finite rtol, got -1.0"),
        ({"atol": math.inf}, "positive, finite atol, got inf"),
        ({"num_steps": 0}, "num_steps >= 1, got 0"),
    ],
)
def test_ffjord_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"FFJORD: expected .*{words}"):
        FFJORD(FourierMLP(2, 4), **options)


def test_wrong_nets_are_named() -> None:
    with pytest.raises(TypeError, match=r"net to be callable as net\(t, x\), got 3"):
        FFJORD(3)
    with pytest.raises(ValueError, match=r"the shape of x \(4, 2\), got \(4, 1\)"):
        FFJORD(lambda _, x: x[:, :1]).log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"probe of the shape of x \(4, 2\), got \(4, 3\)"):
        FFJORD(FourierMLP(2, 4)).log_prob(torch.zeros(4, 2), torch.ones(4, 3))
    with pytest.raises(RuntimeError, match="FFJORD: expected a solvable equation"):
        FFJORD(lambda _, x: x / 0).log_prob(torch.ones(4, 2))
