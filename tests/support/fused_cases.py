"""What tests of the fused engines share."""

from __future__ import annotations

import torch
from torch import Tensor

from diffflow_ext import NoiseKey

KEY = NoiseKey(11, 3)


def batch(samples: int, dim: int = 2) -> Tensor:
    return torch.randn(samples, dim, generator=torch.Generator().manual_seed(1))


def apart(a: Tensor, b: Tensor) -> float:
    """The distance, relative to the length of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())
