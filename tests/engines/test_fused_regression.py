"""The fused loss of predicted noise against autograd in float64."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from fused_cases import KEY, apart
from torch import Tensor

from diffflow_ext import DDPM, NFDM, DiNof
from diffflow_ext.engines.fused import regression
from diffflow_ext.nets import FourierMLP


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


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("weighted", [False, True], ids=["errors", "weighted sum"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize(
    ("dim", "width", "depth", "samples"), [(1, 1, 0, 1), (2, 128, 3, 97), (9, 33, 1, 40)]
)
def test_errors_and_gradients(
    weighted: bool, activation: str, dim: int, width: int, depth: int, samples: int
) -> None:
    torch.manual_seed(0)
    net = FourierMLP(dim, width, depth, activation, time_scale=0.1, output_scale=1.7)
    t, x, target, weight = data(samples, dim)
    errors, exact = reference(net, t, x, target, weight)
    x.requires_grad_()
    call = regression.prepare("test", "fused", net, t, x)
    assert call is not None
    if weighted:
        found = regression.weighted_square_error(call, x, target, weight)
        found.backward()
        assert apart(found.detach(), (errors * weight).sum()) < 1e-5
    else:
        found = regression.square_error(call, x, target)
        found.backward(weight)
        assert apart(found.detach(), errors) < 2e-6
    assert apart(grads_of(net, x), exact) < 1e-5


@pytest.mark.usefixtures("instructions")
def test_samples_share_the_embeddings_of_times() -> None:
    torch.manual_seed(0)
    net, (t, x, target, weight) = FourierMLP(2, 33, 1), data(90, 2)
    t = (10 * t).ceil() / 10
    exact = reference(net, t, x, target, weight)[1]
    x.requires_grad_()
    call = regression.prepare("test", "fused", net, t, x)
    assert call is not None
    assert len(call.parts.tensors[0]) == 10
    regression.weighted_square_error(call, x, target, weight).backward()
    assert apart(grads_of(net, x), exact) < 1e-5


@pytest.mark.usefixtures("same_threads")
def test_gradients_of_shared_times_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    net, (t, x, target, weight) = FourierMLP(2, 32, 2), data(333, 2)
    t, found = (3 * t).ceil(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        call = regression.prepare("test", "fused", net, t, x)
        assert call is not None
        loss = regression.weighted_square_error(call, x, target, weight)
        found.append(torch.autograd.grad(loss, call.parts.tensors))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize(
    "loss",
    [
        lambda net, x: DDPM(net).mean_loss(x, KEY),
        lambda net, x: DDPM(net).loss(x, KEY).mean(),
        lambda net, x: DiNof(net).score_loss(x, KEY).mean(),
        lambda net, x: DiNof(net, loss_weight="likelihood").mean_loss(x, KEY),
        lambda net, x: NFDM(net).mean_loss(x, KEY),
        lambda net, x: NFDM(net).loss(x, KEY).mean(),
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


def test_what_it_takes() -> None:
    net, (t, x, _, _) = FourierMLP(2, 8, 1), data(3, 2)
    assert regression.prepare("test", "auto", net, t, x)
    assert regression.prepare("test", "autograd", net, t, x) is None
    for other, state in (
        (net, x.double()),
        (net, x[:, :1]),
        (net, x[..., None]),
        (lambda t, x: x, x),
    ):
        assert regression.prepare("test", "auto", other, t, state) is None
        with pytest.raises(ValueError, match="engine='fused' is not possible here: eps_net"):
            regression.prepare("test", "fused", other, t, state)
    with pytest.raises(ValueError, match="expected engine to be one of"):
        DDPM(net).loss(x, KEY, engine="fast")  # pyright: ignore[reportArgumentType]


def test_second_derivatives_need_the_other_engine() -> None:
    net, (_, x, _, _) = FourierMLP(2, 8, 1), data(5, 2)
    model = DDPM(net)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(model.mean_loss(x, KEY), list(net.parameters()), create_graph=True)
    loss = model.mean_loss(x, KEY, engine="autograd")
    first = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    sum(grad.square().sum() for grad in first).backward()  # pyright: ignore


def test_frozen_networks_have_no_graph() -> None:
    net, (_, x, _, _) = FourierMLP(2, 8, 1).requires_grad_(False), data(5, 2)
    assert not DDPM(net).mean_loss(x, KEY).requires_grad
    assert not DDPM(net).loss(x, KEY).requires_grad
