"""What a run remembers of its data: to know them again, and to write samples in their units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.likelihood.images import quantise

from ..config.fields import Config


def open_data(config: Config) -> Dataset:
    """Returns the data that a configuration names.

    Raises:
        ValueError, TypeError, OSError: If they can't be read, or `limit` or `image_size` don't
            suit them.
    """
    data = config.data
    if not data.data:
        raise ValueError("train: expected DATA, a built-in set or a file (diffflow data list)")
    return open_dataset(
        data.data, seed=data.data_seed, limit=data.limit, image_size=data.image_size
    )


@dataclass(frozen=True)
class DatasetRecord:
    """The parts of a data set that a checkpoint keeps.

    Arguments:
        name: What the set is called.
        columns: Names of the components; none of images.
        mean: Mean that standardising took off, by component, in data units.
        std: Scale that standardising divided by, by component, in data units.
        log_abs_scale: Log of the product of `std`: nats from standardised to data units.
        fingerprint: Changes when the data change.
        event_shape: The shape of a datum.
        is_image: Whether the data are bytes, which training dequantises.
    """

    name: str
    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_abs_scale: float
    fingerprint: str
    event_shape: tuple[int, ...]
    is_image: bool = False

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
            event_shape=dataset.event_shape,
            is_image=dataset.is_image,
        )

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> DatasetRecord:
        """Returns the record that `to_meta` made plain."""
        # Release 0.1 knew vectors only.
        values = {"event_shape": [len(values["columns"])], **values}
        names = ("columns", "mean", "std", "event_shape")
        return cls(**{**values, **{name: tuple(values[name]) for name in names}})

    @property
    def dim(self) -> int:
        """Components of a datum."""
        return math.prod(self.event_shape)

    def to_meta(self) -> dict[str, Any]:
        """Returns plain data for a manifest."""
        return asdict(self)

    def in_data_units(self, samples: Tensor) -> Tensor:
        """Returns samples of a model in the units of the data: float64, or uint8 of images."""
        if self.is_image:
            return quantise(samples.cpu())
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
        if other.event_shape != self.event_shape:
            raise ValueError(
                f"{dataset.name}: expected data of shape {self.event_shape}, those of the run, got"
                f" {other.event_shape}"
            )
        scales = zip(self.mean + self.std, other.mean + other.std, strict=True)
        same = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in scales)
        if not same or other.fingerprint != self.fingerprint:
            raise ValueError(f"{dataset.name}: its values have changed since the run began")
