"""The fused loss of predicted noise against autograd in float64."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diffflow_ext import DDPM, DiNof, NoiseKey, _regression, trajectory
from diffflow_ext._backend import core
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(11, 3)
ENGINES = [name for name in core.engines() if "bf16" not in name]


def data(samples: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Times, states, targets and weights."""
    generator = torch.Generator().manual_seed(1)
    t = torch.rand(samples, generator=generator)
    x, target = torch.randn(2, samples, dim, generator=generator)
    return t, x, target, torch.rand(samples, generator=generator) - 0.2


def reference(
    net: FourierMLP, t: Tensor, x: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Errors, and the gradient of their weighted sum, in float64."""
    net, x = copy.deepcopy(net).double(), x.double().requires_grad_()
    errors = (net(t.double(), x) - target.double()).square().mean(1)
    errors.backward(weight.double())
    return errors.detach(), grads_of(net, x)


def grads_of(net: FourierMLP, x: Tensor) -> Tensor:
    assert x.grad is not None
    return torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in net.parameters())])  # pyright: ignore


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weighted", [False, True], ids=["errors", "weighted sum"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize(
    ("dim", "width", "depth", "samples"), [(1, 1, 0, 1), (2, 128, 3, 97), (9, 33, 1, 40)]
)
def test_errors_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    weighted: bool,
    activation: str,
    dim: int,
    width: int,
    depth: int,
    samples: int,
) -> None:
    monkeypatch.setattr(trajectory, "engine_name", lambda: engine)
    torch.manual_seed(0)
    net = FourierMLP(dim, width, depth, activation, time_scale=0.1)
    t, x, target, weight = data(samples, dim)
    errors, exact = reference(net, t, x, target, weight)
    x.requires_grad_()
    if weighted:
        found = _regression.weighted_square_error(net, t, x, target, weight)
        found.backward()
        assert apart(found.detach(), (errors * weight).sum()) < 1e-5
    else:
        found = _regression.square_error(net, t, x, target)
        found.backward(weight)
        assert apart(found.detach(), errors) < 2e-6
    assert apart(grads_of(net, x), exact) < 1e-5


@pytest.mark.parametrize(
    "loss",
    [
        lambda net, x: DDPM(net).mean_loss(x, KEY),
        lambda net, x: DDPM(net).loss(x, KEY).mean(),
        lambda net, x: DiNof(net).score_loss(x, KEY).mean(),
        lambda net, x: DiNof(net, loss_weight="likelihood").mean_loss(x, KEY),
    ],
)
def test_models_have_the_same_loss_with_it_and_without(loss: Any) -> None:
    torch.manual_seed(0)
    net, x = FourierMLP(2, 32, 2, time_scale=0.1), torch.randn(60, 2)
    results = []
    for model in (net, partial(net)):  # The second is not known to be a perceptron.
        net.zero_grad()
        value = loss(model, x)
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in net.parameters()])  # pyright: ignore
        results.append((value.detach().double(), grads.double()))
    for found, expected in zip(*results, strict=True):
        assert apart(found, expected) < 1e-5


def test_what_it_supports() -> None:
    net, x = FourierMLP(2, 8, 1), torch.zeros(3, 2)
    assert _regression.supports(net, x)
    assert not _regression.supports(net, x.double())
    assert not _regression.supports(net, torch.zeros(3, 5))
    assert not _regression.supports(net, torch.zeros(3, 2, 2))
    assert not _regression.supports(lambda t, x: x, x)


def test_frozen_networks_have_no_graph() -> None:
    net, (t, x, target, weight) = FourierMLP(2, 8, 1).requires_grad_(False), data(5, 2)
    assert not _regression.weighted_square_error(net, t, x, target, weight).requires_grad
    assert not _regression.square_error(net, t, x, target).requires_grad
