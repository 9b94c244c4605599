"""Fused time embeddings against float64 autograd, and where they are left to torch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from fused_cases import apart
from torch import Tensor, nn

from diffflow_ext.engines.fused import workspace
from diffflow_ext.engines.fused.embedding import embedding_or_none
from diffflow_ext.engines.fused.perceptrons import parts_or_reason
from diffflow_ext.functional.core import core
from diffflow_ext.nets import FourierMLP
from diffflow_ext.nets.mlp import Perceptron

pytestmark = pytest.mark.usefixtures("same_threads")


@pytest.fixture(params=core.instructions())
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of instructions that this processor has; none of them rounds an embedding."""
    monkeypatch.setattr(workspace, "instructions_name", lambda: request.param)
    return request.param


def network(width: int = 32, activation: str = "gelu", time_scale: float = 0.1) -> FourierMLP:
    torch.manual_seed(0)
    return FourierMLP(2, width, 0, activation, time_scale=time_scale)


def times(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1))


def embedded(net: FourierMLP, t: Tensor) -> Tensor:
    found = embedding_or_none(net.time_embedding(), t)
    assert found is not None
    return found


def gradients(net: FourierMLP, value: Tensor) -> Tensor:
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)).to(value)
    grads = torch.autograd.grad(value, list(net.parameters()), cotangent, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh"])
@pytest.mark.parametrize(("width", "count"), [(1, 1), (33, 41), (128, 97), (100, 8)])
def test_values_and_gradients(activation: str, width: int, count: int) -> None:
    net, t = network(width, activation), times(count)
    exact = copy.deepcopy(net).double()
    value, expected = embedded(net, t), exact.perceptron_at(t.double()).embedding
    assert apart(value.detach(), expected.detach()) < 2e-6
    assert apart(gradients(net, value), gradients(exact, expected)) < 1e-5


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("time_scale", [1e-3, 1.0, 80.0, 90.0, 1e5])
def test_angles_of_any_size(time_scale: float) -> None:
    """Angles are torch's to the bit, so that their turns cost no digits."""
    net, t = network(64, "tanh", time_scale), torch.cat([times(60), -times(60)])
    value, expected = embedded(net, t), net.perceptron_at(t).embedding
    assert apart(value.detach(), expected.detach()) < 1e-6
    assert apart(gradients(net, value), gradients(net, expected)) < 2e-6


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    net, t = network(), torch.tensor([0.5, value, 0.25])
    found = embedded(net, t)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], embedded(net, t[::2]))
    with torch.no_grad():
        net.phase[3] = value
    assert embedded(net, t).isnan().all()


def test_bits_depend_on_nothing_else() -> None:
    net, t, found = network(), times(333), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        value = embedded(net, t)
        found.append((value, gradients(net, value)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))
    assert torch.equal(torch.cat([embedded(net, part) for part in t.split(37)]), found[0][0])


def test_the_graph_may_be_walked_twice_but_not_deeper() -> None:
    net = network()
    value = embedded(net, times(50)).sum()
    leaves = [net.phase, net.time_in.weight]
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(value, leaves, create_graph=True)


# --- where it does not apply ---------------------------------------------------------------------


class OtherEmbedding(FourierMLP):
    def embed(self, t: Tensor) -> Tensor:
        return 2 * super().embed(t)


class OtherPerceptron(FourierMLP):
    def perceptron_at(self, t: Tensor) -> Perceptron:
        return super().perceptron_at(2 * t)


def with_learned_frequencies() -> FourierMLP:
    net = network()
    frequencies = net.frequencies
    del net.frequencies
    net.frequencies = nn.Parameter(frequencies)
    return net


def without_bias() -> FourierMLP:
    net = network()
    net.time_in = nn.Linear(64, 32, bias=False)
    return net


def deeper() -> FourierMLP:
    net = network()
    net.time_in, net.time_out = nn.Linear(64, 48), nn.Linear(48, 32)
    return net


@pytest.mark.parametrize(
    "net",
    [OtherEmbedding(2, 32, 0), OtherPerceptron(2, 32, 0), with_learned_frequencies(),
     without_bias(), deeper()],
)  # fmt: skip
def test_embeddings_that_it_does_not_know_are_torchs(net: Any) -> None:
    t, x = times(20), torch.randn(20, 2)
    parts = parts_or_reason(net, t, x)
    assert not isinstance(parts, str)
    assert torch.equal(parts.tensors[0], net.perceptron_at(t).embedding)
    assert "_Embedding" not in type(parts.tensors[0].grad_fn).__name__
    known = parts_or_reason(network(), t, x)
    assert not isinstance(known, str)
    assert "_Embedding" in type(known.tensors[0].grad_fn).__name__


def test_a_replaced_embedding_is_noticed() -> None:
    net: Any = network()
    net.embed = lambda t: torch.zeros(len(t), 32)
    assert "a method of its FourierMLP was replaced" in parts_or_reason(
        net, times(3), times(6).view(3, 2)
    )
