"""Helpers of all formats: optional packages, and reading of bytes with checks and limits."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import os
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 8 << 30
# Data are compressed about 10 times, decompression bombs 1000 times; small files may be either.
MAX_RATIO = 100
SMALL_BYTES = 64 << 20
NAME_DATA = "name a file with the data"
SAVE_LESS = "save a part of it"


class Refused(ValueError):
    """An error of this package, distinct from those of libraries."""


def optional_package(op: str, name: str, purpose: str) -> Any:
    """Imports an optional package, or raises an ImportError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{op}: expected the package {name.partition('.')[0]}, which {purpose}, and it is not "
            "installed; run: pip install 'diffflow_ext[data]'"
        ) from error


def read_file(op: str, file: Path, limit: int | None = None) -> bytes:
    """Returns the bytes of a regular file, not empty and of at most `limit` bytes."""
    check_file(op, file)
    return read_bytes(op, file, limit)


def read_bytes(op: str, file: Path, limit: int | None = None, hint: str = "") -> bytes:
    """Returns the bytes of a regular file, perhaps none and at most `limit`."""
    with open_file(op, file, hint or NAME_DATA) as stream:
        size = os.fstat(stream.fileno()).st_size
        check_size(op, str(file), size, limit, hint or SAVE_LESS)
        return stream.read(size)  # A file may grow while it is read.


def open_file(op: str, file: Path, hint: str = NAME_DATA) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading; errors are those of `check_file`.

    It never waits: without O_NONBLOCK the system would wait for a writer of a pipe.
    """

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    check_file(op, file, hint, may_be_empty=True)
    stream = open(file, "rb", opener=opener)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # It was replaced after the check.
        stream.close()
        raise Refused(f"{op}: expected a file, got something else at {str(file)!r}; {hint}")
    return stream


def check_file(op: str, file: Path, hint: str = NAME_DATA, *, may_be_empty: bool = False) -> None:
    """Raises FileNotFoundError or ValueError unless `file` is a regular file with data.

    Every reader calls this before it opens a file: to open a pipe may wait forever, and devices
    never end. Files of /proc, which do not end either, state a size of 0 bytes.
    """
    if not os.path.exists(file):
        found = "a link that leads nowhere" if os.path.islink(file) else "nothing"
        raise FileNotFoundError(
            f"{op}: expected a file, found {found} at {str(file)!r}; check the path "
            f"(the current folder is {os.getcwd()!r})"
        )
    if not os.path.isfile(file):
        kind = "the folder" if os.path.isdir(file) else "a socket, device or pipe at"
        raise Refused(f"{op}: expected a file, got {kind} {str(file)!r}; {hint}")
    if not os.access(file, os.R_OK):
        raise Refused(
            f"{op}: expected a readable file, {str(file)!r} is none; check its permissions"
        )
    if not may_be_empty and not os.path.getsize(file):
        raise Refused(
            f"{op}: expected data, {str(file)!r} is empty; check how it was written or downloaded"
        )


def check_size(
    op: str, source: str, size: int, limit: int | None = None, hint: str = SAVE_LESS
) -> None:
    """Raises a ValueError if `size` is above `limit`, by default `MAX_BYTES`."""
    limit = MAX_BYTES if limit is None else limit
    if size > limit:
        raise Refused(f"{op}: expected at most {limit:,} bytes, {source!r} has {size:,}; {hint}")


def unpacked_limit(packed: int, small: int | None = None) -> int:
    """Returns the largest accepted size of `packed` bytes after unpacking.

    `small`, by default `SMALL_BYTES`, is always accepted.
    """
    return min(MAX_BYTES, max(SMALL_BYTES if small is None else small, MAX_RATIO * packed))


def read_bounded(op: str, stream: BinaryIO, source: str, limit: int) -> bytes:
    """Reads a stream to its end, and refuses more than `limit` bytes."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise Refused(
            f"{op}: expected at most {limit:,} bytes in {source!r}, it unpacks to more; a file "
            "that grows so much is damaged or hostile: unpack it by hand if you trust it"
        )
    return data


def unpack(op: str, data: bytes, source: str, kind: str = "gzip") -> bytes:
    """Unpacks "gzip", "bzip2" or "xz" data, and refuses more than `unpacked_limit` bytes."""
    opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind]
    try:
        with opener(io.BytesIO(data)) as stream:
            return read_bounded(op, stream, source, unpacked_limit(len(data)))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Refused(
            f"{op}: expected {kind} data, {source!r} cannot be unpacked "
            f"({type(error).__name__}: {error}); the file is cut or damaged, get it again"
        ) from error


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
