"""Generative models with a learned forward process, trained fast, exactly and in little memory.

Three layers, each usable without the one above:

- `functional`: fused operations with gradients (Euler-Maruyama step, backward residual, noise).
- `DiffFlowSDE`, `diffflow_loss`: the loss of DiffFlow (arXiv 2110.07579) with its exact adjoint;
  `DiNof` (arXiv 2309.01274) and `DDPM` on the same ops.
- `diffflow_ext.training` and the command `diffflow`: train, sample, evaluate.
"""

from __future__ import annotations

from . import functional
from .engines.paths import diffflow_loss, diffflow_mean_loss
from .functional.core import build_info
from .functional.noise import NoiseKey
from .models import DDPM, DiffFlowSDE, DiNof
from .processes import ConstantDiffusion, GeometricDiffusion, ProgressiveGrid, TimeGrid

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
