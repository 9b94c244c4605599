"""How far samples are from held-out data, each number beside its floor.

The floor is what as many training data reach in place of the samples, in the mean of up to four
draws, since one may be several times the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.likelihood.images import quantise
from diffflow_ext.metrics.distances import energy_distance, sliced_wasserstein
from diffflow_ext.metrics.features.extractor import Extractor
from diffflow_ext.metrics.floor import with_floor
from diffflow_ext.metrics.frechet import frechet_distance
from diffflow_ext.metrics.manifolds import precision_recall
from diffflow_ext.metrics.two_sample import c2st

__all__ = ["MIN_SAMPLES", "common_count", "image_quality", "vector_quality"]


MIN_SAMPLES = 50


FLOOR_DRAWS = 4


Measure = Callable[[Tensor, Tensor], Any]


def common_count(n: int, dataset: Dataset) -> int:
    """Returns how many samples, test data and training data are compared.

    Where they are too few for distances, warns and returns 0.
    """
    count = min(n, len(dataset.train), len(dataset.test))
    if count >= MIN_SAMPLES:
        return count
    warnings.warn(
        f"evaluate: distances are left out: they need at least {MIN_SAMPLES} samples and as many "
        f"data, got n={n}, {len(dataset.train)} training and {len(dataset.test)} test data",
        stacklevel=2,
    )
    return 0


def vector_quality(samples: Tensor, dataset: Dataset) -> dict[str, float | None]:
    """Returns distances of vectors, a two-sample test, their floors and ratios.

    Arguments:
        samples: In the units of training, no more than there are training or test data.
        dataset: The data.
    """
    measures: dict[str, Measure] = {
        "energy_distance": energy_distance,
        "sliced_wasserstein": sliced_wasserstein,
        "c2st": _told_apart,
    }
    rows = _Rows(samples, *_real(dataset, len(samples)))
    return rows.measured(measures, ("energy_distance", "sliced_wasserstein"))


def image_quality(
    samples: Tensor, dataset: Dataset, extractor: Extractor | None
) -> dict[str, Any]:
    """Returns the distance of pixels and, with an extractor, what its features say.

    Arguments:
        samples: In the units of training, no more than there are training or test data.
        dataset: The data.
        extractor: The features.
    """
    images = (quantise(samples), *_real(dataset, len(samples)))
    pixels = _Rows(*(part.flatten(1).float() / 127.5 - 1.0 for part in images))
    name = "sliced_wasserstein"
    result: dict[str, Any] = pixels.measured({name: sliced_wasserstein}, (name,))
    if extractor is None:
        return result
    features = _Rows(*map(extractor.features, images))
    measures: dict[str, Measure] = {
        "fd": frechet_distance,
        "": precision_recall,
    }
    return {
        **result,
        "fd_label": extractor.label(len(samples)),
        **features.measured(measures, ("fd",)),
    }


class _Rows:
    """Samples, held-out data, and further data for the floor, as rows."""

    def __init__(self, samples: Tensor, reference: Tensor, real: Tensor) -> None:
        self.parts = samples, reference, real

    def measured(
        self, measures: dict[str, Measure], distances: tuple[str, ...]
    ) -> dict[str, float | None]:
        """Returns NAME and NAME_floor of each number, and NAME_ratio of distances."""
        result: dict[str, float | None] = {}
        for name, measure in measures.items():
            found = with_floor(measure, *self.parts, draws=FLOOR_DRAWS)
            for key, value in found.value.items():
                label, floor = name or key, found.floor[key]
                result |= {label: value, f"{label}_floor": floor}
                if label in distances:
                    result[f"{label}_ratio"] = value / floor if floor > 0 else None
        return result


def _real(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    return dataset.test[:count], dataset.train[: FLOOR_DRAWS * count]


def _told_apart(x: Tensor, y: Tensor) -> float:
    return c2st(x, y).accuracy
