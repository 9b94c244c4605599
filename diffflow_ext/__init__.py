"""Generative models with a learned forward process, trained fast, exactly and in little memory.

Three layers, each usable without the one above:

- `functional`: fused operations with gradients (Euler-Maruyama step, backward residual, noise).
- `DiffFlowSDE`, `diffflow_loss`: the loss of DiffFlow (arXiv 2110.07579) with its exact adjoint;
  `DiNof` (arXiv 2309.01274) and `DDPM` on the same ops.
- `diffflow_ext.training` and the command `diffflow`: train, sample, evaluate.
"""

from __future__ import annotations

from . import functional
from ._backend import build_info
from .adjoint import diffflow_loss, diffflow_mean_loss
from .ddpm import DDPM
from .diffusion import ConstantDiffusion, GeometricDiffusion
from .dinof import DiNof
from .grids import ProgressiveGrid, TimeGrid
from .noise import NoiseKey
from .sde import DiffFlowSDE

__version__: str = build_info()["version"]

__all__ = [
    "DDPM",
    "ConstantDiffusion",
    "DiNof",
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
