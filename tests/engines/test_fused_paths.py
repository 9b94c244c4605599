"""The fused engine against the adjoint in float64, and against the documented noise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fused_cases import KEY, apart, batch
from helpers import BF16_ENGINES
from torch import Tensor

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, TimeGrid
from diffflow_ext.engines.fused import paths, workspace
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP

pytestmark = pytest.mark.usefixtures("same_threads")


def model(
    dim: int = 2,
    drift: tuple[int, int] = (32, 2),
    score: tuple[int, int] | None = None,
    activation: str = "gelu",
    *,
    learnable: bool = False,
) -> DiffFlowSDE:
    """Networks of these widths and depths; the score's are the drift's where none are given."""
    torch.manual_seed(0)
    sizes = (drift, score or drift)
    nets = [
        FourierMLP(dim, *size, activation, time_scale=0.1, output_scale=scale)
        for size, scale in zip(sizes, (1.0, 1.6), strict=True)
    ]
    return DiffFlowSDE(*nets, GeometricDiffusion(0.4, 1.0, learnable=learnable))


def gradients(
    sde: DiffFlowSDE, x0: Tensor, grid: TimeGrid, engine: Any, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted loss, and its gradients of data and parameters in one vector."""
    sde, x0 = copy.deepcopy(sde), x0.clone().requires_grad_()
    weight = None if weight is None else weight.to(x0.dtype)
    loss = sde.mean_loss(x0, grid, KEY, weight=weight, engine=engine)
    leaves = [x0, *(p for p in sde.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return loss.detach(), torch.cat([grad.flatten() for grad in grads])


# --- values and gradients ------------------------------------------------------------------------


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("learnable", [False, True], ids=["g", "learned g"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize(
    ("dim", "widths", "depths", "samples", "num_steps"),
    [
        (1, (1, 1), (0, 0), 1, 1),
        (2, (33, 20), (3, 0), 97, 6),
        (9, (32, 65), (1, 3), 40, 3),
        (20, (7, 70), (0, 2), 130, 1),
        (70, (100, 100), (2, 2), 25, 2),
    ],
)
def test_loss_and_gradient_are_those_of_the_adjoint_in_float64(
    dim: int,
    widths: tuple[int, int],
    depths: tuple[int, int],
    samples: int,
    num_steps: int,
    activation: str,
    learnable: bool,
) -> None:
    """The two networks need not be alike."""
    drift, score = zip(widths, depths, strict=True)
    sde = model(dim, drift, score, activation, learnable=learnable)
    x0, grid = batch(samples, dim), TimeGrid.power(num_steps, 1.0)
    weight = torch.rand(samples, generator=torch.Generator().manual_seed(2)) - 0.2
    exact = gradients(sde.double(), x0.double(), grid, "autograd", weight)
    found = gradients(sde.float(), x0, grid, "fused", weight)
    assert apart(found[0], exact[0]) < 2e-6
    assert apart(found[1], exact[1]) < 1e-5


def test_long_paths_of_the_papers_networks() -> None:
    sde, x0, grid = model(2, (128, 3)), batch(50), TimeGrid.power(200, 1.0)
    exact = gradients(copy.deepcopy(sde).double(), x0.double(), grid, "autograd")
    found = gradients(sde, x0, grid, "fused")
    assert apart(found[0], exact[0]) < 1e-5
    assert apart(found[1], exact[1]) < 1e-5


@pytest.mark.usefixtures("instructions")
def test_losses_of_samples_and_their_gradient() -> None:
    sde, x0, grid = model(learnable=True), batch(61), TimeGrid.power(5, 1.0)
    cotangent = torch.linspace(-1, 2, 61)
    results = []
    for engine, dtype in (("fused", torch.float32), ("autograd", torch.float64)):
        one = copy.deepcopy(sde).to(dtype)
        loss = one.loss(x0.to(dtype), grid, KEY, engine=engine)  # pyright: ignore
        loss.backward(cotangent.to(dtype))
        grads = [p.grad.flatten() for p in one.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat(grads)))
    (found, found_grad), (exact, exact_grad) = results
    assert apart(found, exact) < 2e-6
    assert apart(found_grad, exact_grad) < 1e-5


def test_shared_and_frozen_networks() -> None:
    net = FourierMLP(2, 32, 1, time_scale=0.1)
    sde, x0, grid = DiffFlowSDE(net, net), batch(9), TimeGrid.power(4, 1.0)
    net.hidden[0].weight.requires_grad_(False)  # pyright: ignore
    found, expected = (gradients(sde, x0, grid, engine) for engine in ("fused", "autograd"))
    assert apart(found[1], expected[1]) < 1e-5
    for parameter in sde.parameters():
        parameter.requires_grad_(False)
    assert not sde.mean_loss(x0, grid, KEY, engine="fused").requires_grad


def test_the_bound_is_that_of_the_adjoint() -> None:
    sde, x0, grid = model(), batch(50), TimeGrid.power(5, 1.0)
    with torch.no_grad():
        found = sde.elbo(x0, grid, KEY, num_paths=3)
        expected = sde.double().elbo(x0.double(), grid, KEY, num_paths=3)
    assert apart(found, expected) < 2e-6


def test_what_diverges_is_not_finite() -> None:
    sde, grid = model(), TimeGrid.power(3, 1.0)
    with torch.no_grad():
        sde.drift.output.weight.mul_(1e30)
    assert not torch.isfinite(sde.mean_loss(batch(5), grid, KEY, engine="fused"))


# --- bfloat16 ------------------------------------------------------------------------------------


def rounded(sde: DiffFlowSDE, x0: Tensor, grid: TimeGrid) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        assert sde.engine_for(x0, grid).name == "fused"
        return gradients(sde, x0, grid, "fused")


@pytest.mark.usefixtures("bf16_instructions")
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize(("dim", "width", "depth", "samples"), [(2, 128, 3, 200), (9, 40, 1, 33)])
def test_bfloat16_is_far_more_exact_than_the_noise(
    activation: str, dim: int, width: int, depth: int, samples: int
) -> None:
    sde = model(dim, (width, depth), activation=activation)
    x0, grid = batch(samples, dim), TimeGrid.power(9, 1)
    exact = gradients(copy.deepcopy(sde).double(), x0.double(), grid, "autograd")
    found = rounded(sde, x0, grid)
    other = gradients(sde, x0.roll(1, 0), grid, "fused")  # Samples change places: other noise.
    assert apart(found[0], exact[0]) < 1e-3
    parameters = slice(x0.numel(), None)
    error, spread = (apart(g[1][parameters], exact[1][parameters]) for g in (found, other))
    assert 1e-5 < error < 0.01
    assert error < spread / 10


@pytest.mark.usefixtures("bf16_instructions")
def test_bfloat16_makes_paths_and_samples_too() -> None:
    sde, grid = model(), TimeGrid.power(6, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = sde.sample((45, 2), grid, KEY), sde.encode(batch(45), grid, KEY)
    expected = sde.sample((45, 2), grid, KEY), sde.encode(batch(45), grid, KEY)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert 1e-6 < apart(a, b) < 0.02


@pytest.mark.usefixtures("bf16_instructions")
def test_weights_are_float32_leaves_under_autocast() -> None:
    """Autocast would round the time embedding, and its cache would hide it from gradients."""
    sde, grid = model(), TimeGrid.power(3, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        sde.mean_loss(batch(9), grid, KEY).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in sde.parameters())


@pytest.mark.skipif("amxbf16" not in BF16_ENGINES, reason="needs matrix tiles")
@pytest.mark.parametrize("tile", [2, 14, 16, 18, 32, 46, 48, 80])
def test_matrix_tiles_compute_the_products_of_vectors(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors are rounded alike, and only the order of sums differs; widths are odd too.

    A sum that differs by its last bit may be rounded to another bfloat16, which is 2^-8 of one
    factor among many: gradients differ by more than float32's rounding.
    """
    monkeypatch.setattr(workspace, "tile_size", lambda *_: tile)
    for width, depth, samples in ((32, 1, 3 * tile), (40, 2, 75), (600, 1, 33), (128, 3, 100)):
        sde, grid = model(3, (width, depth)), TimeGrid.power(3, 1.0)
        results = []
        for name in ("amxbf16", "avx512bf16"):
            monkeypatch.setattr(workspace, "_instructions", lambda name=name: ["avx512", name])
            results.append(rounded(sde, batch(samples, 3), grid))
        assert apart(results[0][0], results[1][0]) < 1e-6
        assert apart(results[0][1], results[1][1]) < 1e-4


# --- noise, paths and samples --------------------------------------------------------------------


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_noise_is_the_documented_noise_to_the_bit(dim: int) -> None:
    """Networks of zeros leave nothing but noise."""
    sde, grid = model(dim), TimeGrid.power(4, 1.0)
    with torch.no_grad():
        for parameter in sde.parameters():
            parameter.zero_()
    x0, g = batch(53, dim), GeometricDiffusion(0.4, 1.0)(grid.times.float()).tolist()
    path, x = sde.path(x0, grid, KEY, sample_offset=17), x0
    for k, dt in enumerate(grid.steps()):
        eps = normal((53, dim), KEY, purpose="forward", step=k, sample_offset=17)
        length = torch.tensor(dt, dtype=torch.float32)
        x = x + torch.tensor(g[k]) * length.sqrt() * eps
        assert torch.equal(path[k + 1], x)
    assert torch.equal(sde.encode(x0, grid, KEY, sample_offset=17), path[-1])


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("last_step", ["noisy", "mean", "tweedie"])
def test_samples_are_those_of_single_steps(stochasticity: float, last_step: Any) -> None:
    sde, grid = model(3), TimeGrid.power(6, 1.0)
    options = {"stochasticity": stochasticity, "last_step": last_step}
    found = sde.sample_path((45, 3), grid, KEY, **options, sample_offset=5)
    expected = sde.double().sample_path((45, 3), grid, KEY, **options, sample_offset=5)
    assert found.dtype == torch.float32
    assert apart(found, expected) < 2e-6
    assert torch.equal(
        sde.float().sample((45, 3), grid, KEY, **options, sample_offset=5), found[0]
    )


# --- what results depend on ----------------------------------------------------------------------


@pytest.mark.parametrize("samples", [8, 120, 333])
def test_results_do_not_depend_on_the_number_of_threads(samples: int) -> None:
    sde, x0, results = model(learnable=True), batch(samples), []
    grid = TimeGrid.power(4, 1.0)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(gradients(sde, x0, grid, "fused"))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


def test_samples_do_not_depend_on_their_neighbours() -> None:
    sde, x0, grid = model(), batch(101), TimeGrid.power(4, 1.0)
    whole = sde.loss(x0, grid, KEY, engine="fused")
    parts = [
        sde.loss(part, grid, KEY, engine="fused", sample_offset=first)
        for first, part in zip((0, 37, 74), x0.split(37), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_evaluating_the_drift_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sde, x0, grid = model(learnable=True), batch(50), TimeGrid.power(5, 1.0)
    kept = gradients(sde, x0, grid, "fused")
    monkeypatch.setattr(paths, "KEPT_BYTES", 0)
    again = gradients(sde, x0, grid, "fused")
    assert torch.equal(kept[0], again[0])
    assert torch.equal(kept[1], again[1])


def test_memory_does_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(
        workspace,
        "scratch_memory",
        lambda n: sizes.append(n) or torch.empty(n, dtype=torch.uint8),
    )
    torch.set_num_threads(2)
    sde, grid = model(2, (128, 3)), TimeGrid.power(30, 1.0)
    for samples in (80, 800):
        sde.mean_loss(batch(samples), grid, KEY, engine="fused")
    assert sizes[0] == sizes[1] < 20 * 2**20


def test_rows_behind_the_last_sample_poison_nothing() -> None:
    """A tile is filled up; what fills it must not overflow where the samples do not."""
    torch.manual_seed(0)
    net, grid = FourierMLP(2, 8, 0), TimeGrid.power(3, 1.0)
    with torch.no_grad():  # The drift is nearly 0 at the data, and 1e30 at 0.
        for parameter in net.parameters():
            parameter.zero_()
        net.input.weight.fill_(1.0)
        net.input.bias.fill_(1.0)
        net.output.weight[:, 0] = 1e30
    sde, x0 = DiffFlowSDE(net, FourierMLP(2, 8, 0), 1e-8), torch.full((9, 2), -1000.0)
    assert not torch.isfinite(sde.loss(0 * x0, grid, KEY)).any()
    for engine in ("autograd", "fused"):
        assert torch.isfinite(gradients(sde, x0, grid, engine)[1]).all()


def test_data_in_another_layout() -> None:
    sde, x0, grid = model(), batch(40), TimeGrid.power(3, 1.0)
    expected = gradients(sde, x0, grid, "fused")
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t.t().contiguous().t() if t.dim() == 2 else t
    ):
        loss = sde.loss(x0.clone().requires_grad_(), grid, KEY, engine="fused").mean()
        grads = torch.autograd.grad(loss, list(sde.parameters()), materialize_grads=True)
    found = torch.cat([grad.flatten() for grad in grads])
    assert apart(found, expected[1][x0.numel() :]) < 1e-6


def test_nothing_depends_on_the_default_device() -> None:
    sde, x0, grid = model(), batch(5), TimeGrid.power(3, 1.0)
    expected = sde.mean_loss(x0, grid, KEY)
    with torch.device("meta"):
        assert torch.equal(sde.mean_loss(x0, grid, KEY), expected)
        assert torch.equal(sde.loss(x0, grid, KEY).mean(), expected)


def test_no_gradients_are_computed_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(paths.FusedPaths, "_compute", lambda fused, weight, inputs: (
        asked.append(weight) or inputs[0].new_zeros(len(inputs[0])), []))  # fmt: skip
    sde, x0, grid = model(), batch(5), TimeGrid.power(3, 1.0)
    with torch.no_grad():
        sde.mean_loss(x0, grid, KEY, engine="fused")
    with torch.inference_mode():
        sde.mean_loss(x0, grid, KEY, engine="fused")
    assert asked == [None, None]


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("scale", [1e-1, 1e-4, 1e-7])
def test_tanh_keeps_its_digits_near_zero(scale: float) -> None:
    sde, x0, grid = model(2, (16, 1), activation="tanh"), batch(20), TimeGrid.power(2, 1)
    with torch.no_grad():
        for net in (sde.drift, sde.score):
            net.time_out.weight.zero_(), net.time_out.bias.zero_()
            net.input.weight.mul_(scale), net.input.bias.zero_()
            net.hidden[0].bias.zero_(), net.output.bias.zero_()
    grad = [
        gradients(copy.deepcopy(sde).to(dtype), x0.to(dtype), grid, engine)[1][40:]
        for dtype, engine in ((torch.float32, "fused"), (torch.float64, "autograd"))
    ]
    assert apart(*grad) < 1e-5


def test_second_derivatives_are_refused() -> None:
    sde = model()
    for loss in (sde.mean_loss, sde.loss):
        value = loss(batch(3), TimeGrid.power(2, 1.0), KEY, engine="fused").sum()
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(value, list(sde.parameters()), create_graph=True)


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    sde, x0 = model(), batch(3)
    loss = sde.loss(x0, TimeGrid.power(2, 1.0), KEY, engine="fused").sum()
    with torch.no_grad():
        sde.drift.output.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
