"""What the methods of DDPM and DiNof have in common."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import zuko
from denoisers import WavyNet
from model_cases import F64, KEY
from torch import Tensor

from diffflow_ext import DDPM, DiNof
from diffflow_ext.processes import SubVP


def sampled(m: Any, x: Tensor, key: Any, **options: Any) -> Tensor:
    return m.sample(tuple(x.shape), 4, key, **options)


def density(m: Any, x: Tensor, key: Any, **at: Any) -> Tensor:
    return m.log_prob(x, 5, key, divergence="hutchinson", **at)


OF_DDPM: dict[str, Any] = {
    "loss": lambda m, x, key=KEY, **at: m.loss(x, key, **at),
    "elbo": lambda m, x, key=KEY, **at: m.elbo(x, key, **at),
    "strata": lambda m, x, key=KEY, **at: m.elbo(x, key, timesteps=3, clip=True, **at),
    "log_prob": lambda m, x, key=KEY, **at: density(m, x, key, **at),
    "ancestral": lambda m, x, key=KEY, **at: sampled(m, x, key, **at),
    "ddim": lambda m, x, key=KEY, **at: sampled(
        m, x, key, sampler="ddim", eta=0.5, clip=True, **at
    ),
}
OF_DINOF: dict[str, Any] = {
    "score_loss": lambda m, x, key=KEY, **at: m.score_loss(x, key, **at),
    "flow_loss": lambda m, x, key=KEY, **at: m.flow_loss(x, key, **at),
    "log_prob": lambda m, x, key=KEY, **at: density(m, x, key, **at),
    "em": lambda m, x, key=KEY, **at: sampled(m, x, key, sampler="em", last_step="tweedie", **at),
    "reverse": lambda m, x, key=KEY, **at: sampled(
        m, x, key, sampler="reverse_diffusion", corrector_steps=1, **at
    ),
    "ode": lambda m, x, key=KEY, **at: sampled(m, x, key, sampler="ode", **at),
}
MODELS = {
    "ddpm": (lambda net: DDPM(net, "linear", 12), OF_DDPM),
    "vp": (DiNof, OF_DINOF),
    "ve": (lambda net: DiNof(net, None, "ve"), OF_DINOF),
}
CALLS = {
    f"{model}-{name}": (make, call)
    for model, (make, calls) in MODELS.items()
    for name, call in calls.items()
}
each_call = pytest.mark.parametrize(("make", "call"), CALLS.values(), ids=CALLS)


@each_call
@torch.no_grad()
def test_results_do_not_depend_on_how_a_batch_is_split(make: Any, call: Any) -> None:
    model, x = make(WavyNet()), torch.randn(50, 4)
    whole = call(model, x)
    parts = [call(model, x[a:b], sample_offset=a) for a, b in ((0, 1), (1, 30), (30, 50))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(call(model, x, KEY.to_tensor()), whole)


@each_call
@torch.no_grad()
def test_default_keys_come_from_torch(make: Any, call: Any) -> None:
    # Other directions change nothing where the Jacobian is diagonal.
    model, x = make(lambda t, x: x + x.sin().roll(1, 1)), torch.randn(5, 2)
    torch.manual_seed(3)
    first, second = call(model, x, None), call(model, x, None)
    torch.manual_seed(3)
    assert torch.equal(call(model, x, None), first)
    assert not torch.equal(first, second)


@each_call
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("event", [(), (3,), (2, 4, 4)])
@torch.no_grad()
def test_shapes_and_dtypes(
    make: Any, call: Any, event: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = make(WavyNet().to(dtype))
    for batch in (5, 0):
        value = call(model, torch.randn(batch, *event).to(dtype))
        assert value.shape in ((batch, *event), (batch,))
        assert value.dtype == dtype
        assert value.isfinite().all()


@each_call
def test_networks_in_bfloat16(make: Any, call: Any, request: pytest.FixtureRequest) -> None:
    net, x = WavyNet(), torch.randn(20, 4)
    value = call(make(lambda t, x: net(t, x).bfloat16()), x).detach()
    exact = call(make(net), x).detach()
    assert value.dtype == torch.float32
    # Predictions of size 1 are right to 2^-9; few steps add up, and divide by sigma.
    if not request.node.callspec.id.startswith("ve"):
        assert torch.allclose(value, exact, rtol=0.05, atol=0.05)


LOSSES: dict[str, Any] = {
    "ddpm": (lambda net: DDPM(net, "cosine", 30), lambda m, x: m.loss(x, KEY)),
    "dinof": (
        lambda net: DiNof(net, None, "subvp", loss_weight="likelihood"),
        lambda m, x: m.score_loss(x, KEY) + m.flow_loss(x, KEY),
    ),
}
each_loss = pytest.mark.parametrize(("make", "loss"), LOSSES.values(), ids=LOSSES)


@each_loss
def test_gradients_are_those_of_the_sum(make: Any, loss: Any) -> None:
    def value(weight: Tensor, x: Tensor) -> Tensor:
        def net(t: Tensor, z: Tensor) -> Tensor:
            return torch.sin(weight[0] * z + weight[1] * t[:, None]) + weight[2]

        return loss(make(net), x)

    weight = torch.tensor([0.4, -1.0, 0.2], dtype=F64, requires_grad=True)
    x0 = torch.randn(5, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (weight, x0))


@each_loss
def test_mean_loss_and_weights(make: Any, loss: Any) -> None:
    model, x0, weight = make(WavyNet()), torch.randn(6, 2), torch.rand(6)
    each = loss(model, x0)
    assert torch.allclose(model.mean_loss(x0, KEY), each.mean())
    assert torch.equal(model(x0, KEY), model.mean_loss(x0, KEY))
    assert torch.allclose(model.mean_loss(x0, KEY, weight=weight), (weight * each).sum())


def dinof_of_a_spline(net: Any) -> DiNof:
    return DiNof(net, zuko.flows.NSF(2, transforms=1, hidden_features=(8,)), SubVP())


@pytest.mark.parametrize("make", [LOSSES["ddpm"][0], dinof_of_a_spline])
def test_models_are_saved_loaded_and_copied(make: Any) -> None:
    model, other, file = make(WavyNet()), make(WavyNet(1.0)), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    x0 = torch.randn(4, 2)
    assert torch.equal(other.mean_loss(x0, KEY), model.mean_loss(x0, KEY))
    assert copy.deepcopy(model).double().sample((3, 2), 2).dtype == F64
    assert model.sample((3, 2), 2).dtype == torch.float32
