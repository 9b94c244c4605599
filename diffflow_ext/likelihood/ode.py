"""The density of an ordinary differential equation: a prior and the integral of the divergence."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from diffflow_ext.engines.ode.solver import Divergence, integrate
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.flows.prior import Prior
from diffflow_ext.processes.grids import TimeGrid


def flow_log_prob(
    ode: ProbabilityFlow, x: Tensor, grid: TimeGrid, prior: Prior, **options: Any
) -> Tensor:
    r"""Returns log p(x) of the samples that an ODE maps from a prior to the data.

    .. math:: \log p_0(x) = \log p_{prior}(x_N) + \int_{t_0}^{t_N} \nabla \cdot v(t, x_t) \, dt

    Networks must act on each sample alone and not draw random numbers: switch dropout off with
    eval().

    Arguments:
        ode: The velocity v of the equation.
        x: The data, shape (B, *event), float32 or float64.
        grid: The times, from data to noise. Fixed solvers take the steps of the grid; "dopri5"
            uses only its ends.
        prior: The density of the state at the last time.
        options: `solver`, `divergence`, `num_probes`, `key`, `sample_offset`, `rtol`, `atol` and
            `engine` of :func:`diffflow_ext.engines.integrate`. `divergence` is "auto" by default.

    Returns:
        The log-densities, shape (B,), in nats. With fixed solvers they are differentiable in `x`
        and in the parameters of networks and prior, as :func:`diffflow_ext.engines.integrate`
        says. With "dopri5" a backward pass raises an error.

    Raises:
        ValueError: If an argument is out of its range, or data are not finite.
        TypeError: If an argument has the wrong type.
        ImportError: If "dopri5" is asked for and torchdiffeq is missing.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), section 4.3
        | https://arxiv.org/abs/2011.13456
    """
    if options.setdefault("divergence", "auto") is None or "reverse" in options:
        raise ValueError(
            f"flow_log_prob: expected divergence to be one of {get_args(Divergence)} and no "
            f"direction, got {options}"
        )
    x_last, change = integrate(ode, x, grid, **options)
    assert change is not None
    return prior.log_prob(x_last) + change.to(x_last.dtype)
