"""Priors, the densities of a model's last state: a Gaussian, or a normalizing flow.

`as_prior` gives every flow the same `log_prob(x)` and `sample(shape, key)`. The libraries of flows
are the optional dependency ``diffflow_ext[flows]``, imported when a flow is made.
"""

from .ffjord import FFJORD
from .glow import ActNorm, glow
from .prior import FlowPrior, Prior, StandardNormal, as_prior
from .spline import spline_flow

__all__ = [
    "FFJORD",
    "ActNorm",
    "FlowPrior",
    "Prior",
    "StandardNormal",
    "as_prior",
    "glow",
    "spline_flow",
]
