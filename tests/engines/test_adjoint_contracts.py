"""What the losses refuse, notice and leave alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from adjoint_cases import GRID, KEY, Bent, Small, assert_same, gradients, parameters
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from diffflow_ext import DiffFlowSDE, TimeGrid, diffflow_loss, diffflow_mean_loss

#: Its first step is below the normal numbers of float32.
SHORT = TimeGrid.from_times([0.0, 1e-40, 1.0])


def test_a_prior_of_another_dimension_is_named() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1, dtype=torch.float64)

        def log_prob(self, x: Tensor) -> Tensor:
            return self.layer(x)[:, 0]

    f, prior = Small(), Wrong()
    params, x0 = parameters(f, prior), torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(
        RuntimeError, match=r"prior\.log_prob\(x\) to take x of shape \(5, 3\), it"
    ):
        diffflow_loss(f, f, x0, GRID, params=params, prior=prior, key=KEY)  # pyright: ignore


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


def test_a_tensor_nobody_named_is_refused() -> None:
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for fn in (diffflow_loss, diffflow_mean_loss):
        with pytest.raises(RuntimeError, match=r"shape \(3, 3\) that requires a gradient"):
            fn(lambda t, x: x @ w, f, x0, GRID, params=f.parameters()).sum().backward()
    assert w.grad is None


def test_a_gradient_of_a_copy_of_x_is_refused() -> None:
    """As a score that is the gradient of an energy computes it."""
    f, x0 = Small(), torch.randn(5, 3, dtype=torch.float64)

    def score(t: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            copy = x.detach().requires_grad_()
            return torch.autograd.grad(f(t, copy).square().sum(), copy, create_graph=True)[0]

    for fn in (diffflow_loss, diffflow_mean_loss):
        with pytest.raises(RuntimeError, match=r"take x itself: x\.detach\(\) loses"):
            fn(f, score, x0, GRID, params=f.parameters()).sum().backward()


def test_parameters_without_shapes_are_refused() -> None:
    """A gradient would be of a parameter that the first call replaces."""
    lazy, x0 = nn.LazyLinear(3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return lazy(x)

    for sde_call in ("loss", "log_prob"):
        sde = DiffFlowSDE(drift, drift, params=lazy.parameters())
        with pytest.raises(ValueError, match=r"got a lazy module, .* call the networks once"):
            getattr(sde, sde_call)(x0, GRID)
    lazy(x0)
    diffflow_loss(drift, drift, x0, GRID, params=lazy.parameters()).sum().backward()
    assert lazy.weight.grad is not None


@pytest.mark.parametrize("call", ["loss", "mean_loss", "path", "log_prob"])
def test_a_tensor_of_some_states_alone_is_refused_too(call: str) -> None:
    w = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    sde = DiffFlowSDE(
        lambda t, x: x * (w[0] if float(t.max()) > 0.5 else w[1]), lambda t, x: -x, params=w[:1]
    )
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for _ in range(2):  # Not only the first time.
        with pytest.raises(RuntimeError, match=r"not among|all trainable tensors in nn"):
            getattr(sde, call)(x0, GRID, KEY).sum().backward()


def test_a_network_is_searched_again_for_other_parameters() -> None:
    w = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x0 = torch.randn(5, 3, dtype=torch.float64)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        return x * (w[0] if float(t.max()) > 0.5 else w[1])

    diffflow_mean_loss(drift, lambda t, x: -x, x0, GRID, params=w)
    with pytest.raises(RuntimeError, match="not among the parameters"):
        diffflow_mean_loss(drift, lambda t, x: -x, x0, GRID, params=w[:1])


@pytest.mark.parametrize("call", ["loss", "mean_loss", "path", "log_prob"])
def test_tensors_computed_from_one_another_are_refused(call: str) -> None:
    """The gradient of the first would count twice."""
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for v in (w.T, 2 * w, torch.tanh(w).T):
        sde = DiffFlowSDE(lambda t, x, v=v: x @ v, lambda t, x: -x, params=[w, v])
        with pytest.raises(ValueError, match="none is computed from another, got one of shape"):
            getattr(sde, call)(x0, GRID, KEY)
        alone = DiffFlowSDE(lambda t, x, v=v: x @ v, lambda t, x: -x, params=[v])
        getattr(alone, call)(x0, GRID, KEY).sum().backward()
    # Parts of one tensor are independent.
    a, b = torch.randn(2, 3, dtype=torch.float64, requires_grad=True).unbind()
    sde = DiffFlowSDE(lambda t, x: x * a, lambda t, x: -x * b, params=[a, b])
    getattr(sde, call)(x0, GRID, KEY).sum().backward()


@pytest.mark.parametrize("call", ["loss", "mean_loss", "path", "log_prob"])
def test_a_tensor_with_a_graph_from_before_is_explained(call: str) -> None:
    encoder, x0 = nn.Linear(3, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    context = torch.tanh(encoder(x0))
    sde = DiffFlowSDE(lambda t, x: x * context, lambda t, x: -x, params=encoder.parameters())
    with pytest.raises(RuntimeError, match="compute that tensor inside of the network, or"):
        getattr(sde, call)(x0, GRID, KEY).sum().backward()


@pytest.mark.parametrize("call", ["loss", "mean_loss", "path", "sample", "log_prob"])
def test_what_torch_cannot_trace_is_refused(call: str) -> None:
    sde = DiffFlowSDE(lambda t, x: -x, lambda t, x: -x)
    x0 = torch.randn(5, 3)
    method = getattr(sde, call)

    def run(x: Tensor) -> Tensor:
        return method((5, 3), GRID, KEY) if call == "sample" else method(x, GRID, KEY)

    with pytest.raises(RuntimeError, match=rf"DiffFlowSDE\.{call}: expected a call with values"):
        make_fx(run)(x0)
    with FakeTensorMode(), pytest.raises(RuntimeError, match="call it outside"):
        run(x0)


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


def test_inference_mode() -> None:
    f = Small()
    x0 = torch.randn(5, 3, dtype=torch.float64)
    expected = diffflow_loss(f, f, x0, GRID, key=KEY, params=f.parameters()).detach()
    with torch.inference_mode():
        for scores in (1, 3):
            options: dict[str, Any] = {"key": KEY, "scores_per_call": scores}
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


def test_a_network_that_writes_into_x_is_refused() -> None:
    x0 = torch.randn(5, 3, dtype=torch.float64)
    for drift in (lambda t, x: x.mul_(2), lambda t, x: x * t.mul_(2)):
        with pytest.raises(RuntimeError, match=r"drift\(t, x\) modified x or t in place"):
            diffflow_loss(drift, Small(), x0, GRID, key=KEY)


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
        (ValueError, "the shortest step", {"grid": SHORT, "x0": x0.float()}),
        (ValueError, "expected 1 <= scores_per_call", {"scores_per_call": 0}),
        (TypeError, "expected scores_per_call to be an integer", {"scores_per_call": 1.5}),
        (TypeError, "expected key to be a NoiseKey", {"key": 3}),
        (ValueError, r"expected sample_offset \+ batch", {"sample_offset": 2**32 - 1}),
        (TypeError, r"expected params\[0\] to be a tensor", {"params": [1.0]}),
        (ValueError, r"expected drift\(t, x\) to have the shape", {"drift": lambda t, x: x[1:]}),
        (TypeError, r"expected score\(t, x\) to return a tensor", {"score": lambda t, x: 1.0}),
    ]  # fmt: skip
    for error, text, change in cases:
        arguments: dict[str, Any] = {
            "drift": f, "score": f, "x0": x0, "grid": GRID, "params": f.parameters(), "key": KEY,
        }  # fmt: skip
        arguments.update(change)
        with pytest.raises(error, match=text):
            diffflow_loss(**arguments)


@pytest.mark.parametrize("scores", [1, 3])
def test_empty_batch(scores: int) -> None:
    f = Small()
    x0 = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    for fn in (diffflow_loss, diffflow_mean_loss):
        loss = fn(
            f, f, x0, GRID, params=f.parameters(), key=KEY, scores_per_call=scores
        ).sum()  # fmt: skip
        loss.backward()
        assert float(loss.detach()) == 0.0
    assert not f.one.weight.grad.any()
