"""Training steps of DiffFlow as CUDA graphs.

Data, grid, stream of the noise, learning rate and decay are written into device memory before each
replay, so steps are those of the plain loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines.cuda_graph import CapturedStep
from diffflow_ext.processes.grids import TimeGrid

from ..config.schedules import training_grid
from ..recipes.base import Recipe
from ..recipes.diffflow import DiffFlowRecipe
from .state import TrainState


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

    def __call__(self, x0: Tensor, step: int, rates: Sequence[float]) -> list[float]:
        """Takes a step, even if it is not finite; returns the loss and the gradient's norm."""
        grid = training_grid(self.recipe.config, step)
        self.recipe.note(x0, grid, step)
        self.step.set_learning_rates(rates)
        values = self.step.step(x0, grid, stream=step, decay=self.state.decay)
        return torch.stack(values).tolist()

    def _loss(self, x0: Tensor, grid: TimeGrid, key: Tensor) -> Tensor:
        lower = self.recipe.config.run.autocast == "bf16" and self.objective.autocast
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=lower):
            return self.recipe.path_loss(x0, grid, key)
