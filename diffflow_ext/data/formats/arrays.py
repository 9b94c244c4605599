"""NumPy's array files, read without pickle and with sizes checked before memory is taken."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from .archives import open_zip
from .reading import Refused

__all__ = ["RawArray", "parse_npy", "parse_npz"]


@dataclass(frozen=True, eq=False)
class RawArray:
    """An array whose header is read and whose values are still bytes.

    Attributes:
        op: The function that asks, for messages.
        source: Where the array came from, for messages.
        shape: The shape that the header states, no size negative.
        dtype: The type that the header states, which may be any.
        fortran: Whether the first axis varies fastest.
        body: What follows the header.
    """

    op: str
    source: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    body: memoryview

    def values(self) -> NDArray:
        """Returns the array; the caller has made sure that its type is one of numbers.

        Raises:
            ValueError: If the bytes are more or fewer than the header states.
        """
        expected = math.prod(self.shape) * self.dtype.itemsize
        if len(self.body) != expected:
            raise Refused(
                f"{self.op}: expected {expected:,} bytes of data for shape {self.shape} and "
                f"{self.dtype}, {self.source!r} holds {len(self.body):,}; the file is cut or "
                "damaged, write it again"
            )
        order = "F" if self.fortran else "C"
        return np.frombuffer(self.body, self.dtype).reshape(self.shape, order=order)


def parse_npy(op: str, data: bytes, source: str) -> RawArray:
    """Reads the header of an `.npy` file.

    Arguments:
        op: The function that asks, for messages.
        data: The file's bytes.
        source: Its name, for messages.

    Raises:
        ValueError: If the header cannot be read.
    """
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = _header(stream)
    # NumPy parses the header as a Python literal: a damaged one raises nearly any exception.
    except Exception as error:
        raise Refused(
            f"{op}: expected a NumPy array file, {source!r} has a header that cannot be "
            f"read ({type(error).__name__}); save it again with numpy.save"
        ) from error
    return RawArray(op, source, shape, dtype, fortran, memoryview(data)[stream.tell() :])


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"unknown version {version}")
    if version == (1, 0):
        shape, fortran, dtype = npy_format.read_array_header_1_0(stream)
    else:
        shape, fortran, dtype = npy_format.read_array_header_2_0(stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def parse_npz(op: str, data: bytes, source: str, choose: Callable[[list[str]], str]) -> RawArray:
    """Unpacks one array of an `.npz` file and reads its header.

    Arguments:
        op: The function that asks, for messages.
        data: The file's bytes.
        source: Its name, for messages.
        choose: Picks one of the arrays' names.

    Raises:
        ValueError: If the archive is damaged, unpacks to far more than its size, or the array's
            header cannot be read.
    """
    with open_zip(op, data, source) as archive:
        keys = [name[:-4] for name in archive.names if name.endswith(".npy")]
        chosen = choose(keys)
        body = archive.read(f"{chosen}.npy")
    return parse_npy(op, body, f"{source}[{chosen}]")
