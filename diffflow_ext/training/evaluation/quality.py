"""Distances of samples from held-out data, with their floors.

The floor is the same distance for as many training data instead of samples, averaged over up to
four draws, because a single one may be several times the mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.likelihood.images import quantise
from diffflow_ext.metrics.distances import energy_distance, sliced_wasserstein
from diffflow_ext.metrics.features.digits import DigitExtractor
from diffflow_ext.metrics.floor import Measure, with_floor
from diffflow_ext.metrics.frechet import frechet_distance
from diffflow_ext.metrics.manifolds import precision_recall
from diffflow_ext.metrics.two_sample import c2st

from ..store.inputs import model_inputs
from .sampling import EVALUATION_STREAM

MIN_SAMPLES = 50
FLOOR_DRAWS = 4


def common_count(n: int, dataset: Dataset) -> int:
    """Returns the common number of samples, test and training data; 0 if too few."""
    if n < 2:
        raise ValueError(f"evaluate: n={n}: expected at least 2, which a standard error needs")
    count = min(n, len(dataset.train), len(dataset.test))
    return count if count >= MIN_SAMPLES else 0


def warn_of_few(n: int, dataset: Dataset) -> None:
    """Warns that there are too few samples or data for distances."""
    warnings.warn(
        f"evaluate: distances are left out: they need at least {MIN_SAMPLES} samples and as many "
        f"data, got n={n}, {len(dataset.train)} training and {len(dataset.test)} test data",
        stacklevel=3,
    )


def vector_quality(samples: Tensor, dataset: Dataset) -> dict[str, float | None]:
    """Returns distances of vectors and a two-sample test, with floors and ratios.

    Samples are in the units of training, no more than there are training or test data.
    """
    key = NoiseKey(0, stream=EVALUATION_STREAM)
    real, offset = _test_and_training(dataset, len(samples)), 0
    parts = [samples]
    for rows in real:
        # Their noise must not be the same.
        parts.append(model_inputs(dataset.encoding, rows, key, offset))
        offset += len(rows)
    return {
        **_beside_floor("energy_distance", energy_distance, parts, ratio=True),
        **_beside_floor("sliced_wasserstein", sliced_wasserstein, parts, ratio=True),
        **_beside_floor("c2st", lambda x, y: c2st(x, y).accuracy, parts),
    }


def image_quality(
    samples: Tensor, dataset: Dataset, extractor: DigitExtractor | None
) -> dict[str, Any]:
    """Returns the distance of pixels and, with an extractor, distances of its features.

    Samples are as in :func:`vector_quality`.
    """
    images = (quantise(samples), *_test_and_training(dataset, len(samples)))
    pixels = [part.flatten(1).float() / 127.5 - 1.0 for part in images]
    result: dict[str, Any] = _beside_floor(
        "sliced_wasserstein", sliced_wasserstein, pixels, ratio=True
    )
    if extractor is None:
        return result
    features = [extractor.features(part) for part in images]
    return {
        **result,
        "fd_label": extractor.label(len(samples)),
        **_beside_floor("fd", frechet_distance, features, ratio=True),
        **_beside_floor("", precision_recall, features),
    }


def _test_and_training(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    return dataset.test[:count], dataset.train[: FLOOR_DRAWS * count]


def _beside_floor(
    name: str, measure: Measure, parts: Sequence[Tensor], *, ratio: bool = False
) -> dict[str, float | None]:
    """Returns NAME, NAME_floor and perhaps NAME_ratio of each number of a measure.

    The floor is a mean over draws of real data, and NAME_floor_spread the standard deviation of
    the draws, None for a single one.
    `parts` are samples, test data and training data; "" stands for the measure's own names.
    """
    measured = with_floor(measure, *parts, draws=FLOOR_DRAWS)
    result: dict[str, float | None] = {}
    for number, value in measured.value.items():
        label, floor = name or number, measured.floor[number]
        spread = measured.spread[number]
        result |= {label: value, f"{label}_floor": floor}
        result[f"{label}_floor_spread"] = None if math.isnan(spread) else spread
        if ratio:
            result[f"{label}_ratio"] = value / floor if floor > 0 else None
    return result
