"""Networks of the hidden part of their data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adjoint_cases import GRID, KEY, assert_same, gradients, parameters, unrolled
from context_cases import bound_to
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE
from diffflow_ext.engines.network import embeds_time
from diffflow_ext.nets import FourierMLP, MaskedNet, UNet

F64 = torch.float64
UNET: dict[str, Any] = {"base": 4, "mults": (1,), "blocks": 1, "attention": ()}


def of_rows(dim: int = 3) -> MaskedNet:
    return MaskedNet(FourierMLP(dim, 8, 1, context_dim=2 * dim), as_channels=False).double()


def of_images() -> MaskedNet:
    unet = UNet(5, 4, out_channels=2, **UNET)
    # Its last layer starts at zero.
    nn.init.normal_(unet.output.weight)
    return MaskedNet(unet, as_channels=True).double()


def context(x: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([x * mask, mask], 1)


ROWS = torch.randn(4, 3, dtype=F64)
OF_ROWS = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]]).double()
PIXELS = torch.randn(2, 2, 4, 4, dtype=F64)
OF_PIXELS = torch.ones(2, 1, 4, 4, dtype=F64)
OF_PIXELS[:, :, 2:] = 0
CASES = [(of_rows, ROWS, OF_ROWS), (of_images, PIXELS, OF_PIXELS)]


@pytest.mark.parametrize(("made", "x", "mask"), CASES, ids=["rows", "images"])
def test_the_seen_part_is_known_from_the_context_alone(made: Any, x: Tensor, mask: Tensor) -> None:
    net, t = made(), torch.tensor(0.3, dtype=F64)
    c = context(torch.randn_like(x), mask)
    value = net(t, x, c)
    assert value.shape == x.shape
    shown = mask.bool().expand_as(x)
    assert not value[shown].any()
    assert value[~shown].all()
    other = torch.where(shown, torch.randn_like(x), x)
    assert torch.equal(net(t, other, c), value)
    assert not torch.equal(net(t, x, context(torch.randn_like(x), mask)), value)
    # With nothing hidden from it, it is the network within.
    none = torch.zeros_like(c)
    inner = (
        net.net(t, torch.cat([x, none], 1)) if net.as_channels else net.net(t, x, none.flatten(1))
    )
    assert torch.equal(net(t, x, none), inner)


@pytest.mark.parametrize(("made", "x", "mask"), CASES, ids=["rows", "images"])
def test_times_enter_by_an_embedding(made: Any, x: Tensor, mask: Tensor) -> None:
    net, t = made(), torch.rand(len(x), dtype=F64)
    assert embeds_time(net)
    c = context(x, mask)
    torch.testing.assert_close(net.trunk(x, net.embed(t), c), net(t, x, c))


def test_several_values_for_each_channel() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return torch.cat([x + 1, 2 * x + 1], 1)

    net = MaskedNet(Double(), as_channels=False)
    value = net(ROWS, context(ROWS, OF_ROWS)).reshape(4, 2, 3)
    hidden = 1 - OF_ROWS
    assert torch.equal(value[:, 0], (ROWS + 1) * hidden)
    assert torch.equal(value[:, 1], (2 * ROWS + 1) * hidden)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_gradients_of_path_losses_are_those_of_the_unrolled_loop(every: int) -> None:
    drift, score = of_rows(), of_rows()
    sde = DiffFlowSDE(drift, score, 0.8)
    c = context(ROWS, OF_ROWS)
    inputs = parameters(drift, score)
    g = torch.full((GRID.num_steps + 1,), 0.8, dtype=F64)
    truth = unrolled(bound_to(drift, c), bound_to(score, c), ROWS, GRID, g)
    loss = sde.loss(ROWS, GRID, KEY, context=c, checkpoint_every=every)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    assert_same(gradients(loss.sum(), inputs), gradients(truth.sum(), inputs))
    # A row of which all is seen has no gradient.
    own = sde.loss(ROWS[2:3], GRID, KEY, context=c[2:3], sample_offset=2)
    assert not any(grad.any() for grad in gradients(own.sum(), inputs))


def test_the_density_of_the_seen_part_is_that_of_a_standard_normal() -> None:
    """All of a row is seen: the ODE stands still, and what is left is the prior."""
    sde = DiffFlowSDE(of_rows(), of_rows(), 0.8)
    found = sde.log_prob(ROWS, GRID, KEY, context=context(ROWS, torch.ones_like(ROWS)))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(ROWS).sum(1)
    torch.testing.assert_close(found, prior, rtol=1e-12, atol=1e-12)
    # Of a hidden part it is that of a smaller model: the seen part enters by the context alone.
    c = context(ROWS, OF_ROWS)
    moved = torch.where(OF_ROWS.bool(), ROWS + 1, ROWS)
    one, two = (sde.log_prob(x, GRID, KEY, context=c) for x in (ROWS, moved))
    normal = [torch.distributions.Normal(0.0, 1.0).log_prob(x) * OF_ROWS for x in (ROWS, moved)]
    torch.testing.assert_close(one - normal[0].sum(1), two - normal[1].sum(1))


@pytest.mark.parametrize("wrong", [None, torch.zeros(4, 5), torch.zeros(3, 6), {"labels": ROWS}])
def test_contexts_that_do_not_fit(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"MaskedNet: expected a context of shape \(4, 4\) or"):
        of_rows()(torch.tensor(0.3, dtype=F64), ROWS, wrong)


def test_a_context_is_needed() -> None:
    with pytest.raises(TypeError, match="MaskedNet: expected t, x and a context, got none"):
        of_rows()(torch.zeros(()), torch.zeros(3, 3))
