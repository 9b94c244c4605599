"""NumPy's array files, read by NumPy without pickle and in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archives import METHODS
from .reading import Refused, check_file, check_size, unpacked_limit


def load_array(op: str, file: Path, choose: Callable[[list[str]], str]) -> NDArray[Any]:
    """Reads a `.npy` file, or the array of an `.npz` file whose name `choose` returns."""
    if file.suffix.lower() != ".npz":
        return load_npy(op, file)
    check_file(op, file)
    with (
        _numpy_errors(op, str(file)),
        file.open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        members = {info.filename: info for info in archive.zip.infolist()}
        key = choose([name[:-4] for name in members if name.endswith(".npy")])
        member, limit = members[f"{key}.npy"], unpacked_limit(file.stat().st_size)
        if member.compress_type not in METHODS:
            raise ValueError("packed in a rare way")
        # NumPy reads no more than the size that the archive states.
        check_size(op, f"{file}[{key}.npy]", member.file_size, limit)
        return _checked(archive[key])


def load_npy(op: str, file: Path) -> NDArray[Any]:
    """Maps a `.npy` file into memory, for reading.

    Files with Python objects, or with another size than the header states, are refused.
    """
    check_file(op, file)
    size = file.stat().st_size
    check_size(op, str(file), size)
    with _numpy_errors(op, str(file)):
        array = _checked(np.load(file, mmap_mode="r", allow_pickle=False))
        if isinstance(array, np.memmap) and array.offset + array.nbytes != size:
            raise ValueError(f"{size - array.offset - array.nbytes:,} bytes too many")
        return array


def _checked(array: object) -> NDArray[Any]:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"holds {type(array).__name__} in place of an array")
    return array


@contextmanager
def _numpy_errors(op: str, source: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except Refused:
        raise
    # NumPy parses the header as a Python literal: a damaged one raises nearly any exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        # NumPy's message for unknown contents recommends unpickling.
        if "pickle" in reason or "Python objects" in reason:
            reason = "it holds Python objects or no array at all"
        raise Refused(
            f"{op}: expected a NumPy array of numbers, {source!r} cannot be read ({reason}); it "
            "is cut, damaged or of another kind: save the numbers again with numpy.save"
        ) from error
