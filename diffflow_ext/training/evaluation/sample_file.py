"""Files of samples: .npy, or .csv with the names of the columns in its first line.

Images are bytes of shape (n, H, W, C), in .npy or as `arr_0` in .npz.
"""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
from torch import Tensor


def endings(is_image: bool) -> tuple[str, ...]:
    """Returns the endings of file names for samples."""
    return (".npz", ".npy") if is_image else (".npy", ".csv")


def check_target(path: str | Path, endings: Sequence[str], *, overwrite: bool) -> None:
    """Checks, before any work, that a file may be written: ending, directory, absence."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path}: expected a file or nothing there; give another name")
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: is there already; give --overwrite to replace it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the directory {path.parent} is missing")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: can't write to the directory {path.parent}")


def write_samples(path: str | Path, samples: Tensor, columns: Sequence[str]) -> None:
    """Writes samples atomically: vectors (n, d) in float64, or images (n, C, H, W) in bytes.

    `columns` are the names of the d columns; images have none.
    """
    path = Path(path)
    values = _bytes(samples) if samples.ndim == 4 else _vectors(samples, columns)
    # A new name each time: a file that is there belongs to somebody else.
    aside = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}"[:255])
    try:
        if path.suffix.lower() == ".csv":
            with aside.open("x", encoding="utf-8", newline="") as file:
                _write_csv(file, values, columns)
        else:
            with aside.open("xb") as binary:
                _write_numpy(binary, values, path.suffix.lower())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _bytes(images: Tensor) -> np.ndarray:
    return images.movedim(1, -1).contiguous().cpu().numpy()


def _vectors(samples: Tensor, columns: Sequence[str]) -> np.ndarray:
    values = samples.double().cpu().numpy()
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(
            f"write_samples: expected samples of shape (n, {len(columns)}), got {values.shape}"
        )
    return values


def _write_numpy(file: BinaryIO, values: np.ndarray, ending: str) -> None:
    if ending == ".npz":
        np.savez(file, values)
    else:
        np.save(file, values, allow_pickle=False)


def _write_csv(file: TextIO, values: np.ndarray, columns: Sequence[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([repr(value) for value in row] for row in values.tolist())
