"""CIFAR-10 as its authors give it: binary batches, Python batches, or the archive of either.

Python batches are read without unpickling. A pickle is a program. This reads the few instructions that build a dictionary of lists, numbers,
strings and one array of bytes, and makes of the four names that such a file refers to plain
records: nothing is imported, called or constructed, whatever the file says.
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
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

__all__ = ["find_cifar", "is_tar", "read_batch_pickle", "read_cifar"]


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


_RECONSTRUCT = "array"


_NDARRAY = "ndarray"


_DTYPE = "dtype"


_ENCODE = "encode"


# All the names that a batch may refer to: numpy's modules were renamed once.
_NAMES: Mapping[str, str] = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,
}


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


_STRINGS = {"BINSTRING", "SHORT_BINSTRING"}  # Python 2's: bytes that may be text


_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


_BYTE = "u1"


MAX_STEPS = 1_000_000  # a batch of 10,000 images takes about 60,000


class _Mark:
    pass


@dataclass(eq=False)
class _Name:
    """One of the four names; stands for nothing but itself."""

    meaning: str


@dataclass(eq=False)
class _Dtype:
    code: object


@dataclass(eq=False)
class _Array:
    state: object = None


def read_batch_pickle(data: bytes, source: str) -> dict[str, Any]:
    """Reads a batch: a dictionary of lists, numbers, strings and arrays of bytes.

    Arguments:
        data: The pickle, protocol 2, 3 or 4.
        source: Its name, for messages.

    Returns:
        The dictionary, keys as text, arrays as uint8 with at most two axes.

    Raises:
        ValueError: If the pickle refers to other names than the four of a batch, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of instructions that are refused anyway.
            value = _Machine(source).run(data)
    except Refused:
        raise
    # A damaged program may underflow its stack, or hold numbers and text that can't be read.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(source, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(source, f"holds {type(value).__name__} in place of a dictionary")
    return {_text(key): _plain(item, source) for key, item in value.items()}


def _damaged(source: str, what: str) -> Refused:
    return Refused(
        f"read_cifar: expected a pickled batch of CIFAR-10, {source!r} is none ({what[:120]}); "
        "get the file again, or use the binary version, cifar-10-batches-bin"
    )


def _text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode("latin-1")


def _plain(value: object, source: str) -> object:
    return _bytes_of(value, source) if isinstance(value, _Array) else value


def _bytes_of(array: _Array, source: str) -> NDArray[np.uint8]:
    state = array.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise _damaged(source, "an array without state")
    _, shape, dtype, fortran, raw = state
    sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or not 1 <= len(shape) <= 2 or fortran not in (False, 0):
        raise _damaged(source, "an array that is not stored row by row")
    if not isinstance(dtype, _Dtype) or dtype.code not in (_BYTE, _BYTE.encode()):
        raise _damaged(source, "an array of other values than bytes")
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
        raise _damaged(source, f"an array whose bytes are not those of shape {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


class _Machine:
    """The stack on which a pickle builds its value."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> object:
        """Follows the instructions to the end, and returns the one value that is left."""
        steps = enumerate(pickletools.genops(io.BytesIO(data)))
        for step, (opcode, argument, _) in steps:
            if opcode.name == "STOP":
                break
            if step >= MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS:,} instructions")
            self._step(opcode.name, argument)
        if len(self.stack) != 1:
            raise ValueError(f"{len(self.stack)} values are left at its end")
        return self.stack[0]

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _STRINGS:
            self.stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in _RULES:
            _RULES[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise self._refused(f"the instruction {name}")

    def _refused(self, what: str) -> Refused:
        return Refused(
            f"read_cifar: expected a pickle that only builds arrays, lists and text, "
            f"{self.source!r} asks for {what}; nothing of it was executed; use the binary "
            "version, cifar-10-batches-bin"
        )

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("its stack runs empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        if any(isinstance(item, _Mark) for item in taken):
            raise ValueError("a mark in place of a value")
        return taken

    def _pop_mark(self) -> list[Any]:
        for count, item in enumerate(reversed(self.stack)):
            if isinstance(item, _Mark):
                taken = self._pop(count)
                self.stack.pop()
                return taken
        raise ValueError("a mark is missing")

    def _top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"expected {kind.__name__} on its stack")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        """Puts keys and values into the dictionary on top."""
        keys, values = items[::2], items[1::2]
        # Hashing a deep tuple overflows the C stack; text is all that a batch needs.
        if not all(isinstance(key, (str, bytes)) for key in keys):
            raise ValueError("a key that is no text")
        self._top(dict).update(zip(keys, values, strict=True))

    def append(self, items: list[Any]) -> None:
        """Puts values at the end of the list on top."""
        self._top(list).extend(items)

    def memoise(self, index: int | None) -> None:
        """Remembers the value on top."""
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise ValueError("nothing to remember")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def name(self, text: str | None) -> None:
        """Puts a record of one of the four names onto the stack."""
        if text is None:
            text = " ".join(self._pop(2))
        if text not in _NAMES:
            raise self._refused(f"the name {text[:80]!r}")
        self.stack.append(_Name(_NAMES[text]))

    def reduce(self) -> None:
        """Makes the record that a call of one of the names stands for."""
        name, arguments = self._pop(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no name")
        if name.meaning == _RECONSTRUCT:
            self.stack.append(_Array())
        elif name.meaning == _DTYPE and arguments:
            self.stack.append(_Dtype(arguments[0]))
        elif name.meaning == _ENCODE and arguments[1:] in (("latin1",), ("latin-1",)):
            self.stack.append(arguments[0].encode("latin-1"))
        else:
            raise self._refused(f"a call of {name.meaning}")

    def build(self) -> None:
        """Gives the record below the top its state."""
        record, state = self._pop(2)
        if isinstance(record, _Array):
            record.state = state
        elif not isinstance(record, _Dtype):
            raise ValueError("a state for something that is no array")
        self.stack.append(record)


_RULES: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.stack.append(_Mark()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine._pop_mark())),
    "SETITEM": lambda machine, _: machine.set_items(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine._pop_mark()),
    "APPEND": lambda machine, _: machine.append(machine._pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine._pop_mark()),
    "BINPUT": lambda machine, index: machine.memoise(index),
    "LONG_BINPUT": lambda machine, index: machine.memoise(index),
    "MEMOIZE": lambda machine, _: machine.memoise(None),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, text: machine.name(text),
    "STACK_GLOBAL": lambda machine, _: machine.name(None),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
