"""What a run remembers of its data: to know them again, and to write samples in their units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset

__all__ = ["DatasetRecord"]


@dataclass(frozen=True)
class DatasetRecord:
    """The parts of a data set that a checkpoint keeps.

    Arguments:
        name: What the set is called.
        columns: Names of the components.
        mean: Mean that standardising took off, by component, in data units.
        std: Scale that standardising divided by, by component, in data units.
        log_abs_scale: Log of the product of `std`: nats from standardised to data units.
        fingerprint: Changes when the data change.
    """

    name: str
    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_abs_scale: float
    fingerprint: str

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetRecord:
        """Returns the record of a data set."""
        return cls(
            name=dataset.name,
            columns=tuple(dataset.columns),
            mean=tuple(torch.as_tensor(dataset.mean).double().tolist()),
            std=tuple(torch.as_tensor(dataset.std).double().tolist()),
            log_abs_scale=float(dataset.log_abs_scale),
            fingerprint=dataset.fingerprint,
        )

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> DatasetRecord:
        """Returns the record that `to_meta` made plain."""
        sequences = {name: tuple(values[name]) for name in ("columns", "mean", "std")}
        return cls(**{**values, **sequences})

    @property
    def dim(self) -> int:
        """Components of a data vector."""
        return len(self.columns)

    def to_meta(self) -> dict[str, Any]:
        """Returns plain data for a manifest."""
        return asdict(self)

    def in_data_units(self, samples: Tensor) -> Tensor:
        """Returns standardised samples of shape (n, dim) in the units of the data, in float64."""
        std = torch.tensor(self.std, dtype=torch.float64)
        return samples.cpu().double() * std + torch.tensor(self.mean, dtype=torch.float64)

    def require(self, dataset: Dataset) -> None:
        """Checks that a data set is the one of this record.

        Raises:
            ValueError: If it has other columns or other values.
        """
        other = DatasetRecord.of(dataset)
        if other.columns != self.columns:
            raise ValueError(
                f"{dataset.name}: expected the columns {', '.join(self.columns)} of the run,"
                f" got {', '.join(other.columns)}"
            )
        scales = zip(self.mean + self.std, other.mean + other.std, strict=True)
        same = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in scales)
        if not same or other.fingerprint != self.fingerprint:
            raise ValueError(f"{dataset.name}: its values have changed since the run began")
