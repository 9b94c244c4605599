"""CIFAR-10 as its authors give it: binary batches, Python batches, or the archive of either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archives import read_tar
from .cifar_pickle import read_batch_pickle
from .reading import Refused, read_file

__all__ = ["find_cifar", "is_tar", "read_cifar"]

Bytes = NDArray[np.uint8]

SHAPE = (3, 32, 32)
PIXELS = 3072
CLASSES = 10
MAX_BATCH = 1 << 30
TEST = "test_batch"
STEMS = (*(f"data_batch_{i}" for i in range(1, 6)), TEST)
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
TARS = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")


def is_tar(path: Path) -> bool:
    """Whether a file's name is that of a tar archive, packed or not."""
    return path.name.lower().endswith((".tar.gz", ".tgz", ".tar"))


def find_cifar(folder: Path) -> Path | None:
    """Returns the folder or archive of CIFAR-10 batches in a folder, None where there is none."""
    for place in FOLDERS:
        first = folder / place / STEMS[0]
        if first.is_file() or first.with_suffix(".bin").is_file():
            return folder / place
    return next((folder / tar for tar in TARS if (folder / tar).is_file()), None)


def read_cifar(path: Path) -> dict[str, Tensor]:
    """Reads the five training batches and the test batch.

    Arguments:
        path: A folder with `data_batch_1.bin` and its like or `data_batch_1` and its like, or a
            tar archive of such a folder, which may be gzipped. Binary files are preferred.

    Returns:
        `train` and `test`, uint8, shape (n, 3, 32, 32); `train_labels` and `test_labels`, int64,
        shape (n,), from 0 to 9.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If a batch is missing, cut, or no batch.
    """
    batches = _read_archive(path) if path.is_file() else _read_folder(path)
    parsed = [_parse(name, data, str(path)) for name, data in batches.items()]
    if len({len(images) for images, _ in parsed}) > 1:
        sizes = ", ".join(f"{len(images):,}" for images, _ in parsed)
        raise Refused(
            f"read_cifar: expected six batches of one size, those of {str(path)!r} hold {sizes} "
            "images; one is cut, get them again"
        )
    train = [np.concatenate(parts) for parts in zip(*parsed[:-1], strict=True)]
    images, labels = (torch.from_numpy(part) for part in train)
    test_images, test_labels = (torch.from_numpy(part.copy()) for part in parsed[-1])
    return {
        "train": images.reshape(-1, *SHAPE),
        "test": test_images.reshape(-1, *SHAPE),
        "train_labels": labels.long(),
        "test_labels": test_labels.long(),
    }


def _read_folder(folder: Path) -> dict[str, bytes]:
    binary = (folder / f"{STEMS[0]}.bin").is_file()
    names = [f"{stem}.bin" for stem in STEMS] if binary else list(STEMS)
    return {name: read_file("read_cifar", folder / name, MAX_BATCH) for name in names}


def _read_archive(file: Path) -> dict[str, bytes]:
    binary = [f"{stem}.bin" for stem in STEMS]
    found = read_tar("read_cifar", file, {*binary, *STEMS})
    names = binary if binary[0] in found else list(STEMS)
    missing = [name for name in names if name not in found]
    if missing:
        raise Refused(
            f"read_cifar: expected the batches {', '.join(names)} in {str(file)!r}, it lacks "
            f"{', '.join(missing)}; get the archive again"
        )
    return {name: found[name] for name in names}


def _parse(name: str, data: bytes, place: str) -> tuple[Bytes, Bytes]:
    """The images of a batch, shape (n, 3072), and their labels."""
    source = f"{place}/{name}"
    images, labels = (
        _parse_binary(data, source) if name.endswith(".bin") else _parse_pickle(data, source)
    )
    if labels.max() >= CLASSES:
        row = int(np.argmax(labels >= CLASSES))
        raise Refused(
            f"read_cifar: expected labels from 0 to 9, image {row} (counted from 0) of {source!r} "
            f"has {labels[row]}; the file is damaged or not of CIFAR-10"
        )
    return images, labels


def _parse_binary(data: bytes, source: str) -> tuple[Bytes, Bytes]:
    if not data or len(data) % (1 + PIXELS):
        raise Refused(
            f"read_cifar: expected records of {1 + PIXELS:,} bytes, {source!r} holds "
            f"{len(data):,} bytes, which is no multiple; the file is cut or no batch of CIFAR-10"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _parse_pickle(data: bytes, source: str) -> tuple[Bytes, Bytes]:
    batch = read_batch_pickle(data, source)
    _check_batch(batch, source)
    pixels, labels = batch["data"], batch["labels"]
    # Labels outside of a byte become 255, which is refused with the number of the image.
    known = [label if 0 <= label <= 255 else 255 for label in labels]
    return pixels, np.array(known, np.uint8)


def _check_batch(batch: Mapping[str, object], source: str) -> None:
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        shape = getattr(pixels, "shape", type(pixels).__name__)
        raise Refused(
            f"read_cifar: expected 'data' with shape (n, {PIXELS}) and bytes, {source!r} holds "
            f"{shape}; the file is damaged or not of CIFAR-10"
        )
    numbers = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not numbers or len(labels) != len(pixels) or not len(pixels):  # type: ignore[arg-type]
        raise Refused(
            f"read_cifar: expected 'labels' with {len(pixels):,} whole numbers and at least one, "
            f"{source!r} holds others; the file is damaged or not of CIFAR-10"
        )
