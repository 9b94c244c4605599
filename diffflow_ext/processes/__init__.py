"""Grids of times, diffusion coefficients, and linear diffusions in closed form."""

from .chain import DiscreteVP
from .diffusion import ConstantDiffusion, Diffusion, GeometricDiffusion
from .grids import ProgressiveGrid, TimeGrid
from .linear import VE, VP, LinearProcess, LogSNR, SubVP, process_by_name

__all__ = [
    "VE",
    "VP",
    "ConstantDiffusion",
    "Diffusion",
    "DiscreteVP",
    "GeometricDiffusion",
    "LinearProcess",
    "LogSNR",
    "ProgressiveGrid",
    "SubVP",
    "TimeGrid",
    "process_by_name",
]
