"""The adjoint against autograd of the plain unrolled loop, in float64."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import NoiseKey, TimeGrid, diffflow_loss, diffflow_mean_loss
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(5, 6)
GRID = TimeGrid.power(7, 1.3, t_start=0.1, power=0.7)
EXACT = 1e-10  # of the largest entry: float64 sums of a few thousand terms, with room
MODES = list(itertools.product((0, 1, 2, 3, 10), (None, 6_000, 10**9)))


class Small(nn.Module):
    """A network that is linear neither in x nor in t, with dropout."""

    def __init__(self, dim: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(dim + 1, 8), nn.Linear(8, dim)
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        column = t.expand(x.shape[0]).unsqueeze(1)
        return self.two(self.dropout(torch.tanh(self.one(torch.cat([x, column], 1)))))


def unrolled(
    drift: Any,
    score: Any,
    x0: Tensor,
    grid: TimeGrid,
    g: Tensor,
    key: NoiseKey = KEY,
    prior: Any = None,
) -> Tensor:
    """DESIGN's formulas in plain torch: nothing of the package but its noise."""
    t, x, total = grid.times.to(x0.dtype), x0, torch.zeros(x0.shape[0], dtype=x0.dtype)
    f = drift(t[0], x)
    for i in range(grid.num_steps):
        dt = float(grid.times[i + 1] - grid.times[i])
        eps = normal(tuple(x.shape), key, step=i, dtype=x.dtype)
        x_next = x + f * dt + g[i] * math.sqrt(dt) * eps
        f_next, s_next = drift(t[i + 1], x_next), score(t[i + 1], x_next)
        delta_b = x - x_next + (f_next - g[i + 1] ** 2 * s_next) * dt
        delta_b = delta_b / (g[i + 1] * math.sqrt(dt))
        total = total + 0.5 * delta_b.flatten(1).square().sum(1)
        x, f = x_next, f_next
    if prior is not None:
        return total - prior.log_prob(x)
    d = x[0].numel()
    return total + 0.5 * x.flatten(1).square().sum(1) + 0.5 * d * math.log(2 * math.pi)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, inputs, allow_unused=True))


def assert_same(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(actual, expected, strict=True):
        if b is None:
            assert a is None or not a.any()
            continue
        assert a is not None
        assert (a - b).abs().max() <= EXACT * b.abs().max()


def check(
    drift: Any,
    score: Any,
    params: list[Tensor],
    *,
    dim: int = 3,
    g: Callable[[Tensor], Tensor] | float = 0.7,
    extra: tuple[Tensor, ...] = (),
    modes: list[tuple[int, int | None]] = MODES,
    grid: TimeGrid = GRID,
    prior: Any = None,
) -> None:
    """Value and all gradients, for every way of keeping states, of `loss` and `mean_loss`."""
    x0 = torch.randn(5, dim, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64)
    inputs = [x0, *extra, *params]
    values = g(grid.times) if callable(g) else torch.full_like(grid.times, g)
    expected = unrolled(drift, score, x0, grid, values, prior=prior)
    truth = gradients((weight * expected).sum(), inputs)
    for every, memory in modes:
        options: dict[str, Any] = {
            "diffusion": g, "params": params, "key": KEY,
            "checkpoint_every": every, "score_memory": memory, "prior": prior,
        }  # fmt: skip
        loss = diffflow_loss(drift, score, x0, grid, **options)
        assert torch.allclose(loss, expected, rtol=EXACT, atol=0)
        assert_same(gradients((weight * loss).sum(), inputs), truth)
        mean = diffflow_mean_loss(drift, score, x0, grid, weight=weight, **options)
        assert abs(float((mean - (weight * expected).sum()).detach())) < EXACT * float(
            expected.detach().abs().sum()
        )
        assert_same(gradients(mean, inputs), truth)


def parameters(*modules: nn.Module) -> list[Tensor]:
    return [p for module in modules for p in module.parameters()]


def test_two_networks() -> None:
    f, s = Small(), Small()
    check(f, s, parameters(f, s))


def test_fourier_mlp_and_one_step() -> None:
    f, s = FourierMLP(2, 8, 1).double(), FourierMLP(2, 8, 1).double()
    check(f, s, parameters(f, s), dim=2, grid=TimeGrid.from_times([0.0, 0.4]))


def test_learned_diffusion_of_three_kinds() -> None:
    f, s = Small(), Small()
    c = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    check(f, s, parameters(f, s), g=lambda t: (c[0] + c[1] * t + c[2] * t * t).exp(), extra=(c,))
    head = nn.Sequential(nn.Linear(1, 4), nn.Softplus(), nn.Linear(4, 1), nn.Softplus()).double()

    def schedule(t: Tensor) -> Tensor:
        return head(t.unsqueeze(-1)).squeeze(-1) + 0.1

    check(f, s, parameters(f, s), g=schedule, extra=tuple(head.parameters()))
    level = torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
    check(f, s, parameters(f, s), g=lambda t: level.exp().expand(t.shape), extra=(level,))


def test_frozen_unused_and_shared_parameters() -> None:
    f, s = Small(), Small()
    f.one.requires_grad_(False)
    s.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    trainable = [p for p in parameters(f, s) if p.requires_grad]
    check(f, s, trainable)
    s.two = f.two
    shared = list(dict.fromkeys(p for p in parameters(f, s) if p.requires_grad))
    check(f, s, shared)
    one = Small()
    check(one, one, parameters(one))


class Bent(nn.Module):
    """A density that is not Gaussian: z = a x + b + sin(x)/3, with optional noise in log_prob."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.8, 1.2, 1.5], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.1, -0.3, 0.0], dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def log_prob(self, x: Tensor) -> Tensor:
        z = self.a * x + self.dropout(self.b.expand_as(x)) + x.sin() / 3
        slope = self.a + x.cos() / 3
        return (slope.log() - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1)


def test_a_prior_with_parameters() -> None:
    f, s, prior = Small(), Small(), Bent()
    check(f, s, parameters(f, s, prior), prior=prior)


def test_a_prior_that_is_learned_together_with_the_diffusion() -> None:
    f, s, prior = Small(), Small(), Bent()
    log_g = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    check(
        f, s, parameters(f, s, prior), prior=prior, extra=(log_g,),
        g=lambda t: log_g.exp() * (1 + t),
    )  # fmt: skip


def test_random_numbers_of_the_prior_are_those_of_the_forward_sweep() -> None:
    f, s, prior = Small(dropout=0.3), Small(), Bent(dropout=0.5)
    params, x0 = parameters(f, s, prior), torch.randn(6, 3, dtype=torch.float64)
    out = []
    for every in (0, 1, 3):
        torch.manual_seed(4)
        loss = diffflow_loss(
            f, s, x0, GRID, params=params, prior=prior, key=KEY, checkpoint_every=every
        )  # fmt: skip
        out.append((loss.detach(), gradients(loss.sum(), params)))
    # Unrolled and adjoint draw the networks' masks in one order.
    for loss, grads in out[1:]:
        torch.testing.assert_close(loss, out[0][0], rtol=EXACT, atol=0)
        assert_same(grads, out[0][1])


def test_a_prior_that_gives_no_gradient_is_refused() -> None:
    class Cut(Bent):
        def log_prob(self, x: Tensor) -> Tensor:
            return super().log_prob(x).detach()

    class Flat(Bent):
        def log_prob(self, x: Tensor) -> Tensor:
            return super().log_prob(x).sum()

    f, s = Small(), Small()
    x0 = torch.randn(4, 3, dtype=torch.float64)
    params = parameters(f, s)
    with pytest.raises(RuntimeError, match="differentiable"):
        diffflow_mean_loss(f, s, x0, GRID, params=params, prior=Cut(), key=KEY)  # pyright: ignore
    with pytest.raises(ValueError, match="one number for each sample"):
        diffflow_loss(f, s, x0, GRID, params=params, prior=Flat(), key=KEY)  # pyright: ignore
    with pytest.raises(RuntimeError, match="no parameter of the prior"):
        diffflow_mean_loss(f, s, x0, GRID, params=params, prior=Bent(), key=KEY)  # pyright: ignore


def test_gradients_that_share_storage() -> None:
    a, b = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    check(lambda t, x: a + b - x, lambda t, x: a - b + 0 * x, [a, b])


def test_networks_that_are_not_modules() -> None:
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    module = Small()
    net = functools.partial(
        lambda k, t, x: torch.sin(k * x @ w) * t.reshape(-1, *[1] * (t.dim() > 0)), 2.0
    )
    check(net, module.forward, [w, *module.parameters()])
    made = torch.nn.functional.softplus(w)  # not a leaf: its graph goes on outside
    check(lambda t, x: x @ made, lambda t, x: -x @ made.T, [made], extra=())


def test_networks_without_gradients() -> None:
    f = Small()
    check(lambda t, x: torch.zeros_like(x), f, parameters(f))
    check(f, lambda t, x: -x.detach(), parameters(f), modes=[(1, None), (2, None)])


def test_images_and_autograd_only_in_x0() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1).double()
    x0 = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def net(t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(conv(x))

    conv.requires_grad_(False)
    expected = unrolled(net, net, x0, GRID, torch.full_like(GRID.times, 0.7))
    truth = gradients(expected.sum(), [x0])
    for every in (0, 1, 2):
        loss = diffflow_loss(net, net, x0, GRID, diffusion=0.7, key=KEY, checkpoint_every=every)
        assert_same(gradients(loss.sum(), [x0]), truth)


@pytest.mark.parametrize("which", ["drift", "score", "both"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_dropout_masks_are_those_of_the_forward_sweep(which: str, every: int) -> None:
    f = Small(dropout=0.4 if which != "score" else 0.0)
    s = Small(dropout=0.4 if which != "drift" else 0.0)
    x0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x0, *parameters(f, s)]
    torch.manual_seed(3)
    expected = unrolled(f, s, x0, GRID, torch.full_like(GRID.times, 0.7))
    after = torch.get_rng_state()
    truth = gradients(expected.sum(), inputs)
    torch.manual_seed(3)
    loss = diffflow_loss(
        f, s, x0, GRID, diffusion=0.7, params=inputs[1:], key=KEY, checkpoint_every=every
    )
    torch.rand(7)  # whatever else draws in between
    before = torch.get_rng_state()
    actual = gradients(loss.sum(), inputs)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(actual, truth)
    assert not torch.equal(after, before)


def test_dropout_in_mean_loss_against_finite_differences() -> None:
    f, s = Small(dropout=0.4), Small(dropout=0.4)
    x0 = torch.randn(5, 3, dtype=torch.float64)

    def value(every: int) -> Tensor:
        torch.manual_seed(3)
        return diffflow_mean_loss(
            f, s, x0, GRID, diffusion=0.7, params=parameters(f, s), key=KEY, checkpoint_every=every
        )

    for every in (1, 3):
        grads = gradients(value(every), parameters(f, s))
        for p, grad in zip(parameters(f, s), grads, strict=True):
            assert grad is not None
            direction, step = torch.randn_like(p), 1e-6
            p.data += step * direction
            high = value(every)
            p.data -= 2 * step * direction
            low = value(every)
            p.data += step * direction
            slope = float((high - low).detach()) / (2 * step)
            assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-6, abs=1e-7)


def test_dropout_leaves_the_generator_moved_on() -> None:
    f, s = Small(dropout=0.4), Small(dropout=0.4)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    values = [
        float(diffflow_mean_loss(f, s, x0, GRID, params=parameters(f, s), key=KEY).detach())
        for _ in range(2)
    ]
    assert values[0] != values[1]


def test_autocast_is_that_of_the_forward_sweep() -> None:
    f, s = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    x0 = torch.randn(64, 2, requires_grad=True)
    inputs = [x0, *parameters(f, s)]
    grads, values = [], []
    for every in (0, 1, 3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = diffflow_loss(
                f, s, x0, GRID, params=inputs[1:], key=KEY, checkpoint_every=every
            )
            assert f(torch.tensor(0.1), x0).dtype == torch.bfloat16
            assert f.input.weight.grad is None
        values.append(loss.detach())
        grads.append(gradients(loss.sum(), inputs))
    assert values[0].dtype == torch.float32
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    plain = diffflow_loss(f, s, x0, GRID, params=inputs[1:], key=KEY)
    assert not torch.equal(values[0], plain.detach())
    exact = gradients(plain.sum(), inputs)
    for a, b, c in zip(grads[0], grads[1], exact, strict=True):
        assert a is not None
        assert b is not None
        assert c is not None
        # bf16 keeps 8 bits; the graph rounds each part of a cotangent, the adjoint their sum.
        assert (a - b).abs().max() <= 2.0**-6 * a.abs().max()
        assert (b - c).abs().max() <= 0.1 * c.abs().max()


def test_weights_cast_by_autocast_keep_their_gradient_afterwards() -> None:
    f = FourierMLP(2, 16, 1)
    x0 = torch.randn(8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY)
        f(torch.tensor(0.1), x0).float().sum().backward()
    assert f.input.weight.grad is not None


def test_number_of_evaluations() -> None:
    f, s = Small(), Small()
    calls = {"f": 0, "s": 0}

    def counted(name: str, net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        def call(t: Tensor, x: Tensor) -> Tensor:
            calls[name] += 1
            return net(t, x)

        return call

    n, params = GRID.num_steps, parameters(f, s)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    nets = counted("f", f), counted("s", s)
    loss = diffflow_loss(*nets, x0, GRID, params=params, key=KEY)
    assert calls == {"f": n + 1, "s": n}
    loss.sum().backward()
    assert calls == {"f": 2 * (n + 1), "s": 2 * n}
    calls.update(f=0, s=0)
    diffflow_mean_loss(*nets, x0, GRID, params=params, key=KEY).backward()
    assert calls == {"f": n + n + 1, "s": n}
    calls.update(f=0, s=0)
    diffflow_loss(*nets, x0, GRID, params=params, key=KEY, score_memory=10**9).sum().backward()
    assert calls == {"f": 2 * (n + 1), "s": 4}


def test_a_tensor_nobody_named_is_refused() -> None:
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for fn in (diffflow_loss, diffflow_mean_loss):
        with pytest.raises(RuntimeError, match=r"shape \(3, 3\) that requires a gradient"):
            fn(lambda t, x: x @ w, f, x0, GRID, params=f.parameters(), key=KEY).sum().backward()


def test_siblings_of_a_named_tensor_are_refused_too() -> None:
    whole = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    a, b = whole.chunk(2)
    x0 = torch.randn(5, 3, dtype=torch.float64)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return x * a[0] + b[0]

    with pytest.raises(RuntimeError, match="requires a gradient but is not among"):
        diffflow_loss(drift, lambda t, x: -x, x0, GRID, params=[a], key=KEY).sum().backward()
    bare = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    x0.requires_grad_()
    with pytest.raises(RuntimeError, match=r"shape \(5, 3\) that requires a gradient"):
        diffflow_loss(lambda t, x: bare, lambda t, x: -x, x0, GRID, key=KEY).sum().backward()


def test_gradient_hooks_on_parameters_are_refused() -> None:
    f = Small()
    f.one.weight.register_hook(lambda grad: 2 * grad)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"shape \(8, 4\) has a gradient hook"):
        diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY)
    g = Small()
    doubled: list[bool] = []
    g.one.weight.register_post_accumulate_grad_hook(lambda p: doubled.append(True))
    diffflow_loss(g, g, x0, GRID, params=g.parameters(), key=KEY).sum().backward()
    assert doubled == [True]


@pytest.mark.parametrize("every", [1, 2])
def test_key_tensor_may_change_before_the_backward_pass(every: int) -> None:
    f, level = Small(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    grads = []
    for advance in (0, 1):
        key = KEY.to_tensor()
        loss = diffflow_loss(
            f, f, x0, GRID, diffusion=lambda t: level.exp().expand(t.shape),
            params=f.parameters(), key=key, checkpoint_every=every,
        )  # fmt: skip
        key[1] += advance
        grads.append(gradients(loss.sum(), [level, *f.parameters()]))
    assert_same(grads[1], grads[0])


def test_two_backward_passes() -> None:
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    loss = diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY)
    first = torch.autograd.grad(loss.sum(), list(f.parameters()), retain_graph=True)
    second = torch.autograd.grad(3 * loss.sum(), list(f.parameters()))
    assert_same([b / 3 for b in second], list(first))


def test_inference_mode() -> None:
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    expected = diffflow_loss(f, f, x0, GRID, key=KEY, params=f.parameters()).detach()
    with torch.inference_mode():
        for memory in (None, 10**9):
            options: dict[str, Any] = {"key": KEY, "score_memory": memory}
            assert torch.equal(diffflow_loss(f, f, x0, GRID, **options), expected)
            inside = x0.clone()
            assert torch.equal(diffflow_loss(f, f, inside, GRID, **options), expected)
    assert inside.is_inference()
    loss = diffflow_loss(f, f, inside, GRID, key=KEY, params=f.parameters())
    loss.sum().backward()
    assert torch.equal(loss.detach(), expected)


def test_second_derivatives_are_refused() -> None:
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    loss = diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY).sum()
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        torch.autograd.grad(loss, x0, create_graph=True)


def test_parameters_changed_in_place_before_backward_are_noticed() -> None:
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    loss = diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY).sum()
    with torch.no_grad():
        f.one.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_network_that_writes_into_x_is_refused() -> None:
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for drift in (lambda t, x: x.mul_(2), lambda t, x: x * t.mul_(2)):
        with pytest.raises(RuntimeError, match=r"drift\(t, x\) modified x or t in place"):
            diffflow_loss(drift, Small(), x0, GRID, key=KEY)


def test_switching_modes_before_the_backward_pass_is_refused() -> None:
    f = Small(dropout=0.4)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    loss = diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY).sum()
    f.eval()
    with pytest.raises(RuntimeError, match=r"switched between train\(\) and eval\(\)"):
        loss.backward()


def test_backward_products_run_outside_autocast() -> None:
    """A network that keeps itself in float32 under autocast keeps float32 gradients."""
    net = FourierMLP(2, 16, 1)

    def precise(t: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return net(t, x)

    x0, params = torch.randn(64, 2), parameters(net)
    truth = diffflow_mean_loss(net, net, x0, GRID, params=params, key=KEY)
    with torch.autocast("cpu", torch.bfloat16):
        loss = diffflow_mean_loss(precise, precise, x0, GRID, params=params, key=KEY)
    pairs = zip(gradients(loss, params), gradients(truth, params), strict=True)
    for a, b in pairs:
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_small_cotangents_survive_half_precision() -> None:
    """The common factor 1/B is applied after the sweep, so a large batch loses nothing by it."""
    net = FourierMLP(2, 16, 1)
    x0, params = torch.randn(4096, 2) * 0.1, parameters(net)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            loss = diffflow_mean_loss(net, net, x0, GRID, params=params, key=KEY)
        grads.append(torch.cat([g.flatten() for g in gradients(loss, params) if g is not None]))
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()


def test_a_trainable_closure_is_noticed_although_nothing_else_trains() -> None:
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for fn in (diffflow_loss, diffflow_mean_loss):
        with pytest.raises(RuntimeError, match="requires a gradient but is not among"):
            fn(lambda t, x: 2 * f(t, x), lambda t, x: -x, x0, GRID, key=KEY)
        with torch.no_grad():
            fn(lambda t, x: 2 * f(t, x), lambda t, x: -x, x0, GRID, key=KEY)


def test_lazily_negated_data() -> None:
    x0 = torch.randn(5, 3, dtype=torch.float64)
    negated = torch._neg_view(-x0)
    assert negated.is_neg()
    f = Small().requires_grad_(False)
    same = [diffflow_loss(f, f, x, GRID, key=KEY) for x in (x0, negated)]
    assert torch.equal(same[0], same[1])


def test_bad_arguments() -> None:
    f, x0 = Small(), torch.randn(5, 3, dtype=torch.float64)
    bad = x0.clone()
    bad[2, 1] = math.nan
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"expected finite x0, got nan at index \(2, 1\)", {"x0": bad}),
        (TypeError, "expected x0 to be float32 or float64, got int64", {"x0": x0.long()}),
        (TypeError, "expected grid to be a TimeGrid, got list", {"grid": [0.0, 1.0]}),
        (ValueError, "expected g > 0, got g=0", {"diffusion": 0.0}),
        (ValueError, r"expected g\(t\) > 0, got g\(0.1", {"diffusion": lambda t: t - 0.5}),
        (ValueError, "expected 0 <= checkpoint_every", {"checkpoint_every": -1}),
        (ValueError, "expected a g that torch.float64 can hold", {"diffusion": 1e-320}),
        (ValueError, "the shortest step", {"grid": TimeGrid.from_times([0.0, 1e-310, 1.0])}),
        (ValueError, "expected 0 <= score_memory", {"score_memory": -1}),
        (TypeError, "expected key to be a NoiseKey", {"key": 3}),
        (ValueError, r"expected sample_offset \+ batch", {"sample_offset": 2**32 - 1}),
        (TypeError, r"expected params\[0\] to be a tensor", {"params": [1.0]}),
        (ValueError, r"expected drift\(t, x\) to have the shape", {"drift": lambda t, x: x[1:]}),
        (TypeError, r"expected score\(t, x\) to be a tensor", {"score": lambda t, x: 1.0}),
    ]  # fmt: skip
    for error, text, change in cases:
        arguments: dict[str, Any] = {
            "drift": f, "score": f, "x0": x0, "grid": GRID, "params": f.parameters(), "key": KEY,
        }  # fmt: skip
        arguments.update(change)
        with pytest.raises(error, match=text):
            diffflow_loss(**arguments)


def test_empty_batch() -> None:
    f = Small()
    x0 = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    for fn in (diffflow_loss, diffflow_mean_loss):
        loss = fn(f, f, x0, GRID, params=f.parameters(), key=KEY).sum()
        loss.backward()
        assert float(loss.detach()) == 0.0
    assert not f.one.weight.grad.any()


def test_compiled_networks() -> None:
    f, s = Small(), Small()
    compiled = [torch.compile(copy.deepcopy(net), backend="aot_eager") for net in (f, s)]
    x0 = torch.randn(5, 3, dtype=torch.float64)
    grads = []
    for drift, score in ((f, s), compiled):
        params = parameters(drift, score)
        loss = diffflow_loss(drift, score, x0, GRID, params=params, key=KEY).sum()
        grads.append(gradients(loss, params))
    assert_same(grads[1], grads[0])


PEAK = """
import resource, sys, torch
from diffflow_ext import NoiseKey, TimeGrid, {fn}
from diffflow_ext.nets import FourierMLP
torch.set_num_threads(1)
f, s, x0 = FourierMLP(2, 64, 2), FourierMLP(2, 64, 2), torch.randn(5000, 2)
params = [*f.parameters(), *s.parameters()]
for n in (10, 10, 30, 100, 300):
    {fn}(f, s, x0, TimeGrid.power(n, 1.0), params=params, key=NoiseKey(1)).sum().backward()
    print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fn", ["diffflow_loss", "diffflow_mean_loss"])
def test_memory_grows_by_the_state_cache_alone(fn: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK.format(fn=fn)], capture_output=True, text=True, check=True
    )
    peaks = {int(n): int(size) for n, size in map(str.split, run.stdout.splitlines())}
    state, activations = 5000 * 2 * 4, 5000 * 64 * 4
    for n in (30, 100, 300):
        # The allocator's own slack; one more kept activation a step would be 20 times the bound.
        assert peaks[n] - peaks[10] <= 1.1 * (n - 10) * state + 8 * activations, peaks
