"""The record of a run's data, to recognise them and to write samples in their units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.data.formats.columns import KINDS, listed
from diffflow_ext.likelihood.images import quantise

from ..config.fields import Config
from ..config.files import from_record
from .checkpoint import Checkpoint, CheckpointError


def open_data(config: Config, rows: Any = None, *, warn: bool = True) -> Dataset:
    """Returns the data of a configuration; errors and warnings are those of `open_dataset`.

    `rows` are data in memory, for a configuration without a path: a dataset, or what
    `open_dataset` makes one of.
    """
    data = config.data
    if isinstance(rows, Dataset):
        return rows
    if not data.data and rows is None:
        raise ValueError("train: expected DATA, a built-in set or a file (diffflow data list)")
    with warnings.catch_warnings():
        if not warn:
            warnings.simplefilter("ignore", UserWarning)
        return open_dataset(
            data.data if rows is None else rows,
            seed=data.data_seed,
            limit=data.limit,
            image_size=data.image_size,
            key=data.key,
            drop_columns=data.drop_columns or (),
        )


def describe_data(data: Dataset) -> list[str]:
    """Returns lines of text: what was read, its kinds of columns, its split, what was left out."""
    sizes = [len(part) for part in (data.train, data.valid, data.test)]
    what = f"{data.dim} column{'s' * (data.dim > 1)}: {listed(data.columns)}"
    if data.is_image:
        what = f"images of {' x '.join(map(str, data.event_shape))}"
    lines = [f"{data.name}: {sum(sizes):,} {'' if data.is_image else 'rows, '}{what}"]
    lines.append("split: {:,} training, {:,} validation, {:,} test".format(*sizes))
    special = {kind: title for kind, title in KINDS.items() if kind in data.kinds}
    parts = []
    for kind, title in special.items():
        names = [name for name, own in zip(data.columns, data.kinds, strict=True) if own == kind]
        parts.append(f"{title}: {listed(names)}" if len(special) > 1 else f"all {title}")
    if parts:
        lines.append(f"kinds: {'; '.join(parts)}")
    if data.notes:
        lines.append(f"left out: {'; '.join(data.notes)}")
    return lines


@dataclass(frozen=True)
class DatasetRecord:
    """The attributes of a :class:`diffflow_ext.data.Dataset` that a checkpoint stores."""

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
        """Returns the record from the plain data of `to_meta`."""
        # Release 0.1 had only vectors.
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
        """Refuses a data set with other columns, shapes or values than those of this record."""
        other = DatasetRecord.of(dataset)
        if other.columns != self.columns:
            raise ValueError(
                f"{dataset.name}: {_difference(self.columns, other.columns)}; give the data of the"
                " run, or train another one"
            )
        if other.event_shape != self.event_shape:
            raise ValueError(
                f"{dataset.name}: expected data of shape {self.event_shape}, those of the run, got"
                f" {other.event_shape}"
            )
        scales = zip(self.mean + self.std, other.mean + other.std, strict=True)
        same = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in scales)
        if not same or other.fingerprint != self.fingerprint:
            raise ValueError(
                f"{dataset.name}: its values have changed since the run began;"
                " give the data of the run, or train another one"
            )


def recorded(checkpoint: Checkpoint) -> tuple[DatasetRecord, Config]:
    """Returns the record of a checkpoint's data, and its configuration.

    Raises:
        CheckpointError: If it's forged or of an unknown version.
    """
    try:
        record = DatasetRecord.from_meta(checkpoint.meta["data"])
        return record, from_record(checkpoint.meta["config"])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint of step {checkpoint.step}: expected a record of its data and its"
            f" configuration, got: {type(error).__name__}: {error}; train again"
        ) from error


def _difference(columns: Sequence[str], others: Sequence[str]) -> str:
    """Returns where columns differ from those of the run; there may be thousands of them."""
    if len(others) != len(columns):
        return f"expected the {len(columns)} columns of the run, got {len(others)}"
    pairs = enumerate(zip(columns, others, strict=True), start=1)
    number, (name, other) = next(item for item in pairs if item[1][0] != item[1][1])
    return f"expected column {number} to be {name!r} as in the run, got {other!r}"
