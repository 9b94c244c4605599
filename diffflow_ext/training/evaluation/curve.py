"""The training curve of a run as numbers, which pictures draw and reports tell in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from diffflow_ext.likelihood.images import bits_per_dim

from ..config.fields import DiffFlowConfig
from ..config.schedules import progressive_grid
from ..recipes.base import NATS
from .loaded_run import LoadedRun

#: Far beyond all numbers of trainings, and far from those whose square overflows.
MOST = 1e30


@dataclass(frozen=True)
class TrainingCurve:
    """The bound of each logged step, or its loss, and what stands beside it.

    Arguments:
        steps: Completed training steps, the first one being 1.
        values: A number for each.
        label: What it is, with its unit.
        gaussian: -log p of the test data under a Gaussian of the training data; None where it's
            unknown or has another unit.
        is_given: Whether the run has conditions, of which the Gaussian knows nothing.
        counts: The numbers N of steps of a path, each with the first training step that has it;
            none where there are fewer than two.
    """

    steps: Sequence[int]
    values: Sequence[float]
    label: str
    gaussian: float | None
    is_given: bool
    counts: Sequence[tuple[int, int]]


def training_curve(run: LoadedRun, evaluation: Mapping[str, Any] | None) -> TrainingCurve | None:
    """Returns the curve of a run; None if it has no log.

    Arguments:
        run: The run.
        evaluation: The numbers of `evaluate`; None if there are none.
    """
    curve, record = run.recipe.curve, run.record
    lines = [line for line in run.history() if is_moderate(line.get(curve.name))]
    lines = [line for line in lines if is_moderate(line["step"])]
    if not lines:
        return None
    steps, values = [line["step"] for line in lines], [line[curve.name] for line in lines]
    label, gaussian = curve.label, None
    if curve.unit == NATS and record.is_image:
        values = [bits_per_dim(value, record.dim) for value in values]
        label = f"{curve.what} [bits per dimension]"
    elif curve.unit == NATS:
        gaussian = _gaussian(evaluation)
    is_given = record.conditions is not None
    return TrainingCurve(steps, values, label, gaussian, is_given, _counts(run, steps[-1]))


def _gaussian(evaluation: Mapping[str, Any] | None) -> float | None:
    found = None if evaluation is None else evaluation.get("gaussian_nll")
    return float(found) if is_moderate(found) else None


def is_moderate(value: object) -> TypeGuard[float]:
    """Whether a value of a file is a number that can be drawn; logs may be damaged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -MOST < value < MOST


def _counts(run: LoadedRun, last: int) -> list[tuple[int, int]]:
    """Returns the numbers N up to a step, each with its first one."""
    if not isinstance(run.config, DiffFlowConfig):
        return []
    # The configuration counts steps from 0, the log from 1.
    stages = [(first + 1, n) for first, n in progressive_grid(run.config).stages if first < last]
    counts = [after for before, after in pairwise([(0, 0), *stages]) if before[1] != after[1]]
    return counts if len(counts) > 1 else []
