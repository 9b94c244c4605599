"""Contexts in the fused engine: losses, paths and densities against torch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import KEY, apart, batch
from helpers import same_bits
from torch import Tensor, nn

from diffflow_ext import DDPM, DiffFlowSDE, DiNof, TimeGrid
from diffflow_ext.engines import paths as engine_paths
from diffflow_ext.engines.conditions import Conditioned
from diffflow_ext.engines.fused import paths, perceptrons
from diffflow_ext.nets import FourierMLP, UNet

pytestmark = pytest.mark.usefixtures("same_threads")
GRID = TimeGrid.power(5, 1.0)


def net(dim: int = 2, width: int = 20, depth: int = 2, activation: str = "gelu", **options: Any):
    options = {"context_dim": 3, "time_scale": 0.1, "output_scale": 1.3, **options}
    return FourierMLP(dim, width, depth, activation, **options)


class Case:
    """A model, its data, and a context from an encoder that shares nothing with it."""

    def __init__(self, make: Callable[[], Any], samples: int, dim: int = 2) -> None:
        torch.manual_seed(0)
        self.model, self.encoder = make(), nn.Linear(4, 3)
        self.x, self.y = batch(samples, dim), torch.randn(samples, 4)
        self.weight = torch.rand(samples) - 0.2

    def run(self, call: Any, engine: str) -> tuple[Tensor, Tensor]:
        """Values, and all gradients of their weighted sum, the encoder's too."""
        dtype = torch.float32 if engine == "fused" else torch.float64
        model, encoder = (copy.deepcopy(part).to(dtype) for part in (self.model, self.encoder))
        x = self.x.to(dtype).requires_grad_()
        value = call(model, x, encoder(self.y.to(dtype)), engine)
        total = value @ self.weight.to(dtype) if value.dim() else value
        leaves = [x, *encoder.parameters(), *model.parameters()]
        grads = torch.autograd.grad(total, leaves, materialize_grads=True)
        return value.detach(), torch.cat([grad.flatten() for grad in grads])

    def check(self, call: Any, close: float = 1e-5) -> None:
        (value, grad), (exact, truth) = (self.run(call, name) for name in ("fused", "autograd"))
        assert apart(value, exact) < close
        assert apart(grad, truth) < close


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "evaluated again"])
@pytest.mark.parametrize(
    ("dim", "samples", "widths", "depths", "activation"),
    [
        (1, 1, (1, 1), (0, 0), "tanh"),
        (2, 97, (33, 20), (3, 0), "gelu"),
        (9, 40, (32, 65), (1, 3), "silu"),
        (20, 130, (7, 70), (0, 2), "gelu"),
    ],
)
def test_losses_of_paths(
    dim: int, samples: int, widths: Any, depths: Any, activation: str, kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The two networks need not be alike, and their activations need not be kept."""
    if not kept:
        monkeypatch.setattr(paths, "KEPT_BYTES", 0)

    def make() -> DiffFlowSDE:
        sizes = zip(widths, depths, strict=True)
        return DiffFlowSDE(*(net(dim, *size, activation) for size in sizes), 0.7)

    case = Case(make, samples, dim)
    case.check(lambda sde, x, c, engine: sde.loss(x, GRID, KEY, context=c, engine=engine))
    weight = case.weight
    case.check(
        lambda sde, x, c, engine: sde.mean_loss(
            x, GRID, KEY, context=c, engine=engine, weight=weight.to(x)
        )
    )


def test_one_network_with_a_context_of_its_own() -> None:
    """A context may be a mapping, of which each network takes what it knows."""
    torch.manual_seed(0)
    labels = torch.arange(50) % 4
    drift, score = net(context_dim=0, num_classes=3), net(num_classes=3)
    sde, x, c = DiffFlowSDE(drift, score, 0.7), batch(50), torch.randn(50, 3)
    context = {"labels": labels, "vectors": c}
    assert sde.engine_for(x, GRID, context=context).name == "fused"
    found = torch.autograd.grad(
        sde.mean_loss(x, GRID, KEY, context=context, engine="fused"), [*sde.parameters()]
    )
    exact = torch.autograd.grad(
        sde.double().mean_loss(
            x.double(), GRID, KEY, context={**context, "vectors": c.double()}, engine="autograd"
        ),
        [*sde.parameters()],
    )
    for a, b in zip(found, exact, strict=True):
        assert apart(a, b) < 1e-5


def test_a_context_computed_from_a_weight_of_the_drift() -> None:
    """The weight gets both of its gradients, each once."""
    torch.manual_seed(0)
    sde, x, y = DiffFlowSDE(net(), net(), 0.7), batch(30), torch.randn(30, 3)
    grads = []
    for engine in ("fused", "autograd"):
        c = y * sde.drift.phase[:3]
        loss = sde.mean_loss(x, GRID, KEY, context=c, engine=engine)  # pyright: ignore
        grads.append(torch.autograd.grad(loss, [*sde.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert apart(a, b) < 1e-5


@pytest.mark.usefixtures("bf16_instructions")
def test_products_of_bfloat16() -> None:
    torch.manual_seed(0)
    sde, x, c = DiffFlowSDE(net(width=40), net(width=40), 0.7), batch(64), torch.randn(64, 3)
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = sde.mean_loss(x, GRID, KEY, context=c, engine="fused")
        grads = torch.autograd.grad(loss, [*sde.parameters()])
        results.append((loss, torch.cat([grad.flatten() for grad in grads])))
    for a, b in zip(*results, strict=True):
        assert 0 < apart(a.detach(), b.detach()) < 2e-2


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("way", ["forward", "reverse", "mean", "tweedie", "heun"])
def test_paths(way: str) -> None:
    torch.manual_seed(0)
    sde, x, c = DiffFlowSDE(net(), net(), 0.7), batch(61), torch.randn(61, 3)
    wide = copy.deepcopy(sde).double()
    with torch.no_grad():
        if way == "forward":
            found = sde.path(x, GRID, KEY, context=c)
            exact = wide.path(x.double(), GRID, KEY, context=c.double())
        else:
            options: dict[str, Any] = {"last_step": way if way in ("mean", "tweedie") else "noisy"}
            options |= {"stochasticity": 0.0, "solver": "heun"} if way == "heun" else {}
            found = sde.sample_path((61, 2), GRID, KEY, context=c, **options)
            exact = wide.sample_path((61, 2), GRID, KEY, context=c.double(), **options)
    assert apart(found, exact) < 2e-6


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_densities(divergence: str) -> None:
    for make in (
        lambda: DiffFlowSDE(net(), net(width=33, depth=0), 0.7),
        lambda: DiNof(net(), None, "vp"),
    ):
        case = Case(make, 61)
        grid = GRID if isinstance(case.model, DiffFlowSDE) else 4

        def density(model: Any, x: Tensor, c: Tensor, engine: str, grid: Any = grid) -> Tensor:
            options = {"solver": "rk4", "divergence": divergence, "engine": engine}
            return model.log_prob(x, grid, KEY, context=c, **options)

        case.check(density)


@pytest.mark.usefixtures("instructions")
def test_losses_of_predicted_noise() -> None:
    """Samples that share times, and samples with times of their own."""
    for make in (lambda: DDPM(net(), "linear", 7), lambda: DiNof(net())):
        case = Case(make, 61)
        part = "loss" if isinstance(case.model, DDPM) else "score_loss"
        case.check(lambda m, x, c, e, p=part: getattr(m, p)(x, KEY, context=c, engine=e))
    case = Case(lambda: DDPM(net(), "linear", 7), 61)
    case.check(lambda m, x, c, e: m.mean_loss(x, KEY, context=c, engine=e))


def test_a_sample_is_a_function_of_its_index_and_its_context() -> None:
    """To the bit, in tiles of the same size."""
    torch.manual_seed(0)
    sde, c = DiffFlowSDE(net(), net(), 0.7), torch.randn(160, 3)
    whole = sde.sample((160, 2), GRID, KEY, context=c)
    half = sde.sample((80, 2), GRID, KEY, context=c[80:], sample_offset=80)
    assert same_bits(whole[80:], half)
    other = c.clone()
    other[7] += 1
    changed = (sde.sample((160, 2), GRID, KEY, context=other) != whole).any(1)
    assert changed.nonzero().tolist() == [[7]]


@pytest.mark.parametrize(
    ("context", "other", "text"),
    [
        (None, {}, "it takes a context, and there is none"),
        (torch.zeros(4, 3), {"context_dim": 0}, "it takes no context"),
        (torch.zeros(4, 2), {}, "context vectors of shape (B, 3), got (4, 2)"),
    ],
)
def test_what_the_engine_says_of_contexts(context: Any, other: Any, text: str) -> None:
    one = net(**other)
    given = one if context is None else Conditioned(one, context)
    reason = perceptrons.parts_or_reason(given, torch.zeros(1), batch(4))
    assert isinstance(reason, str)
    assert text in reason
    with pytest.raises(ValueError) as caught:
        DDPM(one).loss(batch(4), KEY, context=context, engine="fused")
    assert text in str(caught.value)


def test_other_networks_with_a_context_are_refused_by_name() -> None:
    unet = UNet(1, 8, 8, (1, 2), 1, (), num_classes=3)
    labels, x = torch.arange(3), torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match="engine='fused' is not possible here"):
        DiffFlowSDE(unet, unet).loss(x, GRID, KEY, context=labels, engine="fused")
    given = Conditioned(lambda t, x, c: x, labels)
    assert "no network with perceptron_at" in str(
        perceptrons.parts_or_reason(given, torch.zeros(1), batch(3))
    )


def test_hooks_of_the_embedding_of_a_context_are_called() -> None:
    torch.manual_seed(0)
    one, calls = net(), []
    one.condition.vectors.register_forward_hook(lambda *args: calls.append(1))
    DDPM(one).loss(batch(4), KEY, context=torch.zeros(4, 3), engine="fused")
    assert calls == [1]


def test_kernels_for_cuda_take_no_context() -> None:
    """The refusal comes before anything of a GPU is asked."""
    x, c = batch(4), torch.zeros(4, 3)
    parts = perceptrons.parts_or_reason(Conditioned(net(), c), torch.zeros(1), x)
    reason = engine_paths._fused_on_gpu(None, parts, parts, x)  # pyright: ignore
    assert reason == "its kernels for CUDA take no context"
