"""Engines for losses, paths and densities: the adjoint for any networks, fused perceptrons."""

from .choice import Engine, EngineChoice
from .cuda_graph import CapturedStep, GridBuffer
from .network import Network
from .ode.solver import integrate
from .ode.velocity import ProbabilityFlow
from .paths import diffflow_loss, diffflow_mean_loss

__all__ = [
    "CapturedStep",
    "Engine",
    "EngineChoice",
    "GridBuffer",
    "Network",
    "ProbabilityFlow",
    "diffflow_loss",
    "diffflow_mean_loss",
    "integrate",
]
