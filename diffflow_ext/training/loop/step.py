"""Training steps: losses, gradients, agreement of processes, and the update.

A step is a pure function of the state before it and of (seed, step), which determine the order of
the data, the time grid and the noise.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.fields import Config
from ..config.schedules import is_logged, is_saved, learning_rate_at
from ..parallel.distributed import Loss, World
from ..parallel.sharding import ShardedLosses, in_full
from ..recipes.base import Objective, Recipe
from .batches import Batches
from .captured import CapturedTraining, Reading, takes_graphs
from .diagnosis import diagnose
from .state import TrainState

# Odd factors that spread seeds and ranks over the 32 bits of torch's seed, far from step numbers.
SEED_FACTOR = 0x9E3779B1
RANK_FACTOR = 0x85EBCA6B
#: The largest number of skipped steps in a row.
MAX_SKIPPED = 100
Metrics = dict[str, float]


class TrainingError(RuntimeError):
    """Training can't continue: the loss or its gradient isn't finite."""


class TrainingStep:
    """Takes training steps; `batches` are this process's parts of the batches."""

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
        self.unread: Reading | None = None
        self.first = True
        self.losses: list[Loss] = []

    def prepare(self) -> None:
        """Prepares the first step, after the state was restored.

        From here on the processes average gradients, and with `shard` have shares of the state.
        """
        if self.config.run.shard and self.world.size > 1:
            self.state.shard(self._shard, self.batches.device)
            assert self.sharded is not None
            self.losses = self.sharded.losses()
        else:
            self.losses = [self.world.reduced(item) for item in self.recipe.objectives]
        if takes_graphs(self.config, self.batches.device, self.world.size):
            self.captured = CapturedTraining(self.recipe, self.state)

    def _shard(self) -> Sequence[Objective]:
        self.sharded = ShardedLosses(self.recipe, self.batches.device)
        return self.recipe.objectives

    def take(self, received: list[int]) -> tuple[Metrics, int]:
        """Takes one training step.

        Arguments:
            received: The signals that this process has received.

        Returns:
            The metrics, and the signal at which all processes stop after this step, or 0.

        Raises:
            TrainingError: If the loss or its gradient isn't finite.
        """
        step = self.state.step
        # Dropout and estimators of flows draw the same numbers after a resume.
        torch.manual_seed(self._seed(step))
        x0 = self.batches(step)
        rates = [
            learning_rate_at(self.config, step, objective.learning_rate)
            for objective in self.recipe.objectives
        ]
        take = self._plain if self.captured is None else self._graphed
        metrics, signum = take(x0, rates, received)
        return {"step": step + 1, **metrics, "lr": rates[0]}, signum

    def rehearse(self) -> None:
        """Evaluates the loss of one sample, and changes nothing.

        What the next step would refuse, such as steps too short for float32, is refused here.
        """
        # Layers that aren't initialised would take their scale from this one sample.
        if not all(getattr(m, "initialised", True) for m in self.recipe.module.modules()):
            return
        x0 = self.batches.data[:1].to(next(self.recipe.module.parameters()).device)
        x0 = self.batches.inputs(x0, 0)
        devices = [x0.device] if x0.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            self.recipe.sample_losses(x0, self.state.step, 0)

    def start_flows(self) -> None:
        """Initialises layers that take their scale from the first batch.

        Every process uses the whole batch, not its part. This comes before the first step, because
        that may be skipped.
        """
        layers = [m for m in self.recipe.module.modules() if hasattr(m, "initialised")]
        if all(layer.initialised for layer in layers):
            return
        device = next(self.recipe.module.parameters()).device
        batches = self.batches
        whole = Batches(self.config, batches.data, device, encoding=batches.encoding)(0)
        torch.manual_seed(self._seed(0))
        with torch.no_grad():
            self.recipe.sample_losses(whole, 0, 0)
        if not all(p.isfinite().all() for layer in layers for p in layer.parameters()):
            raise TrainingError(
                "train: the first batch gives the flow a scale that isn't finite; check the data,"
                " or change diffusion_end or batch_size"
            )

    def _seed(self, step: int) -> int:
        """Returns the seed of torch's generator in a step, different in each process."""
        return (self.config.run.seed * SEED_FACTOR + step + self.world.rank * RANK_FACTOR) % 2**32

    def _plain(self, x0: Tensor, rates: list[float], received: list[int]) -> tuple[Metrics, int]:
        """Takes a step without a graph, unless a number isn't finite."""
        step = self.state.step
        self.state.optimiser.zero_grad(set_to_none=True)
        pairs = zip(self.recipe.objectives, self.losses, strict=True)
        values = [value for item, loss in pairs for value in self._backward(item, loss, x0)]
        # If one process receives a signal, all must stop at the same step.
        signum = values[0].new_tensor(float(received[0]) if received else 0.0)
        *means, signum = self.world.mean(torch.stack([*values, signum])).tolist()
        reason = self._not_finite(means, step)
        if reason and self.config.optimiser.on_nonfinite == "skip":
            return self._skipped(reason), self._agreed(signum, received)
        if reason:
            raise TrainingError(
                f"{reason}; the step wasn't taken; {self._why(x0, step)}; {self._advice()}, and"
                " on_nonfinite='skip' leaves such steps out"
            )
        self.state.update(rates)
        return self._metrics(means), self._agreed(signum, received)

    def _skipped(self, reason: str) -> Metrics:
        state = self.state
        state.skip()
        if state.skipped_in_a_row > MAX_SKIPPED:
            raise TrainingError(
                f"{reason}, and neither was any of the {MAX_SKIPPED} before; {self._advice()}"
            )
        return {"skipped": state.skipped}

    def _why(self, x0: Tensor, step: int) -> str:
        """Returns a description of what is not finite in a step that was not taken."""
        lower, rows = self.config.run.autocast == "bf16", self.batches.rows(step)
        try:
            whole = self.sharded.gathered() if self.sharded else contextlib.nullcontext()
            with whole, torch.autocast(self.batches.device.type, torch.bfloat16, enabled=lower):
                text = diagnose(
                    self.recipe, x0, rows, step, self.batches.part.start, self._seed(step)
                )
        except Exception as error:  # Solvers may fail on such numbers.
            text = f"where could not be found: {error}"
        reasons = [text for text in self.world.everyones(text) if text]
        return (
            reasons[0] if reasons else "each sample's loss and each gradient is finite by itself"
        )

    def _advice(self) -> str:
        saved = (
            f"the last good checkpoint is {self.state.saved}" if self.state.saved else "none saved"
        )
        rate = self.config.optimiser.learning_rate
        return f"{saved}; a learning_rate below {rate:g} or a longer warmup may help"

    def _graphed(self, x0: Tensor, rates: list[float], received: list[int]) -> tuple[Metrics, int]:
        """Takes a step that may be a graph; raises after the update if it isn't finite.

        Only the first step, which may replace an old run, and a step that is logged, saved or the
        last one wait for their own numbers.
        """
        assert self.captured is not None
        late, self.unread = self.unread, self.captured(x0, self.state.step, rates)
        metrics = {} if late is None else self._read(late)
        self.state.step += 1
        signum = self._agreed(0, received)
        config, step = self.config, self.state.step
        if self.first or signum or is_logged(config, step) or is_saved(config, step):
            metrics, self.unread = self._read(self.unread), None
        self.first = False
        return metrics, signum

    def _read(self, reading: Reading) -> Metrics:
        values = reading.numbers()
        if reason := self._not_finite(values, reading.step):
            raise TrainingError(
                f"{reason}; the weights in memory have changed, and aren't saved; {self._advice()}"
            )
        return self._metrics(values)

    def _agreed(self, mean: float, received: list[int]) -> int:
        """Returns the signal that all processes know of, or 0."""
        if self.world.size == 1:
            return received[0] if received else 0
        if not mean:
            return 0
        return received[0] if received else signal.SIGTERM

    def _backward(self, objective: Objective, loss_of: Loss, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Clips the gradient of an objective; returns its loss and the norm before clipping.

        The mean of the losses over all processes is the loss of the batch.
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

    def _not_finite(self, values: list[float], step: int) -> str:
        """Returns which loss or gradient norm of a step isn't finite, "" if all are."""
        objectives = self.recipe.objectives
        owners = [""] if len(objectives) == 1 else [f" of {item.name}" for item in objectives]
        names = [f"{name}{owner}" for owner in owners for name in ("loss", "gradient norm")]
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                return f"train: the {name} is {value} at step {step + 1}"
        return ""

    def _metrics(self, values: list[float]) -> Metrics:
        """Returns the loss and the gradient norm of each objective, by name."""
        objectives = self.recipe.objectives
        losses, norms = values[::2], values[1::2]
        metrics: Metrics = {"loss": sum(losses), "grad_norm": math.hypot(*norms)}
        if len(objectives) > 1:
            for item, loss, norm in zip(objectives, losses, norms, strict=True):
                metrics |= {f"{item.name}_loss": loss, f"{item.name}_grad_norm": norm}
        if self.state.skipped:
            metrics["skipped"] = self.state.skipped
        return metrics
