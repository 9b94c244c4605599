r"""Training, validation and test sets, and the order of training batches.

A table's columns are standardised by the training split's mean :math:`m` and deviation
:math:`\sigma`. With :math:`x = (y - m) / \sigma` the negative log-likelihood
changes by a constant,

.. math:: -\log p_Y(y) = -\log p_X(x) + \sum_j \log \sigma_j

in nats, `Dataset.log_abs_scale`. Images are stored as bytes. The input of a model for byte `k` is
:math:`x = 2 (k + u) / 256 - 1` with uniform `u`, so :math:`y = k + u` are the original units and
:math:`m = \sigma = 128` for every pixel. The same formula gives the NLL in these units, and with
d pixels :math:`-\log p_Y / (d \ln 2)` is the number of bits per dimension.
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

from .formats.columns import column_doubts, column_kinds, how_to_leave_out, listed
from .formats.tables import MIN_ROWS, Table
from .sets.toy import sample_toy

NUM_POINTS = 200_000
NUM_VALID = 10_000
NUM_TEST = 20_000
NUM_VALID_IMAGES = 5_000
MIN_IMAGES = 10
ROLES = ("train", "valid", "test")
SPLIT_KEY = 2110_07579  # of the permutation that splits every table
MAX_DEVIATIONS = 1e12  # of any sound value; float32 and the fingerprint hold it
_FINGERPRINT_GRID = 4096.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of standardised rows, or of images in bytes.

    Attributes:
        name: The name of the set, or the path of the data.
        train: float32, shape (n, d); of images uint8, shape (n, C, H, W).
        valid: Likewise, n_valid rows.
        test: Likewise, n_test rows.
        mean: The subtracted means, float64, shape (d,), in original units; 128 for images, with
            shape (1,).
        std: The deviations, the divisors, likewise.
        columns: The d column names; none for images.
        log_abs_scale: The sum of log std over all d values; NLL in original units is
            NLL + log_abs_scale.
        fingerprint: SHA-256 of the three splits. Tables are rounded to 2^-12 before, because the
            last bits differ between processors.
        flip: Whether training may mirror images left to right (true for photographs, false for
            digits and letters).
        labels: The class of each row as int64, shape (rows,), under `train`, `valid` and `test`;
            None if the set has none. Not part of the fingerprint.
        kinds: The kind of each column of a table from a file, such as number, whole, two (values)
            or copy; none for other sets.
        notes: What else a file has, and was left out.
        doubts: What may have been meant otherwise; `open_dataset` warns of it.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    mean: Tensor
    std: Tensor
    columns: list[str]
    log_abs_scale: float
    fingerprint: str
    flip: bool = False
    labels: Mapping[str, Tensor] | None = None
    kinds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum: (d,) or (C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def dim(self) -> int:
        """The number d of values in one datum."""
        return math.prod(self.event_shape)

    @property
    def is_image(self) -> bool:
        """Whether the data are images: bytes that training dequantises."""
        return self.train.dtype == torch.uint8

    def to_original(self, x: Tensor) -> Tensor:
        """Returns points of the model in original units, float64, on the device of `x`.

        For images these are pixel values from 0 to 256; floor them for bytes.
        """
        return x.double() * self.std.to(x.device) + self.mean.to(x.device)


def draw_dataset(name: str, seed: int, num_points: int) -> Dataset:
    """Draws a two-dimensional set; see `open_dataset`."""
    if seed < 0 or num_points < 1:
        raise ValueError(
            f"open_dataset: expected seed >= 0 and num_points >= 1, got {seed} and {num_points}; "
            "give both as such integers"
        )
    sizes = (num_points, NUM_VALID, NUM_TEST)
    parts = [sample_toy(name, n, 3 * seed + i) for i, n in enumerate(sizes)]
    return table_dataset(name, parts, np.zeros(2), np.ones(2), ["x1", "x2"])


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
    dim = math.prod(train.shape[1:])
    return Dataset(
        name=name,
        **parts,
        mean=torch.full((1,), 128.0, dtype=torch.float64),
        std=torch.full((1,), 128.0, dtype=torch.float64),
        columns=[],
        log_abs_scale=dim * math.log(128.0),
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
        fingerprint = _fingerprint([part.numpy() for part in parts])
    return replace(data, train=train, labels=labels, fingerprint=fingerprint)


def split_table(table: Table, *, name: str | None = None) -> Dataset:
    """Splits a table 80/10/10 by a fixed permutation and standardises it.

    Arguments:
        table: The table, finite, at least 20 rows.
        name: The dataset's name; the table's source if None.

    Returns:
        The dataset; mean and deviation are those of its training split.

    Raises:
        ValueError: If a value is not finite, or a column cannot be standardised.
    """
    label = name or table.source
    _check_table(table)
    order = _permutation(len(table.values), SPLIT_KEY, 0)
    rows = table.values[order]
    held_out = len(rows) // 10
    train = rows[: len(rows) - 2 * held_out]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = train.mean(axis=0), train.std(axis=0)
    _check_scale(train, std, table)
    with np.errstate(over="ignore"):  # Overflow is reported by _check_reach.
        scaled = (rows - mean) / std
    parts = np.split(scaled, [len(train), len(train) + held_out])
    kinds = column_kinds(table.values)
    doubts = (*table.doubts, *column_doubts(table.values, table.columns, kinds))
    data = table_dataset(label, parts, mean, std, list(table.columns))
    return replace(data, kinds=tuple(kinds), notes=table.notes, doubts=doubts)


def _check_table(table: Table) -> None:
    n, _ = table.values.shape
    if n < MIN_ROWS:
        raise ValueError(
            f"split_table: expected at least {MIN_ROWS} rows, {table.source!r} has {n}; an "
            "80/10/10 split needs two rows for the test, or it has no standard error"
        )
    bad = np.argwhere(~np.isfinite(table.values))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise ValueError(
            f"split_table: expected finite numbers, row {row} (counted from 0), column "
            f"{table.columns[column]!r} of {table.source!r} is {table.values[row, column]}; "
            "delete or fill such rows"
        )


def _check_scale(train: NDArray[np.float64], std: NDArray[np.float64], table: Table) -> None:
    flat = (train.min(axis=0) == train.max(axis=0)) | ~(std > 0.0) | ~np.isfinite(std)
    if flat.any():
        names = [table.columns[i] for i in np.flatnonzero(flat)]
        raise ValueError(
            f"split_table: expected columns with a finite positive deviation in the training "
            f"split, not so {listed([*map(repr, names)])} of {table.source!r}; rescale them, or "
            f"{how_to_leave_out(names)}"
        )


def table_dataset(
    name: str,
    parts: Sequence[NDArray[np.floating]],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    columns: list[str],
) -> Dataset:
    """Returns the dataset of training, validation and test rows that are standardised already.

    A ValueError says that a value is not finite or beyond 10^12 deviations.
    """
    for part in parts:
        _check_reach(part, name, columns)
    parts = [np.array(part, np.float32) for part in parts]
    train, valid, test = map(torch.from_numpy, parts)
    return Dataset(
        name=name,
        train=train,
        valid=valid,
        test=test,
        mean=torch.from_numpy(mean),
        std=torch.from_numpy(std),
        columns=columns,
        log_abs_scale=float(np.log(std).sum()),
        fingerprint=_fingerprint(parts),
    )


def _check_reach(part: NDArray[np.floating], name: str, columns: list[str]) -> None:
    within = np.abs(part) <= MAX_DEVIATIONS
    if not within.all():
        row, column = (int(i) for i in np.argwhere(~within)[0])
        raise ValueError(
            f"split_table: expected values within {MAX_DEVIATIONS:.0e} deviations of the training "
            f"split, one in column {columns[column]!r} of {name!r} lies at {part[row, column]:g}; "
            "mend or delete such rows"
        )


def _fingerprint(parts: Sequence[NDArray[np.floating]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part.shape).encode())
        cells = np.rint(part.astype(np.float64) * _FINGERPRINT_GRID)
        digest.update(cells.astype("<i8").tobytes())
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
