"""The density of an ordinary differential equation: a prior and the integral of the divergence."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from diffflow_ext.engines.ode.solver import Divergence, integrate
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.flows.prior import Prior
from diffflow_ext.processes.grids import TimeGrid

__all__ = ["flow_log_prob"]


def flow_log_prob(
    flow: ProbabilityFlow, x: Tensor, grid: TimeGrid, prior: Prior, **options: Any
) -> Tensor:
    r"""Returns the log-density that the flow gives its data end, in nats, shape (B,).

    .. math:: \log p_0(x) = \log p_{prior}(x_T) + \int_{t_0}^{t_N} \nabla \cdot v(t, x_t) \, dt

    Arguments:
        flow: The velocity.
        x: The data, shape (B, *event).
        grid: The times from data to noise.
        prior: The density at the grid's end.
        options: Those of :func:`integrate`; `divergence` is "auto" by default.
    """
    if options.setdefault("divergence", "auto") is None or "reverse" in options:
        raise ValueError(
            f"flow_log_prob: expected divergence to be one of {get_args(Divergence)} and no "
            f"direction, got {options}"
        )
    x_last, change = integrate(flow, x, grid, **options)
    assert change is not None
    with torch.no_grad():
        return prior.log_prob(x_last) + change.to(x_last.dtype)
