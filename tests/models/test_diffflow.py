"""DiffFlowSDE against its formulas, and as a density of mass 1."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.flows import StandardNormal, glow, spline_flow
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(11, 3)
SIGMAS = 4.5  # standard errors: one in 150,000 fails by chance, and the noise is fixed


def test_path_model_is_a_density_when_g_varies() -> None:
    """E_F[p_B(path) / p_F(path | x0)] over paths, integrated over x0, is 1 (in one dimension)."""
    grid = TimeGrid.power(4, 1.0)
    diffusion = GeometricDiffusion(0.5, 1.5)
    sde = DiffFlowSDE(
        lambda t, x: -0.6 * torch.sin(x) - 0.2 * t * x, lambda t, x: -0.7 * x, diffusion
    )
    points = torch.linspace(-9, 9, 181, dtype=torch.float64)
    paths = 4000
    x0 = points.repeat_interleave(paths).unsqueeze(1)
    density = sde.elbo(x0, grid, KEY).detach().exp().reshape(len(points), paths)
    spacing = float(points[1] - points[0])
    total = float(density.mean(1).sum()) * spacing
    error = spacing * math.sqrt(float((density.var(1) / paths).sum()))
    assert error < 0.02
    assert abs(total - 1) < SIGMAS * error
    # Without the boundary term it would integrate to g_N / g_0 = 3.
    assert abs(total - 3) > 50 * error


def networks() -> DiffFlowSDE:
    return DiffFlowSDE(FourierMLP(2, 16, 1), FourierMLP(2, 16, 1), GeometricDiffusion(0.2, 0.9))


@torch.no_grad()
def test_a_path_is_the_documented_loop() -> None:
    sde, grid, x = networks(), TimeGrid.power(5, 1.0), torch.randn(6, 2)
    path, times = sde.path(x, grid, KEY), grid.times.float()
    for i, dt in enumerate(grid.steps()):
        assert torch.allclose(path[i], x, atol=1e-6)
        noise = normal((6, 2), KEY, step=i)
        x = x + sde.drift(times[i], x) * dt + sde.diffusion(times)[i] * math.sqrt(dt) * noise
    assert torch.allclose(path[-1], x, atol=1e-6)
    assert torch.equal(path[-1], sde.encode(path[0], grid, KEY))


def test_last_steps() -> None:
    sde, grid = networks(), TimeGrid.power(5, 1.0)
    g1, dt = float(sde.diffusion(grid.times.float())[1]), grid.steps()[0]
    paths = {
        kind: sde.sample_path((6, 2), grid, KEY, 0.7, kind)
        for kind in ("noisy", "mean", "tweedie")
    }
    for path in paths.values():
        assert torch.equal(path[1:], paths["noisy"][1:])
    x1 = paths["noisy"][1]
    t1 = grid.times[1].float()
    with torch.no_grad():
        f, s = sde.drift(t1, x1), sde.score(t1, x1)
        mean = x1 - (f - 0.5 * (1 + 0.49) * g1**2 * s) * dt
        sigma = 0.7 * g1 * math.sqrt(dt)
        noisy = mean + sigma * normal((6, 2), KEY, purpose="reverse", step=0)
        tweedie = noisy + sigma**2 * sde.score(t1, noisy)
    for kind, truth in (("mean", mean), ("noisy", noisy), ("tweedie", tweedie)):
        assert torch.allclose(paths[kind][0], truth, atol=2e-6), kind
    assert torch.equal(sde.sample((6, 2), grid, KEY, 0.7, "mean"), paths["mean"][0])


def test_samples_do_not_depend_on_how_a_call_is_split() -> None:
    sde, grid = DiffFlowSDE(lambda t, x: -0.5 * x, lambda t, x: -x, 0.7), TimeGrid.power(9, 1.0)
    whole = sde.sample((100, 3), grid, KEY)
    parts = [
        sde.sample((n, 3), grid, KEY, sample_offset=at) for at, n in ((0, 1), (1, 60), (61, 39))
    ]
    assert torch.equal(torch.cat(parts), whole)
    x0 = torch.randn(100, 3)
    encoded = [sde.encode(x0[a:b], grid, KEY, sample_offset=a) for a, b in ((0, 7), (7, 100))]
    assert torch.equal(torch.cat(encoded), sde.encode(x0, grid, KEY))


def test_loss_does_not_depend_on_how_a_batch_is_split() -> None:
    sde, grid = DiffFlowSDE(lambda t, x: -0.5 * x, lambda t, x: -x, 0.7), TimeGrid.power(9, 1.0)
    x0 = torch.randn(50, 3)
    whole = sde.loss(x0, grid, KEY)
    parts = [sde.loss(x0[a:b], grid, KEY, sample_offset=a) for a, b in ((0, 7), (7, 50))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(sde.elbo(x0, grid, KEY)[7:], sde.elbo(x0[7:], grid, KEY, sample_offset=7))


def test_sampling_on_another_grid_and_default_key() -> None:
    sde = networks()
    for n in (1, 3, 40):
        assert sde.sample((4, 2), TimeGrid.power(n, 1.0)).isfinite().all()
    grid = TimeGrid.power(5, 1.0)
    torch.manual_seed(4)
    first = sde.sample((4, 2), grid)
    second = sde.sample((4, 2), grid)
    torch.manual_seed(4)
    assert torch.equal(sde.sample((4, 2), grid), first)
    assert not torch.equal(first, second)


def test_elbo_is_loss_with_control_variate_and_boundary() -> None:
    sde, grid = networks(), TimeGrid.power(5, 1.0)
    x0 = torch.randn(6, 2)
    g = sde.diffusion(grid.times.float())
    energy = sum(0.5 * normal((6, 2), KEY, step=i).square().sum(1) for i in range(5))
    expected = energy - sde.loss(x0, grid, KEY) - 2 * torch.log(g[-1] / g[0])
    assert torch.allclose(sde.elbo(x0, grid, KEY), expected, atol=1e-4)


def test_elbo_gradient_reaches_a_learned_diffusion() -> None:
    sde, grid = networks(), TimeGrid.power(4, 1.0)
    sde.double()
    sde.diffusion = GeometricDiffusion(0.3, 0.9, learnable=True).double()
    x0 = torch.randn(6, 2, dtype=torch.float64)

    def value(log_g: Tensor) -> Tensor:
        def g(t: Tensor) -> Tensor:
            return torch.lerp(log_g[0], log_g[1], t).exp()

        return DiffFlowSDE(sde.drift, sde.score, g).elbo(x0, grid, KEY).sum()

    log_g = sde.diffusion.log_g.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (log_g,))


def test_inference_mode() -> None:
    sde, grid = networks(), TimeGrid.power(4, 1.0)
    expected = sde.sample((3, 2), grid, KEY)
    with torch.inference_mode():
        assert torch.equal(sde.sample((3, 2), grid, KEY), expected)
        assert sde.elbo(expected, grid, KEY).isfinite().all()
        assert sde.path(expected.clone(), grid, KEY).shape == (5, 3, 2)


def test_module_behaviour() -> None:
    sde, grid = networks(), TimeGrid.power(4, 1.0)
    x0 = torch.randn(6, 2)
    assert torch.equal(sde(x0, grid, KEY), sde.mean_loss(x0, grid, KEY))
    assert torch.equal(copy.deepcopy(sde).loss(x0, grid, KEY), sde.loss(x0, grid, KEY))
    file = io.BytesIO()
    torch.save(sde.state_dict(), file)
    file.seek(0)
    other = networks()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.loss(x0, grid, KEY), sde.loss(x0, grid, KEY))
    assert torch.allclose(sde.loss(x0, grid, KEY).mean(), sde.mean_loss(x0, grid, KEY))
    sde.double()
    assert sde.sample((3, 2), grid).dtype == torch.float64


@pytest.mark.parametrize("every", [1, 2])
def test_a_compiled_training_step_leaves_the_graph_at_the_loss(every: int) -> None:
    sde, grid = networks(), TimeGrid.power(4, 1.0)
    sde.diffusion = GeometricDiffusion(0.3, 0.9, learnable=True)
    x0 = torch.randn(6, 2, requires_grad=True)

    def mean(x: Tensor, key: Any) -> Tensor:
        return 3 * sde.mean_loss(2 * x, grid, key, checkpoint_every=every)

    def total(x: Tensor, key: Any) -> Tensor:
        return (3 * sde.loss(2 * x, grid, key, checkpoint_every=every)).sum()

    key = NoiseKey(3, 1).to_tensor()
    for step in (mean, total):
        assert torch._dynamo.explain(step)(x0, key).graph_break_count == 1
        compiled = torch.compile(step, backend="aot_eager")
        for given in (key, NoiseKey(3, 2).to_tensor(), NoiseKey(4, 1)):
            results = []
            for fn in (compiled, step):
                loss = fn(x0, given)
                grads = torch.autograd.grad(loss, [x0, *sde.parameters()], allow_unused=True)
                results.append([loss.detach(), *grads])
            for a, b in zip(*results, strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_standard_normal_prior_changes_nothing() -> None:
    sde, grid = networks(), TimeGrid.power(5, 0.5)
    other = DiffFlowSDE(sde.drift, sde.score, sde.diffusion, prior=StandardNormal())
    x0 = torch.randn(9, 2)
    torch.testing.assert_close(other.loss(x0, grid, KEY), sde.loss(x0, grid, KEY))
    torch.testing.assert_close(other.log_prob(x0, grid), sde.log_prob(x0, grid))
    assert torch.equal(other.sample((9, 2), grid, KEY), sde.sample((9, 2), grid, KEY))


def test_a_flow_as_prior_trains_samples_and_saves_with_the_model() -> None:
    nets, grid = networks(), TimeGrid.power(4, 0.5)
    sde = DiffFlowSDE(nets.drift, nets.score, 0.6, prior=spline_flow(2, transforms=1, hidden=(8,)))
    assert any(name.startswith("prior.flow.") for name, _ in sde.named_parameters())
    x0 = 3 * torch.randn(64, 2)
    adam = torch.optim.Adam(sde.parameters(), lr=0.05)
    losses = []
    for step in range(40):
        loss = sde.mean_loss(x0, grid, NoiseKey(0, step))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    z = normal((5, 2), KEY, purpose="prior")
    last = sde.sample_path((5, 2), grid, KEY)[-1]
    assert torch.equal(last, sde.prior.flow.sample_from(z).detach())


def test_bad_arguments() -> None:
    sde, grid = networks(), TimeGrid.power(4, 1.0)
    x0 = torch.randn(6, 2)
    with pytest.raises(TypeError, match=r"expected drift to be callable as drift\(t, x\), got 3"):
        DiffFlowSDE(3, sde.score)  # pyright: ignore
    with pytest.raises(ValueError, match=r"expected engine to be .*, got 'fast'"):
        sde.loss(x0, grid, engine="fast")  # pyright: ignore
    with pytest.raises(ValueError, match="expected stochasticity >= 0, got -1"):
        sde.sample((3, 2), grid, KEY, -1.0)
    with pytest.raises(ValueError, match="expected last_step to be one of"):
        sde.sample((3, 2), grid, KEY, last_step="exact")  # pyright: ignore
    with pytest.raises(ValueError, match="expected finite weight, got nan at index"):
        sde.mean_loss(x0, grid, weight=torch.tensor([1.0, 2, 3, 4, 5, float("nan")]))
    with pytest.raises(TypeError, match="expected shape to be a shape"):
        sde.sample(3, grid)  # pyright: ignore
    with pytest.raises(ValueError, match=r"expected weight of shape \(6,\)"):
        sde.mean_loss(x0, grid, weight=torch.ones(5))
    with pytest.raises(ValueError, match=r"x of shape \(B, 2\)|shape"):
        sde.loss(torch.randn(6, 3), grid)


def test_offsets_of_many_paths_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\(2147483648 \+ 3\) \* 2"):
        networks().elbo(
            torch.ones(3, 2), TimeGrid.power(2, 1.0), KEY, num_paths=2, sample_offset=2**31
        )


def test_a_frozen_flow_takes_its_scale_from_the_whole_batch() -> None:
    """Nothing is asked of it before: a single sample has no spread."""
    prior = glow((1, 4, 4), levels=1, blocks=1, hidden=4)
    sde = DiffFlowSDE(lambda t, x: -x, lambda t, x: -x, prior=prior)
    x0 = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for parameter in sde.parameters():
        parameter.requires_grad_(False)
    loss = sde.loss(x0, TimeGrid.power(4, 1.0), KEY)
    assert float(loss.abs().max()) < 1000


def test_what_turns_the_loss_into_the_bound() -> None:
    sde, grid, x0 = networks(), TimeGrid.power(5, 1.0), torch.randn(7, 2)
    with torch.no_grad():
        found = sde.loss(x0, grid, KEY, sample_offset=3)
        found = found + sde.bound_minus_loss(x0, grid, KEY, sample_offset=3)
    torch.testing.assert_close(-found, sde.elbo(x0, grid, KEY, sample_offset=3).detach())


def test_float64_data_in_float32_networks() -> None:
    sde, grid, x0 = networks(), TimeGrid.power(5, 1.0), torch.randn(7, 2, dtype=torch.float64)
    for call in (sde.mean_loss, sde.loss, sde.log_prob):
        with pytest.raises(TypeError, match=r"float32 parameters and float64 data.*\.float\(\)"):
            call(x0, grid, KEY)


def test_a_prior_that_is_no_module() -> None:
    flow = spline_flow(2, transforms=1, hidden=(4,))
    sde, x0 = DiffFlowSDE(networks().drift, networks().score, prior=flow()), torch.randn(5, 2)
    with pytest.raises(RuntimeError, match=r"not the distribution `flow\(\)`"):
        sde.loss(x0, TimeGrid.power(3, 1.0), KEY).sum().backward()
