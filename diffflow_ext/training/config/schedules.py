"""The time grid, the number of its steps and the learning rate of a training step."""

from __future__ import annotations

import math

from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.processes.grids import ProgressiveGrid, TimeGrid

from .fields import Config, DiffFlowConfig
from .rules import parse_progressive


def training_grid(config: DiffFlowConfig, step: int) -> TimeGrid:
    """Returns the time grid of a training step; random grids depend only on seed and step."""
    num_steps = progressive_grid(config)(step)
    if config.model.grid == "power":
        return sampling_grid(config, num_steps)
    key = NoiseKey(config.run.seed, stream=step)
    return TimeGrid.stratified(
        num_steps, config.model.t_end, config.model.t_start, config.model.power, key=key
    )


def sampling_grid(config: DiffFlowConfig, num_steps: int | None = None) -> TimeGrid:
    """Returns the fixed time grid for samples and bounds, with the configured N or another."""
    count = config.model.num_steps if num_steps is None else num_steps
    return TimeGrid.power(count, config.model.t_end, config.model.t_start, config.model.power)


def progressive_grid(config: DiffFlowConfig) -> ProgressiveGrid:
    """Returns the number of grid steps N at each training step.

    "auto" starts with N/6 and then N/3 until 20 and 50 % of the work, which at equal work reached
    lower bounds than N throughout.
    """
    stages = parse_progressive(config.model.progressive)
    if config.model.progressive == "auto":
        n = config.model.num_steps
        marks = {0: max(1, n // 6), round(0.46 * config.optimiser.steps): max(1, n // 3)}
        marks[round(0.81 * config.optimiser.steps)] = n
        stages = tuple(marks.items())
    return ProgressiveGrid(stages or ((0, config.model.num_steps),))


def is_logged(config: Config, steps: int) -> bool:
    """Says whether a line is logged after so many steps."""
    return steps % config.run.log_every == 0 or steps == config.optimiser.steps


def is_saved(config: Config, steps: int) -> bool:
    """Says whether a checkpoint is saved after so many steps."""
    return steps % config.run.save_every == 0 or steps == config.optimiser.steps


def work_done(config: Config, step: int) -> float:
    """Returns the fraction of a run's network evaluations before a training step."""
    if not isinstance(config, DiffFlowConfig):  # Every step of the others costs the same.
        return step / config.optimiser.steps
    stages = progressive_grid(config).stages
    ends = [first for first, _ in stages[1:]] + [config.optimiser.steps]

    def evaluations(until: int) -> int:
        return sum(
            count * max(0, min(until, end) - first)
            for (first, count), end in zip(stages, ends, strict=True)
        )

    return evaluations(step) / max(evaluations(config.optimiser.steps), 1)


def learning_rate_at(config: Config, step: int, peak: float) -> float:
    """Returns the learning rate of a step, counted from 0; `peak` is the highest."""
    done = work_done(config, step)
    factors = {
        "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
        "step": 0.5 ** sum(done >= mark for mark in (1 / 2, 3 / 4, 7 / 8)),
        "constant": 1.0,
    }
    rise = min(1.0, (step + 1) / max(config.optimiser.warmup, 1))
    return peak * factors[config.optimiser.schedule] * rise
