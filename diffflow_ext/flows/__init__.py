"""Normalizing flows to stand at the noise end of a model: `priors.as_prior` gives each the same
`log_prob(x)` and `sample(shape, key)`.

Their libraries are the extra ``pip install 'diffflow_ext[flows]'``, imported when a flow is made.
"""

from diffflow_ext.flows.ffjord import FFJORD
from diffflow_ext.flows.glow import ActNorm, glow
from diffflow_ext.flows.spline import spline_flow

__all__ = ["FFJORD", "ActNorm", "glow", "spline_flow"]
