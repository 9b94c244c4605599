"""Spline flows: densities against quadrature and Jacobians, samples from normals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from densities import jacobian_log_det, mass
from torch import nn

from diffflow_ext.flows import StandardNormal, spline_flow


def awake(flow: Any, std: float) -> Any:
    """The flow with its weights drawn: layers that start at zero would hide errors."""
    for parameter in flow.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    return flow


@pytest.mark.parametrize(("dim", "count"), [(1, 4000), (2, 250)])
def test_a_splines_density_integrates_to_one(dim: int, count: int) -> None:
    flow = awake(spline_flow(dim, hidden=(16,)), 0.2).double()
    assert mass(flow().log_prob, dim, count, half=7.0) == pytest.approx(1.0, abs=2e-3)


def test_a_splines_density_is_that_of_its_map() -> None:
    flow = awake(spline_flow(3, transforms=2, hidden=(16,), bins=4), 0.3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    z = flow().transform(x)
    truth = StandardNormal().log_prob(z) + jacobian_log_det(flow().transform, x)
    torch.testing.assert_close(flow().log_prob(x), truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow().transform.inv(z), x, rtol=1e-9, atol=1e-9)


def test_a_spline_leaves_what_is_outside_as_it_is() -> None:
    flow = awake(spline_flow(2), 0.3)
    x = torch.tensor([[6.0, -7.0], [-5.5, 9.0]])
    torch.testing.assert_close(flow().transform(x), x)
    assert (flow().transform(x / 4) - x / 4).abs().max() > 0.1


def test_samples_come_from_normals() -> None:
    flow = awake(spline_flow(3, transforms=2, hidden=(16,)), 0.3).double()
    z = torch.randn(9, 3, dtype=torch.float64)
    torch.testing.assert_close(flow().transform(flow.sample_from(z)), z, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"spline_flow: expected z of shape \(B, 3\), got \(9, 2"):
        flow.sample_from(z[:, :2])
