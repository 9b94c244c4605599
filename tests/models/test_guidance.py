"""Guidance without a classifier: its limits, its meaning for Gaussians, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from context_cases import F64, GaussianGiven, Told
from helpers import same_bits
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, NoiseKey, TimeGrid
from diffflow_ext.engines.conditions import Guided
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import VP

KEY, GRID = NoiseKey(5, 2), TimeGrid.power(5, 1.0)
C = torch.randn(6, 2, dtype=F64)
WAYS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ancestral": (DDPM, 4, {}),
    "ddim": (DDPM, 4, {"sampler": "ddim", "clip": True}),
    "em": (DiNof, 4, {"sampler": "em", "last_step": "tweedie"}),
    "ode": (DiNof, 4, {"sampler": "ode"}),
    "nfdm": (NFDM, 4, {}),
    "sde": (DiffFlowSDE, GRID, {"last_step": "tweedie", "corrector_steps": 1}),
    "flow": (DiffFlowSDE, GRID, {"stochasticity": 0.0, "solver": "heun"}),
}


class Nullable(Told):
    """A context of -1 stands for none."""

    def null_context(self, count: int) -> Tensor:
        return torch.full((count, 2), -1.0, dtype=F64)


class ByHand(nn.Module):
    def __init__(self, net: Nullable, context: Tensor, weight: float) -> None:
        super().__init__()
        self.net, self.context, self.weight = net, context, weight

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        free = self.net(t, x, torch.full_like(self.context, -1.0))
        return free + self.weight * (self.net(t, x, self.context) - free)


def model(kind: Any, net: Any, drift: Any = None) -> Any:
    return kind(drift or net, net, 0.7) if kind is DiffFlowSDE else kind(net)


@pytest.mark.parametrize("way", WAYS)
def test_the_limits_of_the_weight(way: str) -> None:
    """1 is the model given the context, 0 is the score or the noise without it, to the bit."""
    kind, steps, options = WAYS[way]
    net = Nullable()
    drift = Told()
    drift.load_state_dict(net.state_dict())
    one = model(kind, net, drift)
    given = {"context": C, **options}
    plain = one.sample((6, 3), steps, KEY, **given)
    assert same_bits(one.sample((6, 3), steps, KEY, guidance=1, **given), plain)
    free = one.sample((6, 3), steps, KEY, guidance=0.0, **given)
    alone = ByHand(net, C, 0.0)
    inside = ByHand(net, C, 1.0)  # The drift has its context, whatever the weight.
    expected = model(kind, alone, inside).sample((6, 3), steps, KEY, **options)
    torch.testing.assert_close(free, expected, rtol=1e-12, atol=1e-12)
    assert (free - plain).abs().max() > 1e-3
    if kind is not DiffFlowSDE:
        null = one.sample((6, 3), steps, KEY, context=net.null_context(6), **options)
        assert same_bits(free, null)


@pytest.mark.parametrize("way", WAYS)
def test_between_and_beyond(way: str) -> None:
    kind, steps, options = WAYS[way]
    net = Nullable()
    for weight in (0.4, 3.0):
        found = model(kind, net).sample((6, 3), steps, KEY, context=C, guidance=weight, **options)
        other = model(kind, ByHand(net, C, weight), ByHand(net, C, 1.0))
        expected = other.sample((6, 3), steps, KEY, **options)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_all_states_of_guided_samples() -> None:
    net = Nullable()
    sde = DiffFlowSDE(net, net, 0.7)
    options: dict[str, Any] = {"context": C, "guidance": 2.0}
    states = sde.sample_path((6, 3), GRID, KEY, **options)
    assert same_bits(states[0], sde.sample((6, 3), GRID, KEY, **options))


def test_the_guided_score_is_that_of_the_product_of_both_densities() -> None:
    r"""p_c^w p_u^(1-w) up to a factor, by autograd of Gaussians' own densities."""
    data, t = GaussianGiven(VP()), torch.tensor(0.4, dtype=F64)
    c = C[:, :1].contiguous()

    class Exact(nn.Module):
        def forward(self, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
            return data.eps(t, x, context)

        def null_context(self, count: int) -> Tensor:
            return torch.zeros(count, 1, dtype=F64)

    x = torch.randn(6, 2, dtype=F64, requires_grad=True)
    alpha, sigma = data.process.alpha(t), data.process.sigma(t)
    spread = (alpha**2 * c.exp() + sigma**2).sqrt().expand(6, 2)
    told = Independent(Normal(alpha * torch.cat([2 * c, c.sin()], 1), spread), 1)
    free = Normal(torch.zeros(2, dtype=F64), (alpha**2 + sigma**2).sqrt())
    density = 2.5 * told.log_prob(x) - 1.5 * free.log_prob(x).sum(1)
    (score,) = torch.autograd.grad(density.sum(), x)
    found = Guided(Exact(), 2.5)(t, x.detach(), c)
    torch.testing.assert_close(found, -sigma * score, rtol=1e-10, atol=1e-10)


def test_our_networks_can_be_guided() -> None:
    torch.manual_seed(0)
    net = FourierMLP(3, 8, num_classes=4, time_scale=0.1)
    labels, none = torch.arange(4), torch.full((4,), 4)
    for kind in (DDPM, DiNof, DiffFlowSDE):
        one, steps = model(kind, net), GRID if kind is DiffFlowSDE else 4
        found = one.sample((4, 3), steps, KEY, context=labels, guidance=2.0)
        assert found.isfinite().all()
        if kind is not DiffFlowSDE:
            free = one.sample((4, 3), steps, KEY, context=labels, guidance=0.0)
            plain = one.sample((4, 3), steps, KEY, context=none)
            torch.testing.assert_close(free, plain)


@pytest.mark.parametrize("kind", [DDPM, DiNof, NFDM, DiffFlowSDE])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"guidance": 2.0}, ValueError, "a context with guidance=2.0, got None; pass context="),
        ({"guidance": "2", "context": C}, TypeError, "guidance"),
        ({"guidance": float("nan"), "context": C}, ValueError, "guidance"),
        (
            {"guidance": 2, "context": C},
            TypeError,
            "with a method null_context(n), the context of",
        ),
    ],
)
def test_what_guidance_needs(kind: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        model(kind, Told()).sample((6, 3), GRID if kind is DiffFlowSDE else 4, KEY, **options)
    assert text in str(caught.value)
    assert str(caught.value).startswith(f"{kind.__name__}.sample: expected")
