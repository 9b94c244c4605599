r"""Training, validation and test sets, and the order of training batches.

Rows of a table are stored as `data.encoding` says, which also makes them inputs of a model and
gives densities in the units of the table. Images are stored as bytes; see `likelihood.images`.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .conditions import LABEL, Conditions
from .display import dataset_facts, in_a_line, in_html, title_of
from .encoding import Encoding
from .formats.columns import column_doubts, column_kinds, listed, repeated_values
from .formats.labels import MAX_CLASSES
from .formats.reading import Refused
from .formats.tables import MIN_ROWS, Table, check_values
from .kinds import ALL, Chosen, choose_columns, filled
from .masks import MASKS, Masks

NUM_VALID_IMAGES = 5_000
MIN_IMAGES = 10
ROLES = ("train", "valid", "test")
SPLIT_KEY = 2110_07579  # of the permutation that splits every table
_FINGERPRINT_GRID = 4096.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of rows, or of images in bytes.

    Attributes:
        name: The name of the set, or the path of the data.
        train: Rows as `encoding` stores them, float32, shape (n, columns), which without discrete
            columns are the inputs of a model; of images uint8, shape (n, C, H, W).
        valid: Likewise, n_valid rows.
        test: Likewise, n_test rows.
        encoding: The columns of rows, and how they become inputs; None for images.
        fingerprint: SHA-256 of the three splits. Tables are rounded to 2^-12 before, because the
            last bits differ between processors.
        flip: Whether training may mirror images left to right (true for photographs, false for
            digits and letters).
        labels: The class of each row as int64, shape (rows,), under `train`, `valid` and `test`;
            None if the set has none, or they were not asked for. Not part of the fingerprint.
        classes: The names of the classes of images, in their order; none if they have no names.
        notes: What else a file has, and was left out.
        doubts: What may have been meant otherwise; `open_dataset` warns of it.
        conditions: What a model of the data is conditioned on; None for nothing.
        given: The values of these conditions under `train`, `valid` and `test`: classes, int64 of
            shape (rows,), or as `Conditions.encoding` stores them, float32; None for masks.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    encoding: Encoding | None
    fingerprint: str
    flip: bool = False
    labels: Mapping[str, Tensor] | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    conditions: Conditions | None = None
    given: Mapping[str, Tensor] | None = None
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return in_a_line("Dataset", {repr(self.name): "", **dataset_facts(self)})

    def _repr_html_(self) -> str:
        """Returns a table for notebooks."""
        title = f"Dataset {title_of(self.name)}"
        return in_html(title, dataset_facts(self), self.encoding, self.conditions)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one input: (d,) or (C, H, W)."""
        return tuple(self.train.shape[1:]) if self.encoding is None else (self.encoding.dim,)

    def given_of(self, role: str) -> Tensor | None:
        """Returns the values of the conditions in a split; None without conditions."""
        return None if self.given is None else self.given[role]

    @property
    def columns(self) -> list[str]:
        """The names of the columns of rows; none for images."""
        return [] if self.encoding is None else [*self.encoding.names]

    @property
    def dim(self) -> int:
        """The number d of values in one datum."""
        return math.prod(self.event_shape)

    @property
    def is_image(self) -> bool:
        """Whether the data are images: bytes that training dequantises."""
        return self.train.dtype == torch.uint8


def split_images(images: Mapping[str, Tensor], *, name: str, flip: bool = False) -> Dataset:
    """Splits images by a fixed permutation.

    With a test set, the last 5,000 of the permuted training images (or a tenth, if that is less)
    become the validation set, unless there is one. Without a test set a tenth becomes the test
    set, and another the validation set.

    Arguments:
        images: `train` and possibly `valid` and `test`: uint8, shape (n, C, H, W); possibly
            `train_labels` and so on: int64, shape (n,), one for each image.
        name: The dataset's name.
        flip: Whether training may mirror the images.

    Returns:
        The dataset, in bytes.

    Raises:
        ValueError: If there are fewer than 10 training images.
    """
    train = images["train"]
    if len(train) < MIN_IMAGES:
        raise ValueError(
            f"split_images: expected at least {MIN_IMAGES} images, {name!r} has {len(train)}; "
            "collect more: a density cannot be learned from so few"
        )
    order = torch.from_numpy(_permutation(len(train), SPLIT_KEY, 0))
    held_out, missing = len(train) // 10, [role for role in ROLES[1:] if role not in images]
    if "test" in images:
        held_out = min(NUM_VALID_IMAGES, held_out)
    sizes = [len(train) - len(missing) * held_out, *[held_out] * len(missing)]
    parts: dict[str, Any] = _cut(images, "", order, sizes)
    return Dataset(
        name=name,
        **parts,
        encoding=None,
        fingerprint=_image_fingerprint(list(parts.values())),
        flip=flip,
        labels=_cut(images, "_labels", order, sizes) if _has_labels(images) else None,
    )


def _has_labels(images: Mapping[str, Tensor]) -> bool:
    return all(f"{role}_labels" in images for role in ROLES if role in images)


def _cut(
    images: Mapping[str, Tensor], ending: str, order: Tensor, sizes: list[int]
) -> dict[str, Tensor]:
    given = {role: images[f"{role}{ending}"] for role in ROLES[1:] if role in images}
    cut = iter(images[f"train{ending}"][order].split(sizes))
    return {role: given[role] if role in given else next(cut) for role in ROLES}


def _image_fingerprint(parts: list[Tensor]) -> str:
    digest = hashlib.sha256(b"uint8")
    for part in parts:
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def limit_training(data: Dataset, limit: int) -> Dataset:
    """Returns a dataset with `limit` of the training rows and unchanged units and other splits.

    The rows are the first of a fixed permutation, so a larger limit contains those of a smaller.
    """
    if not 1 <= limit <= len(data.train):
        raise ValueError(
            f"open_dataset: expected a limit from 1 to the {len(data.train):,} training rows of "
            f"{data.name!r}, got {limit}; choose one in between, or None for all"
        )
    rows = torch.from_numpy(_permutation(len(data.train), SPLIT_KEY, 1)[:limit])
    train, labels = data.train[rows], data.labels
    if labels is not None:
        labels = {**labels, "train": labels["train"][rows]}
    parts = [train, data.valid, data.test]
    if data.is_image:
        fingerprint = _image_fingerprint(parts)
    else:
        fingerprint = _fingerprint(parts)
    limited = replace(data, train=train, labels=labels, fingerprint=fingerprint)
    if data.conditions is None or data.given is None:
        return limited
    return with_given(limited, data.conditions, {**data.given, "train": data.given["train"][rows]})


def given_labels(data: Dataset) -> Dataset:
    """Returns images with their classes as the condition.

    Raises:
        ValueError: If they have none, or some below 0.
    """
    labels = data.labels
    if labels is None:
        raise Refused(
            f"open_dataset: expected images with labels for condition={LABEL!r}, none are read "
            f"of {data.name!r}; leave it out, pass it to open_dataset too, or give a folder with "
            "one of each class, an .npz file with labels, or idx files with MNIST's names "
            "(train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-...)"
        )
    if len(data.classes) == 1:
        raise Refused(
            f"open_dataset: expected several classes, all images of {data.name!r} are of "
            f"{data.classes[0]!r}; put them into a folder for each class, or leave condition out"
        )
    low, high = (int(torch.cat([*labels.values()]).aminmax()[i]) for i in range(2))
    count = len(data.classes) or high + 1
    if low < 0 or high >= min(count, MAX_CLASSES):
        raise Refused(
            f"open_dataset: expected labels from 0 to {min(count, MAX_CLASSES) - 1}, "
            f"{data.name!r} has {low if low < 0 else high}; number the classes from 0"
        )
    return with_given(data, Conditions(num_classes=count, classes=data.classes), labels)


def given_masks(data: Dataset) -> Dataset:
    """Returns data whose condition is any part of them; see `data.masks`.

    Raises:
        ValueError: If a column has the name that stands for masks.
    """
    if MASKS in data.columns:
        raise Refused(
            f"open_dataset: expected no column {MASKS!r} in {data.name!r} with condition="
            f"{MASKS!r}, which stands for any part of a row; rename the column"
        )
    return replace(data, conditions=Conditions(masks=Masks.of(data.event_shape, data.encoding)))


def with_given(data: Dataset, conditions: Conditions, given: Mapping[str, Tensor]) -> Dataset:
    """Returns a dataset with conditions, and their values as `Dataset.given` has them."""
    own = _fingerprint([given[role].double() for role in ROLES])
    both = hashlib.sha256(f"{data.fingerprint}{own}".encode()).hexdigest()
    return replace(data, conditions=conditions, given=given, fingerprint=both)


def split_table(
    table: Table,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    condition: Sequence[str] = (),
) -> Dataset:
    """Splits a table 80/10/10 by a fixed permutation.

    Arguments:
        table: The table, at least 20 rows.
        name: The dataset's name; the table's source if None.
        columns: Kinds of columns by their names, and of all others under "*" (see `kinds`); None
            for continuous ones alone.
        condition: Columns that are no data, but what a model of them is conditioned on.

    Returns:
        The dataset; means, deviations and shares are those of its training split.

    Raises:
        ValueError: If a value is not finite, or a column cannot be of its kind or a condition.
    """
    count = len(table.values)
    if count < MIN_ROWS:
        raise ValueError(
            f"split_table: expected at least {MIN_ROWS} rows, {table.source!r} has {count}; an "
            "80/10/10 split needs two rows for the test, or it has no standard error"
        )
    check_values(table, gaps=True)
    order = _permutation(count, SPLIT_KEY, 0)
    held_out = count // 10
    train = order[: count - 2 * held_out]
    chosen = choose_columns(table, train, {ALL: "continuous"} if columns is None else columns)
    data_columns, given_columns = _parted(table, chosen, [*dict.fromkeys(condition)])

    def stored(positions: Sequence[int]) -> tuple[Table, Encoding, Sequence[Tensor]]:
        own = table.of_columns([chosen.positions[i] for i in positions])
        encoding = Encoding(tuple(chosen.columns[i] for i in positions))
        rows = encoding.stored(own, "split_table")[torch.from_numpy(order)]
        return own, encoding, rows.split([len(train), held_out, held_out])

    own, encoding, parts = stored(data_columns)
    data = table_dataset(name or table.source, parts, encoding)
    doubts = (*table.doubts, *_doubts(own, encoding))
    data = replace(data, notes=(*table.notes, *chosen.notes), doubts=doubts)
    if not given_columns:
        return data
    _, encoding, parts = stored(given_columns)
    return with_given(data, Conditions(encoding), dict(zip(ROLES, parts, strict=True)))


def _parted(table: Table, chosen: Chosen, condition: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the positions, among chosen columns, of data and of conditions."""
    names = [column.name for column in chosen.columns]
    unknown = [name for name in condition if name not in names]
    if unknown:
        left_out = f"; left out are {'; '.join(chosen.notes)}" if chosen.notes else ""
        raise Refused(
            f"open_dataset: expected condition among the columns of {table.source!r} that are "
            f"used, {listed(names)}, got {unknown[0]!r}{left_out}"
        )
    gaps = [c.name for c in chosen.columns if c.name in condition and c.missing]
    gaps = [n for n in gaps if chosen.columns[names.index(n)].kind != "category"]
    if gaps:
        raise Refused(
            f"open_dataset: expected no missing numbers in a condition, the column {gaps[0]!r} of "
            f"{table.source!r} has some; fill or delete such rows"
        )
    data = [i for i, name in enumerate(names) if name not in condition]
    if not data:
        raise Refused(
            f"open_dataset: expected a column of {table.source!r} beside condition, got "
            f"{listed(names)} there; a model needs data: name fewer"
        )
    return data, [names.index(name) for name in condition]


def _doubts(table: Table, encoding: Encoding) -> list[str]:
    """Returns what is doubtful in columns of numbers."""
    numbers = [i for i, column in enumerate(encoding.columns) if column.kind != "category"]
    if not numbers:
        return []
    values, names = filled(table.values[:, numbers]), [table.columns[i] for i in numbers]
    found, kinds = column_kinds(values), [encoding.columns[i].kind for i in numbers]
    # Integers have probabilities, which have a bound; tails under asinh or log squeeze nothing.
    own = ("integer", "heavy", "positive")
    found = [kind if kind in own else like for kind, like in zip(kinds, found, strict=True)]
    doubts = column_doubts(values, names, found)
    again = repeated_values(table.values[:, numbers], names, found)
    # One warning of a value is enough.
    return doubts if any("far from all others" in doubt for doubt in doubts) else doubts + again


def table_dataset(name: str, parts: Sequence[Tensor], encoding: Encoding) -> Dataset:
    """Returns the dataset of training, validation and test rows as an encoding stores them."""
    train, valid, test = parts
    return Dataset(
        name=name, train=train, valid=valid, test=test, encoding=encoding,
        fingerprint=_fingerprint(parts),
    )  # fmt: skip


def _fingerprint(parts: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(tuple(part.shape)).encode())
        # Missing values become the smallest integer, which no other value is.
        cells = torch.nan_to_num(part.double() * _FINGERPRINT_GRID, nan=float(-(2**63))).round()
        digest.update(cells.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # NumPy guarantees raw words for all versions, but not Generator.permutation.
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Returns the rows of the batch of a training step.

    It is a pure function, so resuming needs no saved state. Batches are consecutive slices of an
    endless sequence of keyed permutations of the n rows: every epoch has each row once, and a
    batch may contain rows of two epochs.

    Arguments:
        n: The number of rows, at least 1.
        batch_size: Rows a step, at least 1; may exceed n.
        seed: The key of the order, in [0, 2^64).
        step: The training step, >= 0.

    Returns:
        Row numbers, int64, shape (batch_size,), on the CPU.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is out of its range.
    """
    n, batch_size = operator.index(n), operator.index(batch_size)
    seed, step = operator.index(seed), operator.index(step)
    if n < 1 or batch_size < 1 or step < 0 or not 0 <= seed < 1 << 64:
        raise ValueError(
            "batch_indices: expected n >= 1, batch_size >= 1, step >= 0 and 0 <= seed < 2^64, got "
            f"n={n}, batch_size={batch_size}, step={step}, seed={seed}; mend the one out of range"
        )
    start, rows = step * batch_size, np.empty(batch_size, np.int64)
    filled = 0
    while filled < batch_size:
        epoch, offset = divmod(start + filled, n)
        piece = _permutation(n, seed, epoch)[offset : offset + batch_size - filled]
        rows[filled : filled + len(piece)] = piece
        filled += len(piece)
    return torch.from_numpy(rows)
