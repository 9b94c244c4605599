r"""Training, validation and test sets, and the order in which training visits them.

A table's columns are standardised by the training split's mean :math:`m` and deviation
:math:`\sigma`. With :math:`x = (y - m) / \sigma` the negative log-likelihood
changes by a constant,

.. math:: -\log p_Y(y) = -\log p_X(x) + \sum_j \log \sigma_j

in nats, which `Dataset.log_abs_scale` holds.
"""

from __future__ import annotations

import difflib
import hashlib
import operator
import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .tables import Table, magic_telescope, read_table
from .toy import TOY_SETS, sample_toy, toy_name

__all__ = ["Dataset", "batch_indices", "open_dataset", "split_table"]

NUM_POINTS = 200_000
NUM_VALID = 10_000
NUM_TEST = 20_000
SPLIT_KEY = 2110_07579  # of the permutation that splits every table
_FINGERPRINT_GRID = 4096.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits in the units in which a model is trained.

    Attributes:
        name: The name of the set, or the path of the table.
        train: float32, shape (n, d).
        valid: float32, shape (n_valid, d).
        test: float32, shape (n_test, d).
        mean: The means that were subtracted, float64, shape (d,), in original units.
        std: The deviations that were divided by, float64, shape (d,), in original units.
        columns: The d column names.
        log_abs_scale: The sum of log std; NLL in original units is NLL + log_abs_scale.
        fingerprint: SHA-256 of the three splits, rounded to 2^-12 so that it survives the last
            bits in which processors differ.
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

    @property
    def dim(self) -> int:
        """The number of columns d."""
        return self.train.shape[1]

    def to_original(self, x: Tensor) -> Tensor:
        """Returns points of the model in original units, float64, on the device of `x`."""
        return x.double() * self.std.to(x.device) + self.mean.to(x.device)


def open_dataset(
    source: str | os.PathLike[str], *, seed: int = 0, num_points: int = NUM_POINTS
) -> Dataset:
    """Opens a two-dimensional set, the MAGIC table, or a table in a file.

    Two-dimensional sets are drawn: `num_points` training points, 10,000 for validation and
    20,000 for the test, independent of one another. Tables are split 80/10/10 by one fixed
    permutation, which does not depend on `seed`, so that test scores compare across runs.

    Arguments:
        source: A key of `TOY_SETS`, `magic`, or the path of a table (see `read_table`; of a
            `.dat` file the last column is the label and is left out).
        seed: The seed of the drawn points, >= 0; tables don't use it.
        num_points: The number of drawn training points, at least 1; tables don't use it.

    Returns:
        The dataset, standardised.

    Raises:
        ModuleNotFoundError: If `magic` is asked for and its package is missing.
        TypeError: If a table holds no real numbers.
        ValueError: If `source` is neither a known set nor an existing path, or the table is not
            finite or cannot be standardised.
    """
    text = os.fspath(source)
    if text.strip().lower() == "magic":
        return split_table(magic_telescope(), name="magic")
    if isinstance(source, str) and _is_toy(text):
        return _draw_dataset(toy_name(text), operator.index(seed), operator.index(num_points))
    if not os.path.exists(text):
        near = difflib.get_close_matches(text.lower(), [*TOY_SETS, "magic"], n=1, cutoff=0.5)
        raise ValueError(
            f"open_dataset: expected one of {', '.join(TOY_SETS)}, magic, or the path of a table; "
            f"got {text!r}, which is no known set, and this path does not exist; "
            + (f"did you mean {near[0]!r}?" if near else "check the spelling")
        )
    is_keel = text.lower().endswith(".dat")
    return split_table(read_table(text, drop_label=is_keel), name=text)


def _is_toy(text: str) -> bool:
    return text.strip().lower().replace("_", "-") in TOY_SETS


def _draw_dataset(name: str, seed: int, num_points: int) -> Dataset:
    if seed < 0 or num_points < 1:
        raise ValueError(
            f"open_dataset: expected seed >= 0 and num_points >= 1, got {seed} and {num_points}; "
            "give both as such integers"
        )
    sizes = (num_points, NUM_VALID, NUM_TEST)
    parts = [sample_toy(name, n, 3 * seed + i) for i, n in enumerate(sizes)]
    return _dataset(name, parts, np.zeros(2), np.ones(2), ["x1", "x2"])


def split_table(table: Table, *, name: str | None = None) -> Dataset:
    """Splits a table 80/10/10 by a fixed permutation and standardises it.

    Arguments:
        table: The table, finite, at least 10 rows.
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
    scaled = ((rows - mean) / std).astype(np.float32)
    parts = np.split(scaled, [len(train), len(train) + held_out])
    return _dataset(label, parts, mean, std, list(table.columns))


def _check_table(table: Table) -> None:
    n, _ = table.values.shape
    if n < 10:
        raise ValueError(
            f"split_table: expected at least 10 rows, {table.source!r} has {n}; an 80/10/10 "
            "split needs one row in each part"
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
        names = ", ".join(repr(table.columns[i]) for i in np.flatnonzero(flat)[:8])
        raise ValueError(
            f"split_table: expected columns with a finite positive deviation in the training "
            f"split, not so {names} of {table.source!r}; leave such columns out or rescale them"
        )


def _dataset(
    name: str,
    parts: list[NDArray[np.float32]],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    columns: list[str],
) -> Dataset:
    train, valid, test = (torch.from_numpy(np.array(part)) for part in parts)
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


def _fingerprint(parts: list[NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part.shape).encode())
        cells = np.rint(part.astype(np.float64) * _FINGERPRINT_GRID)
        digest.update(cells.astype("<i8").tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # Sorting raw words, not Generator.permutation: NumPy fixes the former for all versions.
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Returns the rows that training step `step` sees.

    A pure function of its arguments: nothing is to be saved to resume. Steps take consecutive
    slices of an endless sequence, one keyed permutation of the n rows after another, so every
    epoch visits each row once and a batch may run across the border of two.

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
