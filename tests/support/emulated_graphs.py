"""Captures and replays of training steps without a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines import CapturedStep


class Replay:
    """Stands for a captured graph: it does again what was done at the capture."""

    def __init__(self, run: Callable[[], Tensor], place: Any) -> None:
        self.run, self.place = run, place

    def replay(self) -> None:
        self.place.values.copy_(self.run())


class Emulated(CapturedStep):
    """The bookkeeping of captures and replays, without a device."""

    eager = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uses_graphs = True

    def _eager(self, place: Any) -> Tensor:
        self.eager += 1
        return self._run(place.x0, place.grid)

    def _capture(self, place: Any) -> None:
        place.values = torch.zeros(2, dtype=torch.float64)
        place.graph = Replay(lambda: self._run(place.x0, place.grid), place)
        self.num_captures += 1
