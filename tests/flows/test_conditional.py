"""Priors that take a context: zuko's, our spline, normflows', and how they are asked."""

from __future__ import annotations

from typing import Any

import normflows
import pytest
import torch
import zuko
from densities import jacobian_log_det
from helpers import same_bits
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, DiNof, NoiseKey, TimeGrid
from diffflow_ext.flows import FlowPrior, StandardNormal, as_prior, spline_flow
from diffflow_ext.flows.prior import GivenPrior, prior_given
from diffflow_ext.functional import normal

KEY, F64 = NoiseKey(5, 2), torch.float64
C, X = torch.randn(6, 2, dtype=F64), torch.randn(6, 3, dtype=F64)


def spline(context_dim: int = 2) -> Any:
    flow = spline_flow(3, 2, (16,), 4, context_dim=context_dim).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return flow


def test_a_splines_density_given_a_context_is_that_of_its_map() -> None:
    flow = spline()
    prior = as_prior(flow)
    found = prior.log_prob(X, context=C)  # pyright: ignore[reportCallIssue]
    for i in range(6):
        transform = flow(C[i]).transform
        z = transform(X[i : i + 1])
        truth = StandardNormal().log_prob(z) + jacobian_log_det(transform, X[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], truth, rtol=1e-9, atol=1e-9)


def test_samples_of_a_spline_are_functions_of_index_and_context() -> None:
    prior = FlowPrior(spline())
    assert prior.conditional
    options: dict[str, Any] = {"dtype": F64}
    whole = prior.sample((6, 3), KEY, context=C, **options)
    z = normal((6, 3), KEY, purpose="prior", dtype=F64)
    torch.testing.assert_close(prior.flow(C).transform(whole), z, rtol=1e-8, atol=1e-8)
    part = prior.sample((3, 3), KEY, context=C[3:], sample_offset=3, **options)
    torch.testing.assert_close(part, whole[3:], rtol=1e-12, atol=1e-12)


def test_flows_of_other_libraries() -> None:
    flow = zuko.flows.MAF(3, 2, transforms=1, hidden_features=(8,)).double()
    prior = FlowPrior(flow, conditional=True)
    torch.testing.assert_close(prior.log_prob(X, C), flow(C).log_prob(X))
    assert prior.sample((6, 3), KEY, context=C).shape == (6, 3)
    encoder = nn.Linear(2, 6).double()
    base = normflows.distributions.base.ConditionalDiagGaussian(3, encoder)
    flow = normflows.ConditionalNormalizingFlow(base, [])
    prior = FlowPrior(flow, conditional=True)
    mean, log_scale = encoder(C).chunk(2, 1)
    law = torch.distributions.Normal(mean, log_scale.exp())
    torch.testing.assert_close(prior.log_prob(X, {"vectors": C}), law.log_prob(X).sum(1))
    found = prior.sample((6, 3), KEY, context=C, dtype=F64)
    assert same_bits(found, prior.sample((6, 3), KEY, context=C, dtype=F64))
    with pytest.raises(TypeError, match="FlowPrior\\(flow, conditional=True\\)"):
        FlowPrior(flow)


def test_what_takes_a_context_and_what_does_not() -> None:
    prior, plain = FlowPrior(spline()), FlowPrior(spline(0))
    assert not plain.conditional
    with pytest.raises(ValueError, match="expected a context, because the flow takes one, got No"):
        prior.log_prob(X)
    with pytest.raises(ValueError, match="expected no context, because the flow takes none, got"):
        plain.sample((6, 3), KEY, context=C)
    with pytest.raises(ValueError, match=r"the entry 'vectors' for the flow, got one with 'l'"):
        prior.log_prob(X, {"l": C})
    assert prior_given(plain, C) is plain
    assert prior_given(prior, None) is prior
    with pytest.raises(ValueError, match="context_dim >= 0, got -1"):
        spline_flow(2, context_dim=-1)


def test_a_given_prior_has_the_rows_of_its_samples() -> None:
    prior = FlowPrior(spline())
    given = prior_given(prior, C)
    assert isinstance(given, GivenPrior)
    assert same_bits(given.log_prob(X), prior.log_prob(X, C))
    twice = given.log_prob(torch.cat([X, X + 1]))
    torch.testing.assert_close(twice[6:], prior.log_prob(X + 1, C))
    torch.testing.assert_close(given.first(1).log_prob(X[:1]), prior.log_prob(X[:1], C[:1]))


class Told(nn.Module):
    """Networks that leave the context to the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, t: Tensor, x: Tensor, context: Any) -> Tensor:
        return self.layer(x).tanh()


def test_models_train_a_prior_given_the_context() -> None:
    """Gradients of the flow and of the context, against the density at the last state."""
    flow, c, grid = spline(), C.clone().requires_grad_(), TimeGrid.power(4, 1.0)
    sde = DiffFlowSDE(Told(), Told(), 0.8, prior=flow)
    inputs = [c, *flow.parameters()]
    found = torch.autograd.grad(sde.mean_loss(X, grid, KEY, context=c), inputs)
    with torch.no_grad():
        last = sde.encode(X, grid, KEY, context=c)
    truth = torch.autograd.grad(-flow(c).log_prob(last).mean(), inputs)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    model = DiNof(Told(), flow)
    found = torch.autograd.grad(model.flow_loss(X, KEY, context=c).mean(), inputs)
    assert all(bool(grad.any()) for grad in found)
    assert model.sample((6, 3), 3, KEY, context=C).shape == (6, 3)
