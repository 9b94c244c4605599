"""Networks that give other values when the adjoint evaluates them again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adjoint_cases import (
    GRID,
    KEY,
    Bent,
    Small,
    assert_same,
    data,
    gradients,
    parameters,
    unrolled,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from diffflow_ext import DiffFlowSDE, TimeGrid, diffflow_loss, diffflow_mean_loss
from diffflow_ext.nets import FourierMLP

Change = Callable[[Tensor, Tensor], Tensor]


class Changed(Small):
    """A network whose value f is changed to change(t, f) by something outside of torch."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.change(t, super().forward(t, x))


def python_layer_drop() -> Change:
    rng = random.Random(1)
    return lambda t, f: f if rng.random() > 0.5 else 0.2 * f


def numpy_layer_drop() -> Change:
    rng = np.random.default_rng(1)
    return lambda t, f: f if rng.random() > 0.5 else 0.2 * f


def dropped_rows() -> Change:
    own = torch.Generator().manual_seed(1)
    return lambda t, f: f * (torch.rand(len(f), 1, generator=own) > 0.2)


def dropped_elements() -> Change:
    own = torch.Generator().manual_seed(1)
    return lambda t, f: f * (torch.rand(f.shape, generator=own) > 0.1)


def counter() -> Change:
    calls = [0]

    def change(t: Tensor, f: Tensor) -> Tensor:
        calls[0] += 1
        return f * (1 + 0.01 * calls[0])

    return change


def counter_at_one_state() -> Change:
    always = counter()
    return lambda t, f: torch.where(t.reshape(-1, 1) == GRID.times[4], always(t, f), f)


OWN_RANDOMNESS: list[Callable[[], Change]] = [
    python_layer_drop, numpy_layer_drop, dropped_rows, dropped_elements, counter,
    counter_at_one_state,
]  # fmt: skip


@pytest.mark.parametrize("make", OWN_RANDOMNESS)
def test_a_drift_that_does_not_repeat_is_an_error_or_keeps_its_graph(
    make: Callable[[], Change],
) -> None:
    f, s, x0 = Changed(make()), Small(), data(64)
    params = parameters(f, s)
    for fn in (diffflow_loss, diffflow_mean_loss):
        for every, scores in ((1, 1), (3, 1), (1, 3), (3, 2)):
            with pytest.raises(RuntimeError, match=r"expected drift\(t, x\) to give the same"):
                fn(
                    f, s, x0, GRID, params=params, key=KEY,
                    checkpoint_every=every, scores_per_call=scores,
                ).sum().backward()  # fmt: skip
    f.change = make()
    truth = unrolled(f, s, x0, GRID, torch.ones_like(GRID.times)).sum()
    f.change = make()
    loss = diffflow_loss(f, s, x0, GRID, params=params, key=KEY, checkpoint_every=0).sum()
    assert_same(gradients(loss, params), gradients(truth, params))


def test_the_error_names_network_and_state() -> None:
    f, odd = Small(), Changed(counter_at_one_state())
    with pytest.raises(RuntimeError, match=r"drift\(t, x\) .* at state 4 of .*checkpoint_every=0"):
        diffflow_mean_loss(odd, f, data(), GRID, params=parameters(odd, f), key=KEY)
    for scores in (1, 3):
        loss = diffflow_loss(
            f, odd, data(), GRID, params=parameters(odd, f), key=KEY, scores_per_call=scores
        ).sum()
        with pytest.raises(RuntimeError, match=r"score\(t, x\) .* at state 4 of"):
            loss.backward()


@pytest.mark.parametrize("make", OWN_RANDOMNESS)
def test_a_score_that_does_not_repeat_is_right_in_the_mean_loss(
    make: Callable[[], Change],
) -> None:
    """The mean loss evaluates the score once; the truth is a finite difference."""
    f, s, x0 = Small(), Changed(make()), data(32)

    def value() -> Tensor:
        s.change = make()
        return diffflow_mean_loss(f, s, x0, GRID, params=parameters(f, s), key=KEY)

    (grad,) = torch.autograd.grad(value(), s.two.bias)
    direction, step = torch.ones_like(grad), 1e-6
    s.two.bias.data += step * direction
    high = float(value().detach())
    s.two.bias.data -= 2 * step * direction
    low = float(value().detach())
    assert (high - low) / (2 * step) == pytest.approx(float(grad.sum()), rel=1e-6)
    loss = diffflow_loss(f, s, x0, GRID, params=parameters(f, s), key=KEY, scores_per_call=3)
    with pytest.raises(RuntimeError, match=r"expected score\(t, x\) to give the same"):
        loss.sum().backward()


def test_a_prior_that_does_not_repeat() -> None:
    class Odd(Bent):
        def log_prob(self, x: Tensor) -> Tensor:
            return super().log_prob(x) * (1 + rng.random())

    rng, f, prior = random.Random(0), Small(), Odd()
    params = parameters(f, prior)
    loss = diffflow_loss(f, f, data(), GRID, params=params, prior=prior, key=KEY)  # pyright: ignore
    with pytest.raises(RuntimeError, match=r"expected prior.log_prob\(x\) to give the same"):
        loss.sum().backward()
    diffflow_mean_loss(f, f, data(), GRID, params=params, prior=prior)  # pyright: ignore


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((*s,), torch.float32) for s in ((1, 1), (67, 1), (2003, 1), (2000, 2), (7, 3, 11, 13))),
        *(((*s,), torch.bfloat16) for s in ((1, 1), (5, 3), (8, 3, 16, 16))),
    ],
)
def test_a_change_of_one_sample_is_found_in_a_batch_of_any_size(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x0, row, calls = torch.randn(shape), [0], [0]
    out = (1 + torch.rand(shape)).to(dtype)

    def drift(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        value = out + 0 * x.to(dtype)
        if calls[0] == 4:  # the first repeated one
            value[row[0]] *= -1
        return value

    for row[0] in {0, shape[0] // 2, shape[0] - 1}:
        calls[0] = 0
        with pytest.raises(RuntimeError, match=r"expected drift"):
            diffflow_mean_loss(
                drift, lambda t, x: -x, x0.requires_grad_(), TimeGrid.power(2, 1.0), key=KEY
            )


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_change_before_the_backward_pass(frozen: bool) -> None:
    """Neither `.data` nor a frozen weight is seen by torch's count of writes."""
    f, s = Small(), Small().requires_grad_(not frozen)
    params = parameters(f, s)
    loss = diffflow_loss(f, s, data(), GRID, params=params, key=KEY).sum()
    s.two.weight.data += 0.01
    with pytest.raises(RuntimeError, match=r"expected score\(t, x\) to give the same values"):
        loss.backward()


def test_a_second_backward_pass_is_compared_too() -> None:
    f = Small()
    loss = diffflow_loss(f, f, data(), GRID, params=parameters(f), key=KEY).sum()
    loss.backward(retain_graph=True)
    f.one.weight.data += 0.01
    with pytest.raises(RuntimeError, match="to give the same values each time"):
        loss.backward()


# --- networks that may be used -------------------------------------------------------------------


class Layers(nn.Module):
    """Layers of x alone."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(x)


def spectral() -> Layers:
    return Layers(spectral_norm(nn.Linear(3, 8)), nn.Tanh(), spectral_norm(nn.Linear(8, 3)))


def test_spectral_norm_in_train_mode_is_refused_and_right_otherwise() -> None:
    f, s, x0 = spectral().double(), spectral().double(), data(16)
    params = parameters(f, s)
    with pytest.raises(RuntimeError, match=r"\.eval\(\) on a network that changes its buffers"):
        diffflow_mean_loss(f, s, x0, GRID, params=params, key=KEY)
    f.eval()
    s.eval()
    truth = gradients(unrolled(f, s, x0, GRID, torch.ones_like(GRID.times)).sum(), params)
    for every in (0, 1, 3):
        loss = diffflow_loss(f, s, x0, GRID, params=params, key=KEY, checkpoint_every=every).sum()
        assert_same(gradients(loss, params), truth)


def test_cached_parametrized_weights_are_refused() -> None:
    """They would get no gradient, because the cached ones have no graph."""
    f, x0 = weight_norm(nn.Linear(3, 3)).double(), data(4)
    sde = DiffFlowSDE(lambda t, x: f(x), lambda t, x: f(x), 0.5, params=f.parameters())
    calls = [sde.loss, sde.mean_loss, sde.path]
    with parametrize.cached():
        for call in calls:
            with pytest.raises(RuntimeError, match=r"parametrize\.cached\(\), in which"):
                call(x0, GRID, KEY)
        assert sde.loss(x0, GRID, KEY, checkpoint_every=0).requires_grad
    for call in calls:
        assert call(x0, GRID, KEY).requires_grad


class Caching(Small):
    """Keeps a tensor computed from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 3)
        self.kept: Tensor | None = None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.embed(torch.ones(1).to(x))
        return super().forward(t, x) + self.kept


def test_parameters_without_a_gradient_are_named() -> None:
    """A cached tensor has no graph, because the first evaluation had none."""
    f, s = Caching().double(), Small()
    loss = diffflow_loss(f, s, data(), GRID, params=parameters(f, s), key=KEY).sum()
    with pytest.warns(UserWarning, match=r"2 of .* no gradient, the first of shape \(3, 1\)\. .*"):
        loss.backward()
    assert f.embed.weight.grad is None
    # A parameter of the diffusion gets its gradient there.
    g = torch.full((), 0.7, dtype=torch.float64, requires_grad=True)
    for diffusion in (lambda t: g, lambda t: g * (1 + t)):
        diffflow_mean_loss(
            s, s, data(), GRID, params=[*parameters(s), g], key=KEY, diffusion=diffusion
        ).backward()
    f.kept = None
    exact = diffflow_loss(
        f, s, data(), GRID, params=parameters(f, s), key=KEY, checkpoint_every=0
    ).sum()
    exact.backward()
    assert f.embed.weight.grad is not None


def test_weight_norm_and_batch_norm_in_train_mode_are_right() -> None:
    first = weight_norm(nn.Linear(3, 8, bias=False))
    f = Layers(first, nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    f, x0 = f.double(), data(16)
    params = parameters(f)
    truth = unrolled(f, f, x0, GRID, torch.ones_like(GRID.times)).sum()
    expected = gradients(truth, params)
    count = f.layers[1].num_batches_tracked
    for fn in (diffflow_loss, diffflow_mean_loss):
        before = int(count)
        loss = fn(f, f, x0, GRID, params=params, key=KEY)
        actual = gradients(loss.sum() if fn is diffflow_loss else 16 * loss, params)
        assert_same(actual, expected)
        # As documented: statistics are updated by each evaluation, 2 (2N+1) or 3N+1 of them.
        n = GRID.num_steps
        assert int(count) - before == (4 * n + 2 if fn is diffflow_loss else 3 * n + 1)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("precise", [False, True])
def test_autocast_around_one_pass_alone_is_no_change(
    forward: bool, backward: bool, precise: bool
) -> None:
    """Values are compared outside autocast, in which their sums would be rounded to 8 bits."""
    net = FourierMLP(2, 16, 1)

    def in_float32(t: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return net(t, x)

    f: Any = in_float32 if precise else net
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        loss = diffflow_loss(f, f, torch.randn(64, 2), GRID, params=net.parameters(), key=KEY)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward):
        loss.sum().backward()
    assert net.input.weight.grad is not None


@pytest.mark.parametrize("lowered", [False, True])
def test_other_kernels_without_gradients_are_rounding(lowered: bool) -> None:
    """Torch evaluates a transformer by other kernels where no gradient is asked for."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    f = Layers(nn.Unflatten(1, (2, 1)), nn.Linear(1, 16), layer, nn.Linear(16, 1), nn.Flatten())
    f, x0 = f.eval(), torch.randn(64, 2)
    values = [f(GRID.times[0], x0)]
    with torch.no_grad():
        values.append(f(GRID.times[0], x0))
    assert not torch.equal(*values), "the case is none: both evaluations give the same bits"
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        loss = diffflow_loss(f, f, x0, GRID, params=f.parameters(), key=KEY)
    loss.sum().backward()


def test_values_that_are_not_finite_are_left_to_others() -> None:
    odd = Changed(counter())
    odd.change = lambda t, f: f * torch.tensor([1.0, float("nan"), float("inf")])
    loss = diffflow_loss(odd, odd, data(), GRID, params=parameters(odd), key=KEY).sum()
    loss.backward()
    assert not odd.two.weight.grad.isfinite().all()


def test_evaluations_without_gradients_compare_nothing() -> None:
    odd = Changed(counter())
    with torch.no_grad():
        diffflow_loss(odd, odd, data(), GRID, params=parameters(odd), key=KEY)


@pytest.mark.slow
def test_networks_compiled_by_inductor() -> None:
    f = FourierMLP(2, 16, 1)
    compiled = torch.compile(f)
    for lowered in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            loss = diffflow_loss(
                compiled, compiled, torch.randn(64, 2), GRID, params=f.parameters(), key=KEY
            )
        loss.sum().backward()
