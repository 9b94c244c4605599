"""Arrays out of .npy bytes that anyone may have written: nothing is executed, no size believed."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 4096


def parse_npy(data: bytes) -> NDArray[np.generic]:
    """Returns the read-only array of numbers or text that the bytes of an .npy file hold.

    Raises:
        ValueError: If they hold something else, or another number of bytes than they say.
    """
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"the unknown .npy version {version}")
    shape, by_column, dtype = readers[version](stream, max_header_size=MAX_HEADER_BYTES)
    start = stream.tell()
    # Python's whole numbers, which don't overflow.
    size = dtype.itemsize
    for length in shape:
        size *= int(length)
    if dtype.kind not in "fiuU" or len(data) - start != size or min(shape, default=0) < 0:
        raise ValueError(f"{len(data) - start} bytes, which aren't a {dtype} array of {shape}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if by_column else "C")
