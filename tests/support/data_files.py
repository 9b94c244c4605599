"""Data files of tests, as bytes."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

#: The files of CIFAR-10.
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the format of MNIST."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def saved(save: Callable[..., None], *arrays: np.ndarray, **options: Any) -> bytes:
    """What np.save and its relatives write."""
    stream = io.BytesIO()
    save(stream, *arrays, **options)
    return stream.getvalue()


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    return saved(lambda stream, array: Image.fromarray(array).save(stream, kind), pixels)


def zipped(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # pyright: ignore
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()
