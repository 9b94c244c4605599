"""The classifier two-sample test: how often a classifier tells samples from data."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from .points import Points, chunks, distances, pair


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

    Distances are Euclidean: give columns of like scale. Rows at exactly the distance of the last
    neighbour share its vote, and a drawn vote counts one half, so that neither repeated rows nor
    the order of the rows favours a sample. Without such ties it is the score of scikit-learn's
    KNeighborsClassifier, which decides ties by the order of the rows. Samples of one size are
    halved by one permutation, so that row i of one, made from row i of the other, falls into the
    same half.

    Arguments:
        x: The first sample, with shape :math:`(n, d)`.
        y: The second, with shape :math:`(m, d)`. Exchanging both changes nothing.
        seed: The seed of the permutation, >= 0.
        neighbours: The number of neighbours, at least 1; each sample needs twice as many rows
            and two.

    Returns:
        Accuracy, standard error and the number of rows held out. Computed in float64, in time
        O(n^2 d) and bounded memory.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes don't fit, values aren't finite, a number is out of range, or
            there are too few rows.

    References:
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017)
        | https://arxiv.org/abs/1610.06545
    """
    k = operator.index(neighbours)
    if k < 1 or operator.index(seed) < 0:
        raise ValueError(
            f"c2st: expected neighbours >= 1 and seed >= 0, got neighbours={k}, seed={seed}; "
            "mend the one out of range"
        )
    a, b = pair("c2st", x, y, 2 * k + 2)
    n = min(len(a), len(b))
    (train_a, test_a), (train_b, test_b) = (_halves(rows, n, seed) for rows in (a, b))
    right_a = _votes(test_a, train_a, train_b, k)
    right_b = _votes(test_b, train_b, train_a, k)
    held_out = len(right_a) + len(right_b)
    accuracy = float(right_a.sum() + right_b.sum()) / held_out
    return TwoSampleTest(accuracy, math.sqrt(accuracy * (1.0 - accuracy) / held_out), held_out)


def _halves(x: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two halves of n rows drawn from x; the second has one more where n is odd."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
    rows = x[order.to(x.device)]
    return rows[: n // 2], rows[n // 2 :]


def _votes(rows: Tensor, own: Tensor, other: Tensor, k: int) -> Tensor:
    """1 where most of the k nearest are the row's own sample's, one half where votes are equal."""
    train = torch.cat([own, other])
    votes = [
        _own_sample_wins(distances(part, train), len(own), k)
        for _, part in chunks(rows, len(train))
    ]
    return torch.cat(votes)


def _own_sample_wins(d: Tensor, num_own: int, k: int) -> Tensor:
    last = d.topk(k, dim=1, largest=False).values[:, -1:]
    closer, tied = d < last, d == last
    # Whole numbers throughout, so that equal votes are found: all counts are times `shared`.
    shared, places = tied.sum(dim=1), k - closer.sum(dim=1)
    votes = closer[:, :num_own].sum(dim=1) * shared + tied[:, :num_own].sum(dim=1) * places
    return 0.5 * (1.0 + torch.sign(2 * votes - k * shared)).double()
