"""Training steps of DiffFlow as CUDA graphs.

Data, grid, stream of the noise, learning rate and decay are written into device memory before each
replay, so steps are those of the plain loop. Their losses are read one step late where nobody
needs them before: the device then never waits for Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines.cuda_graph import CapturedStep
from diffflow_ext.processes.grids import TimeGrid

from ..config.fields import Config, DiffFlowConfig
from ..config.schedules import training_grid
from ..recipes.base import Recipe
from ..recipes.diffflow import DiffFlowRecipe
from .state import TrainState


def takes_graphs(config: Config, device: torch.device, processes: int) -> bool:
    """Says whether steps are captured: where that was asked for, or may be possible on a GPU."""
    if not isinstance(config, DiffFlowConfig) or config.run.cuda_graph == "off":
        return False
    possible = processes == 1 and config.optimiser.on_nonfinite == "stop"
    # A graph holds the addresses of its data, and no context.
    possible = possible and not config.network.dropout and config.data.condition is None
    return config.run.cuda_graph == "on" or (device.type == "cuda" and possible)


class Reading:
    """The loss and the gradient's norm of a step, on their way from the device."""

    def __init__(self, step: int, values: Tensor) -> None:
        # torch copies into pinned memory, without waiting.
        self.step, self.values = step, values.to("cpu", non_blocking=True)
        self.arrival = torch.cuda.Event() if values.is_cuda else None
        if self.arrival is not None:
            self.arrival.record(torch.cuda.current_stream(values.device))

    def numbers(self) -> list[float]:
        """Returns the numbers; waits for their step, and for no later one."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.values.tolist()


class CapturedTraining:
    """Takes training steps by replaying graphs; on the CPU the same code runs without graphs.

    It must be made after a checkpoint was restored, because graphs contain addresses of tensors.
    """

    def __init__(self, recipe: Recipe[Any, Any], state: TrainState) -> None:
        assert isinstance(recipe, DiffFlowRecipe), recipe
        self.recipe, self.state = recipe, state
        (self.objective,) = recipe.objectives
        self.step = CapturedStep(
            self._loss,
            state.module,
            state.optimiser,
            recipe.key(state.step),
            ema=state.ema,
            clip=self.objective.clip_norm,
        )

    def __call__(self, x0: Tensor, step: int, rates: Sequence[float]) -> Reading:
        """Takes a step, even if it is not finite."""
        grid = training_grid(self.recipe.config, step)
        self.recipe.note(x0, grid, step)
        self.step.set_learning_rates(rates)
        values = self.step.step(x0, grid, stream=step, decay=self.state.decay)
        return Reading(step, torch.stack(values))

    def _loss(self, x0: Tensor, grid: TimeGrid, key: Tensor) -> Tensor:
        lower = self.recipe.config.run.autocast == "bf16" and self.objective.autocast
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=lower):
            return self.recipe.path_loss(x0, grid, key)
