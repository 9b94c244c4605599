"""CIFAR-10 as published: binary batches, Python batches, or the archive of either.

A Python batch is a pickle, which is a program. Its instructions are checked before it runs: only
those that build numbers, text, lists, dictionaries and tuples are allowed, and the few names
that an array needs. These names stand for classes of this module, so nothing is imported and no
other object is made.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archives import read_tar
from .reading import Refused, read_file

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
    """Returns the folder or archive of CIFAR-10 batches in a folder, None if there is none."""
    for name in FOLDERS:
        first = folder / name / STEMS[0]
        if first.is_file() or first.with_suffix(".bin").is_file():
            return folder / name
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
    batches = _read_folder(path) if path.is_dir() else _read_archive(path)
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
    batches = read_tar("read_cifar", file, {*binary, *STEMS})
    names = binary if binary[0] in batches else list(STEMS)
    missing = [name for name in names if name not in batches]
    if missing:
        raise Refused(
            f"read_cifar: expected the batches {', '.join(names)} in {str(file)!r}, it lacks "
            f"{', '.join(missing)}; get the archive again, or unpack an archive of "
            "other images and name the folder"
        )
    return {name: batches[name] for name in names}


def _parse(name: str, data: bytes, path: str) -> tuple[Bytes, Bytes]:
    """Returns the images of a batch, shape (n, 3072), and their labels."""
    source = f"{path}/{name}"
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
    # Labels that do not fit a byte become 255, which _parse refuses.
    labels = [label if 0 <= label <= 255 else 255 for label in labels]
    return pixels, np.array(labels, np.uint8)


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


_TEXTS = {
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
# Values that a pickle may use twice. Nested tuples that are used twice could make a dictionary key
# that takes forever to hash.
_SHARED = _TEXTS | {"GLOBAL", "STACK_GLOBAL", "REDUCE"}
_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_STORES = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_LOADS = {"BINGET", "LONG_BINGET"}

_INSTRUCTIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BUILD"),
    *("BININT", "BININT1", "BININT2", "LONG1", "EMPTY_DICT", "EMPTY_LIST"),
    *("SETITEM", "SETITEMS", "APPEND", "APPENDS"),
    *(_SHARED | _TUPLES | _STORES | _LOADS),
}

MAX_STEPS = 1_000_000  # a batch of 10,000 images takes about 60,000
# Deeply nested tuples overflow the stack when they are hashed.
MAX_TUPLES = 100


def read_batch_pickle(data: bytes, source: str) -> dict[str, Any]:
    """Reads a pickled batch, protocol 2 to 4: a dictionary of lists, numbers, text and arrays.

    Arrays are uint8 with at most two axes. Pickles with anything that a batch does not need, and
    damaged ones, are refused.
    """
    try:
        _check_instructions(data)
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _Forbidden as error:
        raise Refused(
            f"read_cifar: expected a pickle that only builds arrays, lists and text, {source!r} "
            f"asks for {error}; nothing of it was executed; use the binary version, "
            "cifar-10-batches-bin"
        ) from None
    # A damaged pickle raises nearly any exception.
    except Exception as error:
        raise _damaged(source, f"{type(error).__name__}: {error}") from error
    if type(value) is not dict:
        raise _damaged(source, f"holds {type(value).__name__} in place of a dictionary")
    return {_text(key, source): _plain(item, source) for key, item in value.items()}


class _Forbidden(Exception):
    """A pickle has an instruction or a name that no batch needs."""


def _check_instructions(data: bytes) -> None:
    """Refuses instructions that do more than build plain values."""
    memo: dict[int | None, bool] = {}  # whether the stored value may be used again
    before, tuples = "", 0
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if name not in _INSTRUCTIONS:
            raise _Forbidden(f"the instruction {name}")
        tuples += name in _TUPLES
        if step >= MAX_STEPS or tuples > MAX_TUPLES:
            raise ValueError(f"more than {MAX_STEPS:,} instructions or {MAX_TUPLES:,} tuples")
        if name in _STORES:
            # The unpickler allocates memory up to the largest index of a stored value.
            index = len(memo) if argument is None else argument
            if index > step:
                raise ValueError(f"a value stored under {index:,}")
            memo[index] = before in _SHARED
        elif name in _LOADS and not memo.get(argument):
            raise ValueError(f"a value taken twice, number {argument}, that is no text")
        before = name


class _Unpickler(pickle.Unpickler):
    """Unpickles plain values and the records of arrays."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Returns the replacement of an allowed name, and refuses others."""
        if (module, name) not in _NAMES:
            raise _Forbidden(f"the name {f'{module} {name}'[:80]!r}")
        return _NAMES[module, name]


@dataclass(frozen=True)
class _Name:
    """The replacement of a name that an array needs; it can only be called."""

    make: Callable[..., object]

    def __call__(self, *arguments: object) -> object:
        return self.make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("attributes for a function")


class _Array:
    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    __slots__ = ("code",)

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and alignment, which bytes do not have."""


def _latin1(text: str, codec: str) -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise _Forbidden(f"the codec {codec!r:.80}")
    return text.encode("latin-1")


# All names that a batch may use, with those of older versions of NumPy.
_NAMES: Mapping[tuple[str, str], _Name] = {
    ("numpy.core.multiarray", "_reconstruct"): _Name(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Name(_Array),
    ("numpy", "ndarray"): _Name(_Array),
    ("numpy", "dtype"): _Name(_Dtype),
    ("_codecs", "encode"): _Name(_latin1),
}


def _damaged(source: str, what: str) -> Refused:
    return Refused(
        f"read_cifar: expected a pickled batch of CIFAR-10, {source!r} is none ({what[:120]}); "
        "get the file again, or use the binary version, cifar-10-batches-bin"
    )


def _text(key: object, source: str) -> str:
    if not isinstance(key, (str, bytes)):
        raise _damaged(source, "a key that is no text")
    return key if isinstance(key, str) else key.decode("latin-1")


def _plain(value: object, source: str) -> object:
    return _bytes_of(value, source) if isinstance(value, _Array) else value


def _bytes_of(array: _Array, source: str) -> NDArray[np.uint8]:
    state = array.state
    if type(state) is not tuple or len(state) != 5:
        raise _damaged(source, "an array without state")
    _, shape, dtype, fortran, raw = state
    sizes = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or not 1 <= len(shape) <= 2 or fortran not in (False, 0):
        raise _damaged(source, "an array that is not stored row by row")
    if type(dtype) is not _Dtype or dtype.code not in ("u1", b"u1"):
        raise _damaged(source, "an array of other values than bytes")
    if type(raw) is not bytes or len(raw) != math.prod(shape):
        raise _damaged(source, f"an array whose bytes are not those of shape {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape)
