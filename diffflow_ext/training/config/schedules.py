"""What changes from step to step: the time grid, the number of its steps, the learning rate."""

from __future__ import annotations

import math

from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.processes.grids import ProgressiveGrid, TimeGrid

from .fields import TrainConfig
from .rules import parse_progressive

__all__ = ["learning_rate_at", "progressive_grid", "sampling_grid", "training_grid", "work_done"]


def training_grid(config: TrainConfig, step: int) -> TimeGrid:
    """Returns the time grid of one training step; a random one depends on seed and step alone."""
    num_steps = progressive_grid(config)(step)
    if config.grid == "power":
        return sampling_grid(config, num_steps)
    key = NoiseKey(config.seed, stream=step)
    return TimeGrid.stratified(num_steps, config.t_end, config.t_start, config.power, key=key)


def sampling_grid(config: TrainConfig, num_steps: int | None = None) -> TimeGrid:
    """Returns the fixed time grid for samples and bounds, with the configured N or another."""
    count = config.num_steps if num_steps is None else num_steps
    return TimeGrid.power(count, config.t_end, config.t_start, config.power)


def progressive_grid(config: TrainConfig) -> ProgressiveGrid:
    """Returns how many steps N the trajectories of each training step have.

    "auto" starts coarse, N/6 and then N/3, with the switches after 20 and 50 % of the work: at
    equal work that reached lower bounds than N throughout.
    """
    stages = parse_progressive(config.progressive)
    if config.progressive == "auto":
        n = config.num_steps
        marks = {0: max(1, n // 6), round(0.46 * config.steps): max(1, n // 3)}
        marks[round(0.81 * config.steps)] = n
        stages = tuple(marks.items())
    return ProgressiveGrid(stages or ((0, config.num_steps),))


def work_done(config: TrainConfig, step: int) -> float:
    """Returns the part of a run's network evaluations that precede a training step."""
    if config.model != "diffflow":  # Every step of the others costs the same.
        return step / config.steps
    stages = progressive_grid(config).stages
    ends = [first for first, _ in stages[1:]] + [config.steps]

    def evaluations(until: int) -> int:
        return sum(
            count * max(0, min(until, end) - first)
            for (first, count), end in zip(stages, ends, strict=True)
        )

    return evaluations(step) / max(evaluations(config.steps), 1)


def learning_rate_at(config: TrainConfig, step: int, peak: float) -> float:
    """Returns the learning rate of a step, counted from 0, where `peak` is the highest."""
    done = work_done(config, step)
    factors = {
        "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
        "step": 0.5 ** sum(done >= mark for mark in (1 / 2, 3 / 4, 7 / 8)),
        "constant": 1.0,
    }
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    return peak * factors[config.schedule] * rise
