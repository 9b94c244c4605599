"""Densities of mixed tables that need no gradient: what a model has to beat.

All give log-probabilities of rows in the units of the data, for tables whose columns are discrete
and have no missing values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.data.column import Column
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.kinds import PRIOR_COUNT
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.training.evaluation.sampling import EVALUATION_STREAM
from diffflow_ext.training.store.inputs import model_inputs

#: Deviations of the kernel, in those of the coordinates.
BANDWIDTHS = (0.1, 0.15, 0.2, 0.25, 0.3)


def encoding_of(dataset: Dataset) -> Encoding:
    assert dataset.encoding is not None
    return dataset.encoding


def noisy(encoding: Encoding, stored: Tensor, seed: int) -> Tensor:
    """Inputs of rows, with the noise of a seed."""
    return model_inputs(encoding, stored, NoiseKey(seed, stream=EVALUATION_STREAM))


class Baseline(ABC):
    """What is fitted to a table.

    Attributes:
        title: How its log-probabilities are called.
        exact: Whether they have no noise.
        about: What else a report says of it.
    """

    title: str
    exact = False

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.encoding = dataset, encoding_of(dataset)
        self.about: dict[str, Any] = {}

    @abstractmethod
    def log_prob(self, stored: Tensor, seed: int) -> Tensor:
        """Log-probabilities of rows, or bounds with the noise of a seed, float64, shape (n,)."""

    @abstractmethod
    def draw(self, n: int, seed: int) -> Tensor:
        """Samples as inputs of a model."""


class Independent(Baseline):
    """Columns of which none knows another: each value has its share of the training rows.

    Each value of a category, and each step between the smallest and the largest integer, counts
    half a row more, so that no value that training never saw has the probability 0.
    """

    title, exact = "shares of values", True

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        columns = enumerate(self.encoding.columns)
        self.shares = [_shares(column, dataset.train[:, i]) for i, column in columns]
        self.about = {"values": [len(shares) for shares in self.shares]}

    def log_prob(self, stored: Tensor, seed: int) -> Tensor:
        pairs = zip(self.shares, stored.long().unbind(1), strict=True)
        return torch.stack([shares[index].log() for shares, index in pairs]).sum(0)

    def draw(self, n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        parts = [torch.multinomial(p, n, True, generator=generator) for p in self.shares]
        return noisy(self.encoding, torch.stack(parts, 1).float(), seed)


def _shares(column: Column, stored: Tensor) -> Tensor:
    if not column.is_discrete or column.missing:
        raise ValueError(
            f"tables_mixed: expected integers and categories without missing values, got"
            f" {column.name!r} of kind {column.kind}; choose another table"
        )
    count = len(column.values) or 1 + round((column.high - column.low) / column.step)
    counts = torch.bincount(stored.long(), minlength=count).double() + PRIOR_COUNT
    return counts / counts.sum()


class _OfInputs(Baseline):
    """A density of scikit-learn of the inputs."""

    model: Any

    def log_prob(self, stored: Tensor, seed: int) -> Tensor:
        x = noisy(self.encoding, stored, seed)
        density = torch.from_numpy(self.model.score_samples(x.double().numpy()))
        return density + self.encoding.log_weight(stored, x)


class Gaussian(_OfInputs):
    """A Gaussian with full covariance: between categories a Gaussian copula."""

    title = "density of a Gaussian, as a bound"

    def __init__(self, dataset: Dataset) -> None:
        from sklearn.mixture import GaussianMixture

        super().__init__(dataset)
        x = noisy(self.encoding, dataset.train, 0).double().numpy()
        self.model = GaussianMixture(1, random_state=0).fit(x)

    def draw(self, n: int, seed: int) -> Tensor:
        self.model.random_state = seed
        return torch.from_numpy(self.model.sample(n)[0]).float()


class Kernels(_OfInputs):
    """Gaussian kernels on training rows, as wide as held-out rows like best."""

    title = "density of kernels, as a bound"

    def __init__(self, dataset: Dataset, rows: int | None, tried: int) -> None:
        super().__init__(dataset)
        train, valid = dataset.train[:rows], dataset.valid[:tried]
        x = noisy(self.encoding, train, 0).double().numpy()
        found = {h: self._nats(x, valid, h) for h in BANDWIDTHS}
        best = min(found, key=lambda h: found[h])
        self.model = _kernels(best).fit(x)
        self.about = {"rows": len(train), "bandwidth": best,
                      "validation_nats": {str(h): nats for h, nats in found.items()},
                      "validation_rows": len(valid)}  # fmt: skip

    def _nats(self, x: Any, valid: Tensor, bandwidth: float) -> float:
        self.model = _kernels(bandwidth).fit(x)
        return -float(self.log_prob(valid, 0).mean())

    def draw(self, n: int, seed: int) -> Tensor:
        return torch.from_numpy(self.model.sample(n, random_state=seed)).float()


def _kernels(bandwidth: float) -> Any:
    from sklearn.neighbors import KernelDensity

    # An error of a density that changes no digit that is shown, and takes less time.
    tolerance: Any = 1e-4
    return KernelDensity(bandwidth=bandwidth, rtol=tolerance)
