"""What the methods of DDPM, DiNof and NFDM have in common."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import zuko
from denoisers import WavyNet
from model_cases import F64, KEY, WavyForward
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, TimeGrid
from diffflow_ext.functional import memory
from diffflow_ext.nets import FourierMLP
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
OF_NFDM: dict[str, Any] = {
    "loss": lambda m, x, key=KEY, **at: m.loss(x, key, **at),
    "elbo": lambda m, x, key=KEY, **at: m.elbo(x, key, timesteps=3, **at),
    "log_prob": lambda m, x, key=KEY, **at: density(m, x, key, **at),
    "sample": lambda m, x, key=KEY, **at: sampled(m, x, key, clip=True, **at),
    "ode": lambda m, x, key=KEY, **at: sampled(m, x, key, stochasticity=0.0, **at),
}


def nfdm(net: Any) -> NFDM:
    """With a learned forward process, in the dtype of the network."""
    like = next(net.parameters()) if isinstance(net, nn.Module) else torch.empty(0)
    return NFDM(net, WavyForward()).to(like.dtype)


MODELS = {
    "ddpm": (lambda net: DDPM(net, "linear", 12), OF_DDPM),
    "vp": (DiNof, OF_DINOF),
    "ve": (lambda net: DiNof(net, None, "ve"), OF_DINOF),
    "nfdm": (nfdm, OF_NFDM),
    "linear": (NFDM, OF_NFDM),
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
    if event == () and make is nfdm:
        pytest.skip("needs channels")
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
    "nfdm": (nfdm, lambda m, x: m.loss(x, KEY)),
    "linear": (NFDM, lambda m, x: m.loss(x, KEY)),
}
each_loss = pytest.mark.parametrize(("make", "loss"), LOSSES.values(), ids=LOSSES)


SUMS: dict[str, Any] = {
    **LOSSES,
    "elbo": (
        lambda net: DDPM(net, "cosine", 6),
        lambda m, x: m.elbo(x, KEY) + m.elbo(x, KEY, timesteps=3, variance="small"),
    ),
}


@pytest.mark.parametrize(("make", "loss"), SUMS.values(), ids=SUMS)
def test_gradients_are_those_of_the_sum(make: Any, loss: Any) -> None:
    def value(weight: Tensor, x: Tensor) -> Tensor:
        def net(t: Tensor, z: Tensor) -> Tensor:
            times = t.expand(len(z))[:, None]
            return torch.sin(weight[0] * z + weight[1] * times) + weight[2]

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


@pytest.mark.parametrize("make", [LOSSES["ddpm"][0], dinof_of_a_spline, nfdm])
def test_models_are_saved_loaded_and_copied(make: Any) -> None:
    model, other, file = make(WavyNet()), make(WavyNet(1.0)), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    x0 = torch.randn(4, 2)
    assert torch.equal(other.mean_loss(x0, KEY), model.mean_loss(x0, KEY))
    assert copy.deepcopy(model).double().sample((3, 2), 2).dtype == F64
    assert model.sample((3, 2), 2).dtype == torch.float32


# --- torch's modes, hooks and transforms ---------------------------------------------------------


class Layer(nn.Module):
    """One product of matrices, 2 n d^2 operations for n samples, and for each of its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layer(x)


X, GRID = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), TimeGrid.power(2, 0.5)
PATHS: dict[str, Any] = {
    "mean_loss": lambda m: m.mean_loss(X, GRID, KEY),
    "loss": lambda m: m.loss(X, GRID, KEY).sum(),
    "elbo": lambda m: m.elbo(X, GRID, KEY).sum(),
    "path": lambda m: m.path(X, GRID, KEY).square().sum(),
    "encode": lambda m: m.encode(X, GRID, KEY).square().sum(),
    "log_prob": lambda m: m.log_prob(X, GRID).sum(),
}
NOISE: dict[str, Any] = {
    "mean_loss": lambda m: m.mean_loss(X, KEY),
    "log_prob": lambda m: m.log_prob(X, 2).sum(),
}
#: Models whose networks the compiled engine takes, or does not.
TRAINED: dict[str, tuple[Any, Any]] = {
    f"{model.__name__}-{net.__name__}-{name}": (lambda m=model, n=net: _model(m, n), call)
    for model, calls in ((DiffFlowSDE, PATHS), (DDPM, NOISE), (DiNof, NOISE), (NFDM, NOISE))
    for net in (FourierMLP, Layer)
    for name, call in calls.items()
}
each_gradient = pytest.mark.parametrize(("make", "call"), TRAINED.values(), ids=TRAINED)


def _model(kind: Any, net: Any) -> Any:
    nets = [net(2, 8, 1) if net is FourierMLP else net() for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    for p in (p for each in nets for p in each.parameters()):
        p.data.copy_(torch.randn(p.shape, generator=generator) / 3)
    return DiffFlowSDE(*nets, 0.5) if kind is DiffFlowSDE else kind(nets[0])


def learned(model: Any, value: Tensor) -> list[Tensor]:
    model.zero_grad()
    value.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@each_gradient
def test_modes_and_hooks_of_torch_change_no_gradient(make: Any, call: Any) -> None:
    model = make()
    expected = learned(model, call(model))
    assert expected

    def same(value: Tensor, *, bits: bool = True) -> None:
        for a, b in zip(learned(model, value), expected, strict=True):
            assert torch.equal(a, b) if bits else torch.allclose(a, b, rtol=1e-3, atol=1e-4)

    with torch.autograd.set_detect_anomaly(True):
        same(call(model))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True):
        same(call(model))
    with save_on_cpu():
        same(call(model))
    ones = torch.ones((), requires_grad=True)
    same(checkpoint(lambda one: one * call(model), ones, use_reentrant=False))  # pyright: ignore
    with FlopCounterMode(display=False) as counter:  # Its hooks keep the compiled engine out.
        same(call(model), bits=False)
    assert counter.get_total_flops() > 0
    with torch.inference_mode():
        assert call(model).isfinite()


def test_operations_are_counted() -> None:
    """The drift at N + 1 states, forward and again for its gradient; the score at N, once."""
    model, N, product = _model(DiffFlowSDE, Layer), GRID.num_steps, 2 * 8 * 2 * 2
    with FlopCounterMode(display=False) as counter:
        PATHS["mean_loss"](model).backward()
    evaluations = 2 * (N + 1) + N
    # Both evaluations of a drift are compared by (4, 8) signs times (8, 2) values.
    sketches = 2 * N * (2 * 4 * 8 * 2)
    # Gradients with respect to the input and the weight; none is needed of x_0.
    assert counter.get_total_flops() - sketches in range(
        (evaluations + 2 * (2 * N)) * product, (evaluations + 2 * (2 * N + 1)) * product + 1
    )


@each_gradient
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_over_weights_are_refused(make: Any, call: Any, transform: Any) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def forward(self) -> Tensor:
            return call(self.model)

    whole = Whole()
    weights = {name: torch.stack([p.detach()] * 2) for name, p in whole.named_parameters()}
    if transform is torch.func.grad:
        weights = {name: p.detach() for name, p in whole.named_parameters()}
    text = r"^(DiffFlowSDE|DDPM|DiNof|NFDM)\.\w+: torch\.func transforms .* a loop over the models"
    with pytest.raises(RuntimeError, match=text):
        transform(lambda w: functional_call(whole, w, ()))(weights)


@each_gradient
def test_forward_mode_is_right_or_refused(make: Any, call: Any) -> None:
    """A tangent is never dropped without a word."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def forward(self) -> Tensor:
            return call(self.model)

    whole = Whole()
    ones = {name: torch.ones_like(p) for name, p in whole.named_parameters()}
    expected = sum(float(grad.sum()) for grad in learned(whole.model, whole()))
    tangent, refusal = None, ""
    with forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(p.detach(), ones[name])
            for name, p in whole.named_parameters()
        }
        try:
            tangent = forward_ad.unpack_dual(functional_call(whole, dual, ())).tangent
        except RuntimeError as error:
            refusal = str(error)
    if tangent is None:
        assert "without a tangent, got a dual tensor" in refusal
    else:
        assert float(tangent) == pytest.approx(expected, rel=1e-3, abs=1e-3)


# --- sizes ---------------------------------------------------------------------------------------


def test_samples_of_networks_whose_first_parameter_is_complex() -> None:
    """Its dtype is not that of states."""

    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2, dtype=torch.complex128))
            self.layer = nn.Linear(2, 2, dtype=torch.float64)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.layer(torch.fft.ifft(torch.fft.fft(x) * self.factor).real)

    sde = DiffFlowSDE(Spectral(), Spectral())
    assert sde.sample((3, 2), TimeGrid.power(2, 1.0)).dtype == torch.float64


@pytest.mark.parametrize("kind", [DiffFlowSDE, DDPM, DiNof, NFDM])
def test_samples_beyond_memory_are_refused_with_their_size(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = _model(kind, Layer), GRID if kind is DiffFlowSDE else 3
    text = rf"{kind.__name__}\.sample: shape=.*: expected to need at most the .* of cpu, got "
    with pytest.raises(ValueError, match=text + "800,000,000,000,000 bytes"):
        model.sample((10**14, 2), steps, KEY)
    if kind is DiffFlowSDE:
        monkeypatch.setattr(memory, "memory_of", lambda device: 1000)
        with pytest.raises(ValueError, match=r"sample_path: .* 1,000 bytes .* 1,200 bytes"):
            model.sample_path((50, 2), steps, KEY)
        assert model.sample((50, 2), steps, KEY).shape == (50, 2)


def test_the_mean_of_no_samples_is_zero() -> None:
    for kind, call in (
        (DiffFlowSDE, (GRID, KEY)),
        (DDPM, (KEY,)),
        (DiNof, (KEY,)),
        (NFDM, (KEY,)),
    ):
        for net in (FourierMLP, Layer):
            assert _model(kind, net).mean_loss(torch.empty(0, 2), *call).item() == 0
