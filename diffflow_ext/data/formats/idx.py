"""The idx format of MNIST and its relatives: a magic word, the sizes, then the values."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .reading import Refused, read_file, unpack

UINT8 = 0x08
MAX_AXES = 3

# Usual names and folders of the four files.
STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "train_labels": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_labels": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}

FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")


def is_idx(path: Path) -> bool:
    """Whether a file's name is that of idx data, packed or not."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(("-ubyte", ".idx", ".ubyte"))


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Reads bytes from an idx file, which may be gzipped.

    Arguments:
        path: The file; gzip is known by its content, not by its name.

    Returns:
        uint8, with the one to three axes that the header states: (n,) for labels, (n, H, W) for
        images.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no idx file of bytes, or its size is not what its header states.
    """
    file = Path(path)
    data = read_file("read_idx", file)
    if data[:2] == b"\x1f\x8b":
        data = unpack("read_idx", data, str(file))
    shape = _shape(data, str(file))
    start = 4 + 4 * len(shape)
    if len(data) - start != math.prod(shape):
        raise Refused(
            f"read_idx: expected {math.prod(shape):,} bytes after the header for shape {shape}, "
            f"{str(file)!r} holds {len(data) - start:,}; the file is cut or damaged, get it again"
        )
    values = np.frombuffer(data, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())


def _shape(data: bytes, source: str) -> tuple[int, ...]:
    if len(data) < 8 or data[:2] != b"\0\0":
        raise Refused(
            f"read_idx: expected an idx file, which begins with two zero bytes, {source!r} begins "
            f"with {data[:4].hex(' ')!r}; name a file like train-images-idx3-ubyte"
        )
    kind, axes = data[2], data[3]
    if kind != UINT8 or not 1 <= axes <= MAX_AXES:
        raise Refused(
            f"read_idx: expected bytes (type 0x08) with 1 to {MAX_AXES} axes, {source!r} states "
            f"type {kind:#04x} with {axes} axes; convert it to uint8 and save it as .npy"
        )
    if len(data) < 4 + 4 * axes:
        raise Refused(
            f"read_idx: expected {4 + 4 * axes} bytes of header, {source!r} holds {len(data)}; "
            "the file is cut, get it again"
        )
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    if 0 in shape:
        raise Refused(
            f"read_idx: expected at least one value, {source!r} states shape {shape}; get it again"
        )
    return shape


def find_idx(folder: Path) -> dict[str, Path] | None:
    """Returns the files of the MNIST layout in a folder, None if the images are missing.

    Keys are `train`, `test`, and `train_labels`, `test_labels` if these exist. Files may be
    gzipped and may be in `raw`, `MNIST/raw` or `FashionMNIST/raw`.
    """
    for name in FOLDERS:
        files = {
            role: file
            for role, stems in STEMS.items()
            if (file := _first_file(folder / name, stems)) is not None
        }
        if "train" in files and "test" in files:
            return files
    return None


def _first_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    files = (folder / f"{stem}{ending}" for stem in stems for ending in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def read_idx_folder(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Reads the files of `find_idx`: images as uint8, (n, 1, H, W), and labels as int64, (n,)."""
    parts = {role: read_idx(file) for role, file in files.items()}
    for role, values in parts.items():
        axes = 1 if role.endswith("labels") else 3
        if values.ndim != axes:
            raise Refused(
                f"read_idx_folder: expected {axes} axes in {str(files[role])!r}, got shape "
                f"{tuple(values.shape)}; the file may have the name of another"
            )
        images = parts[role.removesuffix("_labels")]
        if len(values) != len(images):
            raise Refused(
                f"read_idx_folder: expected {len(images):,} labels, one an image, "
                f"{str(files[role])!r} holds {len(values):,}; get both files from one source"
            )
    if parts["train"].shape[1:] != parts["test"].shape[1:]:
        raise Refused(
            "read_idx_folder: expected training and test images of one size, got "
            f"{tuple(parts['train'].shape[1:])} and {tuple(parts['test'].shape[1:])} in "
            f"{str(files['train'].parent)!r}; get both files from one source"
        )
    return {role: _in_form(role, values) for role, values in parts.items()}


def _in_form(role: str, values: Tensor) -> Tensor:
    return values.long() if role.endswith("labels") else values.unsqueeze(1)
