"""The adjoint against autograd of the plain unrolled loop, in float64."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from adjoint_cases import (
    ALL_MODES,
    EXACT,
    GRID,
    KEY,
    Bent,
    Small,
    assert_same,
    check,
    gradients,
    parameters,
    unrolled,
)
from torch import Tensor, nn

from diffflow_ext import TimeGrid, diffflow_loss, diffflow_mean_loss
from diffflow_ext.nets import FourierMLP


def test_two_networks() -> None:
    f, s = Small(), Small()
    check(f, s, parameters(f, s), modes=ALL_MODES)


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
    with pytest.warns(UserWarning, match=r"1 of \d+ parameters got no gradient, .*\(3,\)\. If"):
        check(f, s, trainable)
    del s.spare
    s.two = f.two
    shared = list(dict.fromkeys(p for p in parameters(f, s) if p.requires_grad))
    check(f, s, shared)
    one = Small()
    check(one, one, parameters(one))


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
    check(f, lambda t, x: -x.detach(), parameters(f), modes=[(1, 1), (2, 3)])


def test_statistics_of_normalisation_do_not_reach_the_result() -> None:
    nets = [nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).double() for _ in range(2)]
    f, s = (lambda t, x, net=net: net(x) for net in nets)
    check(f, s, parameters(*nets), modes=[(1, 1), (3, 1)])


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
    assert torch.equal(torch.get_rng_state(), after)
    torch.rand(7)  # whatever else draws in between
    before = torch.get_rng_state()
    actual = gradients(loss.sum(), inputs)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(actual, truth)


@pytest.mark.parametrize("fn", [diffflow_loss, diffflow_mean_loss])
@pytest.mark.parametrize(("every", "scores"), [(1, 1), (3, 1), (1, 3), (3, 2)])
def test_dropout_against_finite_differences(
    fn: Callable[..., Tensor], every: int, scores: int
) -> None:
    f, s = Small(dropout=0.4), Small(dropout=0.4)
    x0 = torch.randn(5, 3, dtype=torch.float64)

    def value() -> Tensor:
        torch.manual_seed(3)
        return fn(
            f, s, x0, GRID, diffusion=0.7, params=parameters(f, s), key=KEY,
            checkpoint_every=every, scores_per_call=scores,
        ).mean()  # fmt: skip

    grads = gradients(value(), parameters(f, s))
    for p, grad in zip(parameters(f, s), grads, strict=True):
        assert grad is not None
        direction, step = torch.randn_like(p), 1e-6
        p.data += step * direction
        high = value()
        p.data -= 2 * step * direction
        low = value()
        p.data += step * direction
        slope = float((high - low).detach()) / (2 * step)
        assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-6, abs=1e-7)


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


def test_backward_products_run_outside_autocast() -> None:
    """A network that keeps itself in float32 under autocast keeps float32 gradients."""
    net = FourierMLP(2, 16, 1)

    def precise(t: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return net(t, x)

    x0, params = torch.randn(64, 2), parameters(net)
    truth = diffflow_mean_loss(precise, precise, x0, GRID, params=params, key=KEY)
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
