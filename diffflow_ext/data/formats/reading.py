"""What all formats share: optional packages, and bytes that are checked and bounded."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 8 << 30
# Data compress ten times, bombs a thousand times; what is small may be either.
MAX_RATIO = 100
SMALL_BYTES = 64 << 20


class Refused(ValueError):
    """A message of ours, to be told from the libraries' errors."""


def optional_package(op: str, name: str, purpose: str) -> Any:
    """Imports a module of a package that only some sets need.

    Raises:
        ImportError: If the package is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{op}: expected the package {name.partition('.')[0]}, which {purpose}, and it is not "
            "installed; run: pip install 'diffflow_ext[data]'"
        ) from error


def read_file(op: str, file: Path, limit: int | None = None) -> bytes:
    """Reads a regular file that is not empty.

    Arguments:
        op: The function that asks, for the message.
        file: The file.
        limit: The largest accepted size in bytes, `MAX_BYTES` if None.

    Returns:
        Its bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file, cannot be read, is empty or too large.
    """
    check_file(op, file)
    check_size(op, str(file), file.stat().st_size, limit)
    data = file.read_bytes()
    if not data:
        raise Refused(
            f"{op}: expected data, {str(file)!r} is empty; check how it was written or downloaded"
        )
    return data


def check_file(op: str, file: Path) -> None:
    """Raises FileNotFoundError or ValueError unless `file` is a regular file that may be read."""
    if not os.path.exists(file):
        raise FileNotFoundError(
            f"{op}: expected a file, found nothing at {str(file)!r}; check the path "
            f"(the current folder is {os.getcwd()!r})"
        )
    if not file.is_file():
        kind = "the folder" if file.is_dir() else "a device or pipe at"
        raise Refused(
            f"{op}: expected a file, got {kind} {str(file)!r}; name a file with the data"
        )
    if not os.access(file, os.R_OK):
        raise Refused(
            f"{op}: expected a readable file, {str(file)!r} is none; check its permissions"
        )


def check_size(op: str, source: str, size: int, limit: int | None = None) -> None:
    """Raises ValueError where `size` bytes are more than `limit`, by default `MAX_BYTES`."""
    limit = MAX_BYTES if limit is None else limit
    if size > limit:
        raise Refused(
            f"{op}: expected at most {limit:,} bytes, {source!r} has {size:,}; save a part of it"
        )


def unpacked_limit(packed: int) -> int:
    """Returns how many bytes `packed` compressed ones may become before they count as a bomb."""
    return min(MAX_BYTES, max(SMALL_BYTES, MAX_RATIO * packed))


def read_bounded(op: str, stream: BinaryIO, source: str, limit: int) -> bytes:
    """Reads a stream to its end, and refuses one that holds more than `limit` bytes."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise Refused(
            f"{op}: expected at most {limit:,} bytes in {source!r}, it unpacks to more; a file "
            "that grows so much is damaged or hostile: unpack it by hand if you trust it"
        )
    return data


def gunzip(op: str, data: bytes, source: str) -> bytes:
    """Unpacks gzip data in bounded memory.

    Raises:
        ValueError: If the data are cut or damaged, or grow beyond `unpacked_limit`.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return read_bounded(op, stream, source, unpacked_limit(len(data)))  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(
            f"{op}: expected gzip data, {source!r} cannot be unpacked "
            f"({type(error).__name__}: {error}); the file is cut or damaged, get it again"
        ) from error


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
