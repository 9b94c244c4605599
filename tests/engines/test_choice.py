"""Which engine a problem is given to, and why it is not the fused one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import KEY, batch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, TimeGrid
from diffflow_ext.engines.fused import workspace
from diffflow_ext.flows import StandardNormal
from diffflow_ext.nets import FourierMLP

GRID = TimeGrid.power(2, 1.0)


def model() -> DiffFlowSDE:
    torch.manual_seed(0)
    return DiffFlowSDE(FourierMLP(2, 8, 1), FourierMLP(2, 8, 1))


def test_the_choice_of_an_engine() -> None:
    sde, x0 = model(), batch(3)
    assert sde.engine_for(x0, GRID) == ("fused", "")
    choice = sde.engine_for(x0, GRID, checkpoint_every=0)
    assert choice.name == "autograd"
    assert "graph of every step" in choice.reason
    with pytest.raises(ValueError, match=r"engine='fused' is not possible here: .*every"):
        sde.loss(x0, GRID, KEY, engine="fused", checkpoint_every=0)
    with pytest.raises(ValueError, match="expected engine to be one of"):
        sde.loss(x0, GRID, KEY, engine="fast")  # pyright: ignore


def test_a_reason_shows_what_differs() -> None:
    """What is expected and what came never look the same."""
    assert workspace.data_obstacle(batch(3).view(3, 2, 1)) == (
        "it takes vectors, float32 of shape (B, D), got float32 of shape (3, 2, 1)"
    )
    assert workspace.data_obstacle(batch(3).double()).endswith("got float64 of shape (3, 2)")
    assert workspace.data_obstacle(batch(3), "cuda") == (
        "it runs on a GPU, and the data are on cpu"
    )


class Doubled(FourierMLP):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return 2 * super().forward(t, x)


class Trunk(FourierMLP):
    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        return 2 * super().trunk(x, embedding)


class Called(FourierMLP):
    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return 2 * super().__call__(t, x)


def changed(change: Callable[[Any], Any]) -> FourierMLP:
    net = FourierMLP(2, 8, 2)
    change(net)
    return net


def with_hidden(*layers: nn.Module) -> FourierMLP:
    return changed(lambda net: setattr(net, "hidden", nn.ModuleList(layers)))


def replaced(net: Any) -> None:
    forward = net.output.forward
    net.output.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize(
    ("drift", "reason"),
    [
        (lambda t, x: x, "drift: no network with perceptron_at"),
        (Doubled(2, 8, 1), "drift: no network with perceptron_at"),
        (Trunk(2, 8, 1), "drift: no network with perceptron_at"),
        (Called(2, 8, 1), "drift: no network with perceptron_at"),
        (FourierMLP(2, 8, 1, "relu"), "activation 'relu'"),
        (FourierMLP(3, 8, 1), "no perceptron of 2 components"),
        (FourierMLP(2, 8, 17), "deeper than 16"),
        (FourierMLP(2, 8, 1).double(), "no plain float32"),
        (with_hidden(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))), "part of type Sequential"),
        (with_hidden(nn.Linear(8, 4), nn.Linear(4, 8)), "layers of one width"),
        (with_hidden(nn.Linear(8, 8, bias=False)), "no plain float32 tensors"),
        (changed(replaced), "a method of its Linear was replaced"),
        (changed(lambda n: n.hidden[0].register_forward_hook(id)), "hooks on its Linear"),
        (changed(lambda n: n.output.register_forward_pre_hook(id)), "hooks on its Linear"),
        (changed(lambda n: n.register_full_backward_hook(id)), "hooks on its FourierMLP"),
        (changed(lambda n: n.register_full_backward_pre_hook(id)), "hooks on its FourierMLP"),
    ],
)
def test_networks_that_it_does_not_know(drift: Any, reason: str) -> None:
    sde = DiffFlowSDE(drift, FourierMLP(2, 8, 1))
    choice = sde.engine_for(batch(3), GRID)
    assert choice.name == "autograd"
    assert reason in choice.reason
    with pytest.raises(ValueError, match=r"engine='fused' is not possible here"):
        sde.mean_loss(batch(3), GRID, KEY, engine="fused")


def test_global_hooks_are_called() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "global hooks" in model().engine_for(batch(3), GRID).reason
    finally:
        handle.remove()


class Wide(StandardNormal):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x / 2)


def test_priors_that_it_does_not_know() -> None:
    sde, x0 = model(), batch(3)
    for prior, name in ((StandardNormal(), "fused"), (StandardNormal(2.0), "autograd"),
                        (Wide(), "autograd")):  # fmt: skip
        other = DiffFlowSDE(sde.drift, sde.score, prior=prior)
        assert other.engine_for(x0, GRID).name == name


def test_more_memory_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MAX_SCRATCH", 2**10)
    assert "MiB of memory" in model().engine_for(batch(3), GRID).reason


def test_calls_that_it_does_not_take() -> None:
    sde, x0 = model(), batch(3)
    assert "it takes vectors" in sde.engine_for(batch(6, 2).view(3, 2, 2), GRID).reason
    assert "at least one sample" in sde.engine_for(x0[:0], GRID).reason
    with torch.autocast("cpu", torch.float16):
        assert "autocast" in sde.engine_for(x0, GRID).reason
