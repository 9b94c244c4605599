"""Gradients of chains of steps: forward paths, and ODEs with their densities."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import ConstantDiffusion, DiffFlowSDE, DiNof, NoiseKey, TimeGrid
from diffflow_ext.engines import ProbabilityFlow, integrate
from diffflow_ext.engines.fused import ode as fused_ode
from diffflow_ext.flows import FlowPrior
from diffflow_ext.functional import em_step
from diffflow_ext.nets import FourierMLP

KEY, GRID, F64 = NoiseKey(5, 2), TimeGrid.power(3, 0.5), torch.float64


class Law(nn.Module):
    """A prior with a parameter."""

    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc = loc

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x - self.loc).square().sum(1)

    def sample(self, n: int) -> Tensor:
        return self.loc + torch.randn(n, len(self.loc), dtype=self.loc.dtype)


def model_of(w: Tensor, level: Tensor) -> DiffFlowSDE:
    """Both networks depend on t, x and w; g depends on a level."""

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(x @ w + t)

    def score(t: Tensor, x: Tensor) -> Tensor:
        return -torch.tanh(x * w[0] - t * x.roll(1, 1))

    return DiffFlowSDE(drift, score, lambda t: level * (1 + t), params=[w, level])


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x, w = torch.randn(3, 2, dtype=F64), torch.randn(2, 2, dtype=F64)
    return x.requires_grad_(), w.requires_grad_(), torch.tensor(0.7, dtype=F64).requires_grad_()


CALLS: dict[str, Callable[[DiffFlowSDE, Tensor], Tensor]] = {
    "path": lambda m, x: m.path(x, GRID, KEY, sample_offset=3),
    "encode": lambda m, x: m.encode(x, GRID, KEY),
    "elbo": lambda m, x: m.elbo(x, GRID, KEY, num_paths=2),
    **{
        f"{solver}-{how}": lambda m, x, s=solver, how=how: m.log_prob(
            x, GRID, KEY, solver=s, divergence=how, num_probes=2
        )
        for solver in ("euler", "heun", "rk4")
        for how in ("exact", "hutchinson")
    },
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gradients_are_those_of_finite_differences(call: Any) -> None:
    def value(x: Tensor, w: Tensor, level: Tensor) -> Tensor:
        return call(model_of(w, level), x)

    assert torch.autograd.gradcheck(value, inputs())


def test_a_path_has_the_gradient_of_the_unrolled_loop() -> None:
    x, w, level = inputs()
    model, weight = model_of(w, level), torch.randn(4, 3, 2, dtype=F64)
    states, g = [x], level * (1 + GRID.times)
    for k, dt in enumerate(GRID.steps()):
        f = model.drift(GRID.times[k], states[-1])
        states.append(em_step(states[-1], f, dt=dt, g=g[k], key=KEY, step=k))
    found = model.path(x, GRID, KEY)
    assert torch.equal(found, torch.stack(states))
    expected = torch.autograd.grad((torch.stack(states) * weight).sum(), (x, w, level))
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (x, w, level)), expected, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_both_directions_and_no_divergence() -> None:
    def value(x: Tensor, w: Tensor) -> Tensor:
        flow = ProbabilityFlow(
            (lambda t, z: torch.sin(z @ w + t),), lambda t: (-0.5 - t, 1.0 + t), params=(w,)
        )
        end, change = integrate(flow, x, GRID, reverse=True, divergence="exact")
        back, none = integrate(flow, end, GRID)
        assert change is not None
        assert none is None
        return back + change[:, None]

    assert torch.autograd.gradcheck(value, inputs()[:2])


def test_a_flow_as_the_prior_gets_its_gradient() -> None:
    loc = nn.Parameter(torch.randn(2, dtype=F64))
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    weight = nn.Parameter(torch.randn(2, 2, dtype=F64))
    net = nn.Module()
    net.weight = weight
    net.forward = lambda t, z: z @ weight  # pyright: ignore

    def value(x: Tensor, *_: Tensor) -> Tensor:
        return DiNof(net, FlowPrior(Law(loc)), "vp").log_prob(x, 3)

    assert torch.autograd.gradcheck(value, (x, loc, weight))


def trained() -> DiffFlowSDE:
    nets = [FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)]
    for p in (p for net in nets for p in net.parameters()):
        p.data.add_(torch.randn_like(p) / 4)
    return DiffFlowSDE(*nets, ConstantDiffusion(0.6, learnable=True))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_values_have_the_same_bits_with_and_without_gradients(call: Any) -> None:
    """Those of the compiled engine, which takes these networks."""
    model, x = trained(), torch.randn(45, 2)
    assert model.engine_for(x, GRID).name == "fused"
    with_graph = call(model, x)
    assert with_graph.requires_grad
    with torch.no_grad():
        without = call(model, x)
    if call is not CALLS["elbo"]:
        assert torch.equal(with_graph, without)
    # In float64 another engine computes; both gradients are right to single precision.
    exact = copy.deepcopy(model).double()
    grads, expected = (
        torch.autograd.grad(value.square().mean(), list(m.parameters()), allow_unused=True)
        for m, value in ((model, with_graph), (exact, call(exact, x.double())))
    )
    for a, b in zip(grads, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = float(b.abs().max()) + 1e-3
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * scale)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [2, 64, 64, 64, 2]
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
        self.layers = nn.Sequential(*layers)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(x)


class Kept:
    """Lives as long as the graph that saved a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_a_graph_keeps_the_states_alone() -> None:
    """Not the activations, which have a hundred times as many numbers."""
    model, x = DiffFlowSDE(Deep(), Deep()), torch.randn(9, 2)
    weights = {p.data_ptr() for p in model.parameters()}
    saved: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(t: Tensor) -> Kept:
        saved.add(kept := Kept(t))
        return kept

    for call in (model.log_prob, model.path):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            _alive = call(x, GRID, KEY)
        gc.collect()
        sizes = {each.tensor.data_ptr(): each.tensor.numel() for each in saved}
        assert len(sizes) > 1
        kept = sum(size for place, size in sizes.items() if place not in weights)
        assert kept <= (GRID.num_steps + 2) * x.numel()
        del _alive
        gc.collect()
        assert not saved  # Nothing stays when the graph is gone.


def test_no_graph_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained(), torch.randn(5, 2)
    for p in model.parameters():
        p.requires_grad_(False)
    assert not model.path(x, GRID, KEY).requires_grad
    assert not model.log_prob(x, GRID).requires_grad
    model, calls = trained(), []
    monkeypatch.setattr(
        fused_ode.FusedOde, "solve",
        lambda self, x, states, back: calls.append(states is None) or (x, x.new_zeros(len(x))),
    )  # fmt: skip
    with torch.no_grad():
        model.log_prob(x, GRID)
    model.log_prob(x, GRID)
    assert calls == [True, False]  # The compiled engine in both cases.
    assert not model.sample((5, 2), GRID, KEY).requires_grad


# --- what would be wrong is refused --------------------------------------------------------------


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), 0.5, self.training)


def densities(model: DiffFlowSDE) -> list[Any]:
    return [lambda x: model.path(x, GRID, KEY), lambda x: model.log_prob(x, GRID)]


def test_networks_that_draw_random_numbers_have_no_gradient() -> None:
    model, x = DiffFlowSDE(Dropped(), Dropped()), torch.randn(6, 2)
    for call in densities(model):
        with pytest.raises(RuntimeError, match=r"without random numbers .* with eval\(\)"):
            call(x).sum().backward()
    model.eval()
    for call in densities(model):
        call(x).sum().backward()
    assert model.drift.layer.weight.grad is not None


class Counted(nn.Module):
    """A layer with a gain that the calls of all its kind set in turn."""

    def __init__(self, gains: tuple[float, ...]) -> None:
        super().__init__()
        self.layer, self.gains, self.calls = nn.Linear(2, 2), gains, 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.gains[self.calls % len(self.gains)] * self.layer(x)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_networks_that_give_other_values_the_second_time_are_refused(dtype: torch.dtype) -> None:
    x = torch.randn(6, 2, dtype=dtype)
    for call in densities(DiffFlowSDE(Counted((1.0,)), Counted((1.0,))).to(dtype)):
        call(x).sum().backward()
    for call in densities(DiffFlowSDE(Counted((1.0, 1.1)), Counted((1.0, 1.1, 1.2))).to(dtype)):
        with pytest.raises(RuntimeError, match=r"same values each time, because .* second"):
            call(x).sum().backward()


def test_a_mode_that_changes_before_the_backward_pass_is_noticed() -> None:
    model, x = DiffFlowSDE(Dropped(), Dropped()).eval(), torch.randn(6, 2)
    for call in densities(model):
        value = call(x).sum()
        model.train()
        with pytest.raises(RuntimeError, match=r"switched between train\(\) and eval\(\)"):
            value.backward()
        model.eval()
        value = call(x).sum()
        model.drift.requires_grad_(False)
        with pytest.raises(RuntimeError, match="whose parameters were frozen"):
            value.backward()
        model.drift.requires_grad_(True)
        call(x).sum().backward()


def test_gradient_hooks_are_refused_when_a_gradient_is_asked_for() -> None:
    model, x = DiffFlowSDE(Dropped(), Dropped()).eval(), torch.randn(6, 2)
    model.drift.layer.weight.register_hook(lambda grad: 2 * grad)
    value = model.log_prob(x, GRID)
    with pytest.raises(RuntimeError, match=r"integrate: expected parameters without .* hooks"):
        value.sum().backward()


def test_tensors_of_no_module_are_refused_when_a_gradient_is_asked_for() -> None:
    hidden = torch.ones(2, requires_grad=True)
    model = DiffFlowSDE(lambda t, x: x * hidden, lambda t, x: -x)
    assert model.log_prob(torch.randn(4, 2), GRID).isfinite().all()
    x = torch.randn(4, 2, requires_grad=True)
    for call in densities(model):
        with pytest.raises(RuntimeError, match=r": expected all trainable tensors in nn\.Modules"):
            call(x).sum().backward()


def test_second_derivatives_and_adaptive_steps_are_refused() -> None:
    model, x = trained(), torch.randn(4, 2, requires_grad=True)
    for call in densities(model):
        with pytest.raises(RuntimeError, match="second derivatives are not supported"):
            torch.autograd.grad(call(x).sum(), x, create_graph=True)
    value = model.log_prob(x, GRID, solver="dopri5")
    assert torch.allclose(value, model.log_prob(x, TimeGrid.power(20, 0.5)), atol=0.05)
    with pytest.raises(RuntimeError, match=r"got solver='dopri5'; take solver='heun' or 'rk4'"):
        value.sum().backward()


def test_weights_that_change_before_the_backward_pass_are_noticed() -> None:
    model, x = trained(), torch.randn(4, 2)
    value = model.log_prob(x, GRID).sum()
    with torch.no_grad():
        model.drift.output.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_autocast_of_the_forward_pass_is_that_of_the_backward_pass() -> None:
    """Gradients to the bit: the second evaluation has the dtype of the first."""
    model, x = DiffFlowSDE(Dropped(), Dropped()).eval(), torch.randn(6, 2)
    dtypes: list[torch.dtype] = []
    model.drift.register_forward_hook(lambda m, a, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        values = [call(x).sum() for call in densities(model)]
    for value in values:
        value.backward()
    assert set(dtypes) == {torch.bfloat16}


class Level(nn.Module):
    """A drift or score that does not depend on x."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([0.3, -0.7], dtype=F64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.level.expand_as(x)


def test_a_network_that_does_not_depend_on_x_has_a_gradient() -> None:
    """Its divergence is 0, and the derivative of zeros is no parameter."""
    model, x = DiffFlowSDE(Level(), Level(), 0.5), torch.randn(4, 2, dtype=F64)

    def value() -> Tensor:
        return model.log_prob(x, GRID, KEY).sum()

    for p in model.parameters():
        (grad,) = torch.autograd.grad(value(), p)
        for i in range(2):
            sides = []
            for step in (1e-6, -2e-6):
                with torch.no_grad():
                    p[i] += step
                    sides.append(float(value()))
            with torch.no_grad():
                p[i] += 1e-6
            assert float(grad[i]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6)


@pytest.mark.slow
def test_networks_of_torch_compile_have_no_gradient_of_a_density() -> None:
    net = torch.compile(Deep(), backend="aot_eager")
    model, x = DiffFlowSDE(net, net), torch.randn(4, 2)
    with pytest.raises(RuntimeError, match="call this with the network itself, not with the com"):
        model.log_prob(x, GRID, KEY).sum().backward()
    model.eval()
    with torch.no_grad():
        model.log_prob(x, GRID, KEY)
