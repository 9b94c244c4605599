"""Log-densities: bounds from paths, the density of the probability-flow ODE, 8-bit images."""

from .images import bits_per_dim, dequantise, quantise
from .ode import flow_log_prob

__all__ = [
    "bits_per_dim",
    "dequantise",
    "flow_log_prob",
    "quantise",
]
