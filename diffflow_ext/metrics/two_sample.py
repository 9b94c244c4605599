"""The classifier two-sample test: how often a classifier tells samples from data."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .points import Points, pair


class TwoSampleTest(NamedTuple):
    """The outcome of `c2st`.

    Attributes:
        accuracy: The part of the held-out rows that the classifier put into the right sample.
        error: Its binomial standard error.
        n: The number of held-out rows, half of each sample.
    """

    accuracy: float
    error: float
    n: int


def c2st(x: Points, y: Points, *, seed: int = 0, neighbours: int = 15) -> TwoSampleTest:
    r"""Returns how well a nearest-neighbour classifier tells two samples apart.

    Of each sample as many rows are drawn as the smaller one has, and halved. A row of the second
    halves goes to the sample that most of its `neighbours` nearest rows of the first halves
    belong to. The accuracy :math:`a` is .5 where the samples can't be told apart and 1 where they
    don't overlap. It falls below .5 where rows of one are near copies of the other's: most with
    one neighbour.
    With :math:`n` rows held out its standard error is :math:`\sqrt{a (1 - a) / n}`, so that
    :math:`(a - .5) \cdot 2 \sqrt n` is about standard normal for two samples of one distribution.

    Distances are Euclidean: give columns of like scale. The classifier is scikit-learn's
    KNeighborsClassifier, which decides ties of distance by the order of the rows of the first
    halves: these are shuffled together, so that ties favour neither sample. Samples of one size
    are halved by one permutation, so that row i of one, made from row i of the other, falls into
    the same half.

    Arguments:
        x: The first sample, with shape :math:`(n, d)`.
        y: The second, with shape :math:`(m, d)`. Exchanging both changes only how ties fall.
        seed: The seed of the permutations, >= 0.
        neighbours: The number of neighbours, odd; each sample needs twice as many rows and two.

    Returns:
        Accuracy, standard error and the number of rows held out. Computed in float64 on the CPU,
        in time at most O(n^2 d) and memory O(n d).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes don't fit, values aren't finite, a number is out of range, or
            there are too few rows.

    References:
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017)
        | https://arxiv.org/abs/1610.06545
    """
    from sklearn.neighbors import KNeighborsClassifier

    k = operator.index(neighbours)
    if k < 1 or k % 2 == 0 or operator.index(seed) < 0:
        raise ValueError(
            f"c2st: expected an odd number of neighbours >= 1 and seed >= 0, got neighbours={k}, "
            f"seed={seed}; take an odd number, so that no vote is drawn, and a seed from 0"
        )
    a, b = (rows.cpu() for rows in pair("c2st", x, y, 2 * k + 2))
    n = min(len(a), len(b))
    halves = zip(*(_halves(rows, n, seed) for rows in (a, b)), strict=True)
    # Far from the origin scikit-learn's |a|^2 + |b|^2 - 2ab would lose digits of distances.
    train, test = ((torch.cat(half) - a[0]).numpy() for half in halves)
    order = np.random.default_rng(seed).permutation(len(train))
    model = KNeighborsClassifier(k).fit(train[order], order < n // 2)
    accuracy = float(model.score(test, np.arange(len(test)) < len(test) // 2))
    return TwoSampleTest(accuracy, math.sqrt(accuracy * (1.0 - accuracy) / len(test)), len(test))


def _halves(x: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two halves of n rows drawn from x; the second has one more where n is odd."""
    rows = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]
    return rows[: n // 2], rows[n // 2 :]
