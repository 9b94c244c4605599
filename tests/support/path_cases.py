"""Paths of two perceptrons, for kernels on devices that are emulated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.engines.fused.workspace import Rounding
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(2**40 + 5, 2)
#: Errors of gradients against float64, relative to their norm. TF32 has 10 bits, bfloat16 8.
ERRORS: dict[Rounding, float] = {"float32": 5e-6, "tf32": 2e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Case:
    """A model, data and a grid. Weights times `scale` leave no activation in its linear part."""

    dim: int
    widths: tuple[int, int]
    depths: tuple[int, int]
    batch: int
    num_steps: int
    activations: tuple[str, str] = ("gelu", "silu")
    rounding: Rounding = "float32"
    learned_g: bool = False
    scale: float = 1.5

    def sde(self) -> DiffFlowSDE:
        torch.manual_seed(1)
        sizes = zip(self.widths, self.depths, self.activations, strict=True)
        drift, score = (FourierMLP(self.dim, *each) for each in sizes)
        learned = GeometricDiffusion(0.7, 0.9, learnable=True)
        sde = DiffFlowSDE(drift, score, learned if self.learned_g else 0.8)
        with torch.no_grad():
            for p in sde.parameters():
                p.mul_(self.scale)
        return sde

    def data(self) -> Tensor:
        return torch.randn(self.batch, self.dim, generator=torch.Generator().manual_seed(2))

    def weight(self) -> Tensor:
        return torch.rand(self.batch, generator=torch.Generator().manual_seed(3)) / self.batch

    def grid(self) -> TimeGrid:
        return TimeGrid.power(self.num_steps, 1.0)
