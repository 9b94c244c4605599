"""The learned forward process: its formula, and its rates, drifts and scores against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_cases import F64, WavyForward
from torch import Tensor, nn

from diffflow_ext.models.learned_forward import LearnedForward, time_functions
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import LogSNR

PROCESS = LogSNR(8.0, -4.0)
TIMES = torch.tensor([0.0, 0.013, 0.31, 0.5, 0.82, 1.0], dtype=F64)
EVENTS = [(3,), (2, 4, 4)]


def process(count: int = 3) -> LearnedForward:
    return LearnedForward(WavyForward(count).double(), PROCESS)


def by_hand(net: WavyForward, t: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """m and s at times (B,), from the formulas of the module's docstring."""
    rows = (-1, *(1,) * (x0.dim() - 1))
    snr = (8.0 - 12.0 * t).exp().reshape(rows)
    mean, log_scale = (snr / (1 + snr)).sqrt() * x0, -0.5 * (1 + snr).log()
    for k in range(net.count):
        b = (4 * t * (1 - t) * (2 * t - 1) ** k).reshape(rows)
        mean = mean + b * net.shift(k, x0)
        log_scale = log_scale + b * 0.5 * net.logit(k, x0).tanh()
    return mean, log_scale.exp()


def slope(value: Tensor, t: Tensor) -> Tensor:
    """The derivative of each element, shape (B, *event), in the time of its sample."""
    flat = value.reshape(len(t), -1)
    columns = [torch.autograd.grad(c.sum(), t, retain_graph=True)[0] for c in flat.unbind(1)]
    return torch.stack(columns, 1).reshape(value.shape)


# --- functions of time ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_functions_of_time_are_the_formula_and_their_slopes_its_derivative(count: int) -> None:
    t = TIMES.clone().requires_grad_()
    values, slopes = time_functions(t, count)
    assert values.shape == slopes.shape == (len(TIMES), count)
    assert not values[[0, -1]].any()
    for k in range(count):
        expected = 4 * TIMES * (1 - TIMES) * (2 * TIMES - 1) ** k
        assert torch.allclose(values[:, k], expected, rtol=1e-14, atol=0)
        (exact,) = torch.autograd.grad(values[:, k].sum(), t, retain_graph=True)
        assert torch.allclose(slopes[:, k], exact, rtol=1e-12, atol=1e-13)


# --- the Gaussian of x_t and how it moves --------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("event", EVENTS)
def test_means_and_scales_are_the_formula(event: tuple[int, ...], count: int) -> None:
    forward, x0 = process(count), torch.randn(len(TIMES), *event, dtype=F64)
    found = forward.at(TIMES, x0, forward.coefficients(x0))
    mean, scale = by_hand(forward.net, TIMES, x0)
    assert torch.allclose(found.mean, mean, rtol=1e-12, atol=1e-13)
    assert torch.allclose(found.scale, scale, rtol=1e-12, atol=0)
    # A time of all samples is that time for each.
    one = forward.at(TIMES[2], x0, forward.coefficients(x0))
    each = forward.at(TIMES[2].expand(len(x0)), x0, forward.coefficients(x0))
    assert all(torch.equal(a, b) for a, b in zip(one, each, strict=True))


@pytest.mark.parametrize("event", EVENTS)
@torch.no_grad()
def test_both_ends_are_those_of_the_linear_process(event: tuple[int, ...]) -> None:
    forward, x0 = process(), torch.randn(2, *event, dtype=F64)
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    found = forward.at(ends, x0, forward.coefficients(x0))
    rows = (2, *(1,) * len(event))
    alpha, sigma = PROCESS.alpha(ends).reshape(rows), PROCESS.sigma(ends).reshape(rows)
    assert torch.allclose(found.mean, alpha * x0, rtol=1e-14)
    assert torch.allclose(found.scale, sigma.expand_as(x0), rtol=1e-14)
    # The process in between is another one.
    half = torch.tensor(0.5, dtype=F64)
    middle = forward.at(half, x0, forward.coefficients(x0))
    assert float((middle.mean - PROCESS.alpha(half) * x0).abs().min()) > 1e-3
    assert float((middle.scale / PROCESS.sigma(half)).log().abs().max()) > 1e-2


@pytest.mark.parametrize("event", EVENTS)
def test_drift_is_the_velocity_at_fixed_noise(event: tuple[int, ...]) -> None:
    forward, t = process(), TIMES.clone().requires_grad_()
    x0, eps = torch.randn(2, len(TIMES), *event, dtype=F64)
    mean, scale = by_hand(forward.net, t, x0)
    x = mean + scale * eps
    found = forward.at(TIMES, x0, forward.coefficients(x0))
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert torch.allclose(found.mean_rate, slope(mean, t), **close)
    assert torch.allclose(found.log_scale_rate, slope(scale.log(), t), **close)
    assert torch.allclose(found.drift(x.detach()), slope(x, t), **close)


@pytest.mark.parametrize("event", EVENTS)
def test_reverse_drift_has_the_score_of_the_gaussian(event: tuple[int, ...]) -> None:
    forward = process()
    x0, x = torch.randn(2, len(TIMES), *event, dtype=F64)
    x.requires_grad_()
    squared_g = (1 + TIMES).reshape(-1, *(1,) * len(event))
    law = torch.distributions.Normal(*by_hand(forward.net, TIMES, x0))
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    found = forward.at(TIMES, x0, forward.coefficients(x0))
    expected = found.drift(x) - 0.5 * squared_g * score
    assert torch.allclose(found.reverse_drift(x, squared_g), expected, rtol=1e-10)


def test_scales_change_by_a_bounded_factor() -> None:
    class Huge(nn.Module):
        def forward(self, x0: Tensor) -> Tensor:
            return torch.cat([0 * x0, 1e6 * x0], 1)

    forward, x0 = LearnedForward(Huge(), PROCESS), torch.tensor([[1.0], [-1.0]], dtype=F64)
    half = torch.tensor(0.5, dtype=F64)
    found = forward.at(half, x0, forward.coefficients(x0))
    ratio = (found.scale / PROCESS.sigma(half)).log()
    assert torch.allclose(ratio, torch.tensor([[0.5], [-0.5]], dtype=F64), rtol=1e-12)


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_channels_are_functions_then_channels_of_an_image(count: int) -> None:
    """2 K C channels in the order (2, K, C)."""
    numbers = torch.arange(2.0 * count * 3).reshape(1, -1, 1, 1).expand(5, -1, 4, 4) / 100
    forward = LearnedForward(lambda x0: numbers, PROCESS)
    h, u = forward.coefficients(torch.zeros(5, 3, 4, 4))
    assert h.shape == u.shape == (5, count, 3, 4, 4)
    for k in range(count):
        for c in range(3):
            assert torch.equal(h[:, k, c], numbers[:, 3 * k + c])
            logits = numbers[:, 3 * (count + k) + c]
            assert torch.allclose(u[:, k, c], 0.5 * logits.tanh(), rtol=1e-6)


def test_autocast_leaves_the_network_in_float32() -> None:
    net, seen = nn.Linear(3, 12), []
    net.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    forward, x0 = LearnedForward(net, PROCESS), torch.randn(6, 3)
    expected = forward.coefficients(x0)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x0).dtype == torch.bfloat16
        found = forward.coefficients(x0)
        # It is on again for what follows.
        assert net(x0).dtype == torch.bfloat16
    assert seen[2] == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(4, 5), ValueError, r"shape \(4, 2 K 3\) for x0 of shape \(4, 3\), .* \(4, 5"),
        (torch.zeros(4, 9), ValueError, r"with a whole K >= 1, got \(4, 9\)"),
        (torch.zeros(4, 0), ValueError, r"with a whole K >= 1, got \(4, 0\)"),
        (torch.zeros(2, 6), ValueError, r"got \(2, 6\)"),
        (torch.zeros(4, 6, 1), ValueError, r"got \(4, 6, 1\)"),
        (torch.zeros(24), ValueError, r"got \(24,\)"),
        ([0.0], TypeError, r"expected forward_net\(x0\) to return a tensor, got \[0\.0\]"),
    ],
)
def test_values_of_another_shape_are_refused(
    value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"NFDM: .*{message}"):
        LearnedForward(lambda x0: value, PROCESS).coefficients(torch.zeros(4, 3))


def test_values_of_another_size_than_the_image_are_refused() -> None:
    message = r"expected forward_net\(x0\) of shape \(4, 2 K 1, 6, 6\) .*, got \(4, 2, 6, 5\)"
    with pytest.raises(ValueError, match=message):
        LearnedForward(lambda x0: torch.zeros(4, 2, 6, 5), PROCESS).coefficients(
            torch.zeros(4, 1, 6, 6)
        )


def test_data_without_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected x0 of shape \(B, C, \.\.\.\), got \(4,\)"):
        process().coefficients(torch.zeros(4, dtype=F64))


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (nn.Linear(5, 8), RuntimeError, r"to take data of shape \(3, 2\), it raised RuntimeError"),
        (FourierMLP(2), TypeError, "to take one argument, the data without a time"),
        (nn.Linear(2, 8).double(), TypeError, "the dtype of its data, got float64 parameters"),
        (lambda x: torch.ones(3, 8).long(), TypeError, "of a floating dtype, got int64"),
        (lambda x: x.relu_().repeat(1, 4), RuntimeError, "modified its argument in place"),
        (lambda x: torch.ones(3, 8, device="meta"), ValueError, r"data \(cpu\), got meta"),
    ],
)
def test_calls_that_fail_are_explained(net: Any, error: type[Exception], message: str) -> None:
    process = LearnedForward(net, PROCESS)
    with pytest.raises(error, match=rf"NFDM: (expected )?forward_net\(x0\) .*{message}"):
        process.coefficients(torch.ones(3, 2))


def test_errors_of_the_network_itself_pass() -> None:
    def net(x: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        LearnedForward(net, PROCESS).coefficients(torch.ones(3, 2))
