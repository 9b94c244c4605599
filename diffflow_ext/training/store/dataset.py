"""The record of a run's data, to recognise them and to write samples in their units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.data.column import KINDS, Column
from diffflow_ext.data.conditions import LABEL, Conditions
from diffflow_ext.data.dataset import given_labels, given_masks
from diffflow_ext.data.display import title_of
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.columns import listed, parse_names, plain_name
from diffflow_ext.data.masks import MASKS
from diffflow_ext.functional.checks import in_words
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
        return _with_condition(rows, data.condition)
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
            columns=data.columns or "",
            missing=data.missing or "refuse",
            condition=data.condition or (),
        )


def _with_condition(data: Dataset, condition: str | None) -> Dataset:
    """Returns a dataset in memory, which must have the condition, or labels for it."""
    if condition == LABEL and data.is_image and data.conditions is None:
        return given_labels(data)
    if condition == MASKS and data.conditions is None:
        return given_masks(data)
    wanted = parse_names(condition) if condition else []
    own = [] if data.conditions is None else [*data.conditions.names]
    if wanted != own:
        raise ValueError(
            f"train: condition={condition!r}: expected that of the dataset in memory, which has"
            f" {listed(own) or 'none'}; name the same here and in open_dataset(condition=)"
        )
    return data


def describe_data(data: Dataset) -> list[str]:
    """Returns lines of text: what was read, its kinds of columns, its split, what was left out."""
    sizes = [len(part) for part in (data.train, data.valid, data.test)]
    if data.encoding is None:
        what = f"images of {' x '.join(map(str, data.event_shape))}"
    else:
        names = data.encoding.names
        what = f"rows, {len(names)} column{'s' * (len(names) > 1)}: {listed(names)}"
    lines = [f"{title_of(data.name)}: {sum(sizes):,} {what}"]
    lines.append("split: {:,} training, {:,} validation, {:,} test".format(*sizes))
    if data.encoding is not None:
        lines += _kinds(data.encoding)
    if data.conditions is not None:
        lines.append(f"conditioned on: {data.conditions.describe()}")
    if data.notes:
        lines.append(f"left out: {'; '.join(data.notes)}")
    return lines


def _kinds(encoding: Encoding) -> list[str]:
    """Returns lines of the kinds of columns and of missing values."""
    parts = dict[str, list[str]]()
    for column in encoding.columns:
        more = ""
        if column.kind == "category":
            more = f" ({len(column.values)})"
        elif column.kind == "integer":
            more = f" (steps of {column.step:.6g})" if column.step != 1.0 else ""
        parts.setdefault(column.kind, []).append(column.name + more)
    kinds = [f"{KINDS[kind]}: {listed(names)}" for kind, names in parts.items()]
    lines = [
        "kinds: all continuous" if [*parts] == ["continuous"] else f"kinds: {'; '.join(kinds)}"
    ]
    gaps = [column.name for column in encoding.columns if column.missing]
    return lines + ([f"missing values in: {listed(gaps)}"] if gaps else [])


@dataclass(frozen=True)
class DatasetRecord:
    """The attributes of a :class:`diffflow_ext.data.Dataset` that a checkpoint stores."""

    name: str
    encoding: Encoding | None
    fingerprint: str
    event_shape: tuple[int, ...]
    conditions: Conditions | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetRecord:
        """Returns the record of a data set."""
        return cls(
            dataset.name, dataset.encoding, dataset.fingerprint, dataset.event_shape,
            dataset.conditions,
        )  # fmt: skip

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> DatasetRecord:
        """Returns the record from the plain data of `to_meta`, or of an earlier version."""
        columns = values["columns"]
        for name in ("name", "fingerprint"):
            if not isinstance(values[name], str):
                raise ValueError(f"expected a text as {name}, got {in_words(values[name])}")
        # Release 0.1 had only vectors.
        shape = tuple(values["event_shape"] if "event_shape" in values else [len(columns)])
        encoding = None
        if "mean" in values and not values.get("is_image", False):
            encoding = Encoding.linear(columns, values["mean"], values["std"])
        elif "mean" not in values and columns is not None:
            encoding = Encoding.from_meta(columns)
        if encoding is not None and shape != (encoding.dim,):
            raise ValueError(f"expected {encoding.dim} coordinates, got the shape {shape}")
        given = values.get("conditions")
        conditions = None if given is None else Conditions.from_meta(given)
        return cls(values["name"], encoding, values["fingerprint"], shape, conditions)

    @property
    def is_image(self) -> bool:
        """Whether the data are images."""
        return self.encoding is None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of columns; none for images."""
        return () if self.encoding is None else self.encoding.names

    @property
    def dim(self) -> int:
        """Components of a datum."""
        return math.prod(self.event_shape)

    def to_meta(self) -> dict[str, Any]:
        """Returns plain data for a manifest."""
        columns = None if self.encoding is None else self.encoding.to_meta()
        meta: dict[str, Any] = {
            "name": self.name, "columns": columns, "fingerprint": self.fingerprint,
            "event_shape": list(self.event_shape),
        }  # fmt: skip
        if self.conditions is not None:
            meta["conditions"] = self.conditions.to_meta()
        return meta

    def in_data_units(self, samples: Tensor) -> Tensor:
        """Returns samples of a model in the units of the data: float64, or uint8 of images.

        The values of columns of texts are indices (see `Encoding.decoded`).
        """
        return quantise(samples.cpu()) if self.encoding is None else self.encoding.decoded(samples)

    def require(self, dataset: Dataset) -> None:
        """Refuses a data set with other columns, shapes or values than those of this record."""
        other = DatasetRecord.of(dataset)
        if _names(other.conditions) != _names(self.conditions):
            raise ValueError(
                f"{dataset.name}: expected the condition of the run,"
                f" {listed(_names(self.conditions)) or 'none'}, got"
                f" {listed(_names(other.conditions)) or 'none'}; give the same condition"
            )
        # Of earlier versions names may have spaces at their ends.
        if other.columns != tuple(map(plain_name, self.columns)):
            raise ValueError(
                f"{dataset.name}: {_difference(self.columns, other.columns)}; give the data of the"
                " run, or train another one"
            )
        if other.event_shape != self.event_shape:
            raise ValueError(
                f"{dataset.name}: expected data of shape {self.event_shape}, those of the run, got"
                f" {other.event_shape}"
            )
        same = _close(self.encoding, other.encoding) and _alike(self.conditions, other.conditions)
        if other.fingerprint != self.fingerprint or not same:
            raise ValueError(
                f"{dataset.name}: its values have changed since the run began;"
                " give the data of the run, or train another one"
            )


def _close(one: Encoding | None, other: Encoding | None) -> bool:
    """Whether encodings are the same but for the rounding of numbers."""
    if one is None or other is None:
        return one is other
    pairs = zip(one.columns, other.columns, strict=True)
    return all(_same(_compared(a), _compared(b)) for a, b in pairs)


def _compared(column: Column) -> tuple[Any, ...]:
    """Returns what makes a column the same; earlier versions knew no range of training."""
    has_range = column.kind in ("continuous", "heavy", "positive")
    unlike = {"dtype"} | ({"low", "high"} if has_range else set())
    return tuple(value for name, value in asdict(column).items() if name not in unlike)


def _names(conditions: Conditions | None) -> tuple[str, ...]:
    return () if conditions is None else conditions.names


def _alike(one: Conditions | None, other: Conditions | None) -> bool:
    """Whether conditions of the same names are the same but for the rounding of numbers."""
    if one is None or other is None:
        return one is other
    same = one.num_classes == other.num_classes and one.classes == other.classes
    return same and _close(one.encoding, other.encoding)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, str) and isinstance(b, str):
        return plain_name(a) == plain_name(b)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return a == b


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
