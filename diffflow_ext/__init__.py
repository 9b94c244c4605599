"""Generative models with a learned forward process, trained fast, exactly and in little memory.

Three layers, each usable without the one above:

- `functional`: fused operations with gradients (Euler-Maruyama step, backward residual, noise).
- `DiffFlowSDE`, `diffflow_loss`: the loss of DiffFlow (arXiv 2110.07579) with its exact adjoint.
- `diffflow_ext.training` and the command `diffflow`: train, sample, evaluate.
"""

from __future__ import annotations

from . import functional
from ._backend import build_info
from .adjoint import diffflow_loss, diffflow_mean_loss
from .diffusion import ConstantDiffusion, GeometricDiffusion
from .grids import ProgressiveGrid, TimeGrid
from .noise import NoiseKey
from .sde import DiffFlowSDE

__version__: str = build_info()["version"]

__all__ = [
    "ConstantDiffusion",
    "DiffFlowSDE",
    "GeometricDiffusion",
    "NoiseKey",
    "ProgressiveGrid",
    "TimeGrid",
    "build_info",
    "diffflow_loss",
    "diffflow_mean_loss",
    "functional",
]
