"""Generative models with a learned forward process, trained fast, exactly and in little memory.

Three layers, each usable without the next:

- `functional`: fused operations with gradients (Euler-Maruyama step, backward residual, noise).
- `DiffFlowSDE`, `diffflow_loss`: the loss of DiffFlow (arXiv 2110.07579) with its exact adjoint;
  `DiNof` (arXiv 2309.01274), `NFDM` (arXiv 2404.12940) and `DDPM` on the same ops.
- `diffflow_ext.training` and the command `diffflow`: train, sample, evaluate.

Names are imported on first use (PEP 562), so that `diffflow --help` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional
    from .engines.paths import diffflow_loss, diffflow_mean_loss
    from .functional.core import build_info
    from .functional.noise import NoiseKey
    from .models import DDPM, NFDM, DiffFlowSDE, DiNof
    from .processes import ConstantDiffusion, GeometricDiffusion, ProgressiveGrid, TimeGrid

    __version__: str

__all__ = [
    "DDPM",
    "NFDM",
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

_HOMES = {
    "engines.paths": {"diffflow_loss", "diffflow_mean_loss"},
    "functional.core": {"build_info"},
    "functional.noise": {"NoiseKey"},
    "models": {"DDPM", "NFDM", "DiNof", "DiffFlowSDE"},
    "processes": {"ConstantDiffusion", "GeometricDiffusion", "ProgressiveGrid", "TimeGrid"},
}


def __getattr__(name: str) -> Any:
    if name == "functional":
        return importlib.import_module(f"{__name__}.functional")
    if name == "__version__":
        return __getattr__("build_info")()["version"]
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
