"""Small training steps for CUDA graphs, and captures that are stood in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.engines import CapturedStep
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(3, 10)
CPU, META = torch.device("cpu"), torch.device("meta")


def model(device: torch.device = CPU) -> DiffFlowSDE:
    torch.manual_seed(0)
    nets = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    return DiffFlowSDE(*nets, GeometricDiffusion(0.3, 0.6, learnable=True)).to(device)


def grid_of(i: int, num_steps: int = 4) -> TimeGrid:
    return TimeGrid.stratified(num_steps, t_end=1.0, key=NoiseKey(8, i))


def batch(i: int) -> Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(i))


class Replay:
    """Stands for a captured graph: it does again what was done at the capture."""

    def __init__(self, run: Callable[[], Tensor], slot: Any) -> None:
        self.run, self.slot = run, slot

    def replay(self) -> None:
        self.slot.values.copy_(self.run())


class Emulated(CapturedStep):
    """The bookkeeping of captures and replays, without a device."""

    eager = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uses_graphs = True

    def _eager(self, slot: Any) -> Tensor:
        self.eager += 1
        return self._run(slot.x0, slot.grid)

    def _capture(self, slot: Any) -> None:
        slot.values = torch.zeros(2, dtype=torch.float64)
        slot.graph = Replay(lambda: self._run(slot.x0, slot.grid), slot)
        self.num_captures += 1
