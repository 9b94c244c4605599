"""NumPy's array files, read by NumPy without pickle and in bounded memory."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archives import METHODS
from .reading import Refused, check_file, check_size, open_file, unpacked_limit


@dataclass(frozen=True)
class Found:
    """Arrays of a file.

    Attributes:
        names: The names of the arrays to read under `train`, and perhaps `valid` and `test`; None
            for the array of a `.npy` file.
        left_out: The names of the others.
    """

    names: dict[str, str | None]
    left_out: list[str]


def find_arrays(op: str, file: Path, key: str | None) -> Found:
    """Chooses the arrays of a `.npy` or `.npz` file by their names and numbers of axes.

    Arrays of labels are left out, by their name or because they have one axis. Of the others there
    must be one, or `key` is its name, or their names have parts such as train and test.
    """
    if file.suffix.lower() != ".npz":
        return Found({"train": None}, [])
    check_file(op, file)
    with _opened(op, file) as archive:
        axes = {name: _axes(archive, name) for name in archive.files}
    names = [*axes]
    if not names:
        raise Refused(f"{op}: expected an array, found none; save one with numpy.savez")
    if key is not None:
        if key not in axes:
            raise Refused(f"{op}: expected key={key!r} in {str(file)!r}, found {names}; name one")
        return Found({"train": key}, [name for name in names if name != key])
    chosen = [name for name in names if axes[name] != 1 and not words_of(name) & _LABELS] or names
    roles = {role_of(name): name for name in chosen}
    if len(chosen) == 1:
        roles = {"train": chosen[0]}
    elif len(roles) != len(chosen) or "train" not in roles or "" in roles:
        raise Refused(
            f"{op}: expected one array in {str(file)!r}, or such as x_train and x_test, found "
            f"{names}; name one, such as --key={chosen[0]} (in Python key={chosen[0]!r})"
        )
    return Found({**roles}, [name for name in names if name not in chosen])


#: Parts of names of arrays.
_LABELS = {*"y label labels target targets class classes id ids".split()}
ROLE_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test",
              "val": "valid", "valid": "valid", "validation": "valid"}  # fmt: skip


def words_of(name: str) -> set[str]:
    """Returns the parts of a name, in small letters."""
    return {*re.split(r"[^a-z0-9]+", name.lower())}


def role_of(name: str) -> str:
    """Returns train, valid or test, and an empty text if the name is none or several of these."""
    roles = {ROLE_WORDS[word] for word in words_of(name) if word in ROLE_WORDS}
    return roles.pop() if len(roles) == 1 else ""


def _axes(archive: Any, name: str) -> int:
    """Returns the number of axes of an array, 0 if its header is not a usual one."""
    info = archive.zip.getinfo(f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name)
    if info.compress_type not in METHODS:
        return 0
    try:
        with archive.zip.open(info) as stream:
            head = io.BytesIO(stream.read(4096))
        newer = np.lib.format.read_magic(head) != (1, 0)
        read = getattr(np.lib.format, f"read_array_header_{1 + newer}_0")
        return len(read(head)[0])
    except Exception:  # Reading the array says what is wrong.
        return 0


@contextmanager
def _opened(op: str, file: Path) -> Iterator[Any]:
    with (
        _numpy_errors(op, str(file)),
        open_file(op, file) as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        yield archive


def load_array(op: str, file: Path, name: str | None) -> NDArray[Any]:
    """Reads the array of a `.npy` file, or of that name in an `.npz` file."""
    if name is None:
        return load_npy(op, file)
    with _opened(op, file) as archive:
        members = {info.filename: info for info in archive.zip.infolist()}
        member, limit = members[f"{name}.npy"], unpacked_limit(file.stat().st_size)
        if member.compress_type not in METHODS:
            raise ValueError("packed in a rare way")
        # NumPy reads no more than the size that the archive states.
        check_size(op, f"{file}[{name}.npy]", member.file_size, limit)
        return _checked(archive[name])


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
