"""Precision, recall, density and coverage: quality and variety of samples, told apart."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor

from .points import Points, chunks, distances, pair


class PrecisionRecall(NamedTuple):
    """The outcome of `precision_recall`.

    Attributes:
        precision: The part of the samples that lie among the data.
        recall: The part of the data that lie among the samples.
        density: How many balls of the data hold a sample, over their mean number k; may pass 1.
        coverage: The part of the data with a sample in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(x: Points, y: Points, k: int = 5) -> PrecisionRecall:
    r"""Returns precision, recall, density and coverage of samples with regard to data.

    With :math:`B(y_j)` the closed ball around :math:`y_j` that reaches to its k-th nearest
    neighbour among the other rows of :math:`y`, and likewise for :math:`x`,

    .. math::
        \text{precision} &= \tfrac1n \#\{i : x_i \in \textstyle\bigcup_j B(y_j)\}, \qquad
        \text{recall} = \tfrac1m \#\{j : y_j \in \textstyle\bigcup_i B(x_i)\} \\
        \text{density} &= \tfrac1{k n} \#\{(i, j) : x_i \in B(y_j)\}, \qquad
        \text{coverage} = \tfrac1m \#\{j : B(y_j) \text{ holds some } x_i\}

    Precision and density fall with bad samples, recall and coverage with lacking variety:
    samples that repeat a few data have a precision near 1 and a recall near 0. All four depend
    on n, m and k, coverage most: compare equal numbers. Two samples of one distribution with
    n = m have a density near 1 and a coverage near :math:`1 - 2^{-k}`, and not all reach 1.

    Arguments:
        x: The samples, with shape :math:`(n, d)`, n > k.
        y: The data, with shape :math:`(m, d)`, m > k. Columns should have like scales.
        k: Which neighbour a ball reaches to, at least 1.

    Returns:
        The four numbers. Exchanging x and y exchanges precision and recall. Distances are in
        float64, in time O((n + m)^2 d) and bounded memory.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes don't fit, values aren't finite, or a sample has too few rows.

    References:
        | Improved Precision and Recall Metric for Assessing Generative Models
          (Kynkäänniemi et al., 2019), https://arxiv.org/abs/1904.06991
        | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020)
        | https://arxiv.org/abs/2002.09797
    """
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"precision_recall: expected k >= 1, got {k}; 3 and 5 are usual")
    a, b = pair("precision_recall", x, y, k + 1)
    radii_a, radii_b = _radii(a, k), _radii(b, k)
    among_data, pairs = 0, 0
    recalled = torch.zeros(len(b), dtype=torch.bool, device=a.device)
    covered = torch.zeros_like(recalled)
    for start, rows in chunks(a, len(b)):
        d = distances(rows, b)
        inside = d <= radii_b
        among_data += int(inside.any(dim=1).sum())
        pairs += int(inside.sum())
        covered |= inside.any(dim=0)
        recalled |= (d <= radii_a[start : start + len(rows), None]).any(dim=0)
    return PrecisionRecall(
        precision=among_data / len(a),
        recall=int(recalled.sum()) / len(b),
        density=pairs / (k * len(a)),
        coverage=int(covered.sum()) / len(b),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other row."""
    radii = []
    for start, rows in chunks(x, len(x)):
        d = distances(rows, x)
        d.diagonal(start).fill_(torch.inf)
        radii.append(d.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)
