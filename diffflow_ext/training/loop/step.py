"""What one training step does: losses, gradients, agreement of processes, and the update.

A step is a pure function of the state before it and of (seed, step): the order of the data, the
time grid and the noise are computed from these two numbers and never stored.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.fields import Config, DiffFlowConfig
from ..config.schedules import learning_rate_at
from ..parallel.distributed import Loss, World
from ..parallel.sharding import ShardedLosses, in_full
from ..recipes.base import Objective, Recipe
from .batches import Batches
from .captured import CapturedTraining
from .diagnosis import diagnose
from .state import TrainState

# Spreads seeds over the 32 bits that torch's generator takes, apart from the step numbers.
SEED_FACTOR = 0x9E3779B1
# The same for processes; odd, and far from the numbers of steps.
RANK_FACTOR = 0x85EBCA6B
#: More steps in a row that aren't finite are no accident.
MAX_SKIPPED = 100
Metrics = dict[str, float]


class TrainingError(RuntimeError):
    """Training can't go on: the loss or its gradient isn't finite."""


class TrainingStep:
    """Takes one training step after another.

    Arguments:
        config: The configuration, resolved for the data.
        recipe: How the model trains.
        state: What changes while it trains.
        batches: This process's share of the batch of each step.
        world: The processes of the run.
    """

    def __init__(
        self,
        config: Config,
        recipe: Recipe[Any, Any],
        state: TrainState,
        batches: Batches,
        world: World,
    ) -> None:
        self.config, self.recipe, self.state = config, recipe, state
        self.batches, self.world = batches, world
        self.sharded: ShardedLosses | None = None
        self.captured: CapturedTraining | None = None
        self.losses: list[Loss] = []

    def prepare(self) -> None:
        """Makes ready for the first step, when the state to start from is there.

        The processes average gradients from here on, and keep shares of the state where asked for.
        """
        if self.config.run.shard and self.world.size > 1:
            self.state.shard(self._shard, self.batches.device)
            assert self.sharded is not None
            self.losses = self.sharded.losses()
        else:
            self.losses = [self.world.reduced(one) for one in self.recipe.objectives]
        if isinstance(self.config, DiffFlowConfig) and self.config.run.cuda_graph:
            self.captured = CapturedTraining(self.recipe, self.state)

    def _shard(self) -> Sequence[Objective]:
        self.sharded = ShardedLosses(self.recipe, self.batches.device)
        return self.recipe.objectives

    def take(self, received: list[int]) -> tuple[Metrics, int]:
        """Takes one training step.

        Arguments:
            received: The signals that this process has got.

        Returns:
            The metrics, and the signal at which all processes stop after this step, or 0.

        Raises:
            TrainingError: If the loss or its gradient isn't finite.
        """
        step = self.state.step
        # Networks that draw (dropout) and estimators of flows draw the same after a resume.
        torch.manual_seed(self._seed(step))
        x0 = self.batches(step)
        rates = [
            learning_rate_at(self.config, step, objective.learning_rate)
            for objective in self.recipe.objectives
        ]
        take = self._plain if self.captured is None else self._graphed
        metrics, signum = take(x0, rates, received)
        return {"step": step + 1, **metrics, "lr": rates[0]}, signum

    def start_flows(self) -> None:
        """Shows the whole first batch to layers that take their scale from it.

        In every process, which would show its part of it otherwise, and before the first step,
        which may be left out.
        """
        layers = [m for m in self.recipe.module.modules() if hasattr(m, "initialised")]
        if all(layer.initialised for layer in layers):
            return
        device = next(self.recipe.module.parameters()).device
        whole = Batches(self.config, self.batches.data, device)(0)
        torch.manual_seed(self._seed(0))
        with torch.no_grad():
            self.recipe.sample_losses(whole, 0, 0)
        if not all(p.isfinite().all() for layer in layers for p in layer.parameters()):
            raise TrainingError(
                "train: the first batch gives the flow a scale that isn't finite; check the data,"
                " or change diffusion_end or batch_size"
            )

    def _seed(self, step: int) -> int:
        """Returns the seed of torch's generator in a step: apart in each process."""
        return (self.config.run.seed * SEED_FACTOR + step + self.world.rank * RANK_FACTOR) % 2**32

    def _plain(self, x0: Tensor, rates: list[float], received: list[int]) -> tuple[Metrics, int]:
        """Takes a step in PyTorch's usual way; not at all where a number isn't finite."""
        step = self.state.step
        self.state.optimiser.zero_grad(set_to_none=True)
        pairs = zip(self.recipe.objectives, self.losses, strict=True)
        values = [value for one, loss in pairs for value in self._backward(one, loss, x0)]
        # A signal may come to one process alone, and all have to stop at one step.
        signum = values[0].new_tensor(float(received[0]) if received else 0.0)
        *means, signum = self.world.mean(torch.stack([*values, signum])).tolist()
        reason = self._not_finite(means)
        if reason and self.config.optimiser.on_nonfinite == "skip":
            return self._skipped(reason), self._agreed(signum, received)
        if reason:
            raise TrainingError(
                f"{reason}; the step wasn't taken; {self._why(x0, step)}; {self._kept()}, and"
                " on_nonfinite='skip' leaves such steps out"
            )
        self.state.update(rates)
        return self._metrics(means), self._agreed(signum, received)

    def _skipped(self, reason: str) -> Metrics:
        """Leaves weights, averages and moments as they are."""
        state = self.state
        state.skip()
        if state.skipped_in_a_row > MAX_SKIPPED:
            raise TrainingError(
                f"{reason}, and neither was any of the {MAX_SKIPPED} before; {self._kept()}"
            )
        return {"skipped": state.skipped}

    def _why(self, x0: Tensor, step: int) -> str:
        """Returns what is not finite in a step that was not taken."""
        lower, rows = self.config.run.autocast == "bf16", self.batches.rows(step)
        try:
            whole = self.sharded.gathered() if self.sharded else contextlib.nullcontext()
            with whole, torch.autocast(self.batches.device.type, torch.bfloat16, enabled=lower):
                text = diagnose(
                    self.recipe, x0, rows, step, self.batches.part.start, self._seed(step)
                )
        except Exception as error:  # Solvers fail on such numbers; the first failure is the news.
            text = f"where could not be found: {error}"
        reasons = [text for text in self.world.everyones(text) if text]
        return (
            reasons[0] if reasons else "each sample's loss and each gradient is finite by itself"
        )

    def _kept(self) -> str:
        saved = (
            f"the last good checkpoint is {self.state.saved}" if self.state.saved else "none saved"
        )
        rate = self.config.optimiser.learning_rate
        return f"{saved}; a learning_rate below {rate:g} or a longer warmup may help"

    def _graphed(self, x0: Tensor, rates: list[float], received: list[int]) -> tuple[Metrics, int]:
        """Takes a step that may be a graph; one that isn't finite spoils the state unsaved."""
        assert self.captured is not None
        values = self.captured(x0, self.state.step, rates)
        if reason := self._not_finite(values):
            raise TrainingError(
                f"{reason}; the weights in memory have changed, and aren't saved; {self._kept()}"
            )
        self.state.step += 1
        return self._metrics(values), self._agreed(0, received)

    def _agreed(self, mean: float, received: list[int]) -> int:
        """Returns the signal that all processes know of; one that came since waits a step."""
        if self.world.size == 1:
            return received[0] if received else 0
        if not mean:
            return 0
        return received[0] if received else signal.SIGTERM

    def _backward(self, objective: Objective, loss_of: Loss, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of an objective and the length of its gradient, which is clipped then.

        Of several processes each returns its share of the loss, of which the mean is that of the
        batch.
        """
        lower = self.config.run.autocast == "bf16" and objective.autocast
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=lower):
            loss = loss_of(x0, self.state.step, self.batches.part.start)
        if self.world.size > 1:
            loss = loss * (
                len(self.batches.part) * self.world.size / self.config.optimiser.batch_size
            )
        loss.backward()
        norm = in_full(torch.nn.utils.clip_grad_norm_(objective.parameters, objective.clip_norm))
        return loss.detach().double(), norm.double()

    def _not_finite(self, values: list[float]) -> str:
        """Returns which loss or gradient's length isn't finite, "" if all are."""
        objectives = self.recipe.objectives
        of = [""] if len(objectives) == 1 else [f" of {one.name}" for one in objectives]
        names = [f"{name}{of_one}" for of_one in of for name in ("loss", "gradient norm")]
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                step = self.state.step + 1
                return f"train: the {name} is {value} at step {step}"
        return ""

    def _metrics(self, values: list[float]) -> Metrics:
        """Returns the loss and the gradient's length of each objective, by name."""
        objectives = self.recipe.objectives
        losses, norms = values[::2], values[1::2]
        metrics: Metrics = {"loss": sum(losses), "grad_norm": math.hypot(*norms)}
        if len(objectives) > 1:
            for one, loss, norm in zip(objectives, losses, norms, strict=True):
                metrics |= {f"{one.name}_loss": loss, f"{one.name}_grad_norm": norm}
        if self.state.skipped:
            metrics["skipped"] = self.state.skipped
        return metrics
