"""Members of zip and tar archives, read in memory: nothing is extracted, sizes are bounded."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from .reading import (
    Refused,
    check_file,
    check_size,
    gunzip,
    read_bounded,
    read_file,
    unpacked_limit,
)

__all__ = ["ZipReader", "open_zip", "read_tar"]

# What damaged archives raise: zipfile and tarfile let the errors of their decoders through.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ArithmeticError),
    *(ValueError, LookupError, RuntimeError, AttributeError, TypeError),
)

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound


class ZipReader:
    """The files of an open zip archive, and how many bytes may still be unpacked from it.

    Attributes:
        names: The names of the files, folders left out, in the order of the archive.
    """

    def __init__(self, op: str, archive: zipfile.ZipFile, source: str, size: int) -> None:
        self._op, self._archive, self._source = op, archive, source
        self._left = unpacked_limit(size)
        self.names = [info.filename for info in archive.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file, which count against the limit of the whole archive."""
        source = f"{self._source}[{name[:80]}]"
        with _damage(self._op, self._source, "a zip archive"):
            member = self._archive.getinfo(name)
            if member.compress_type not in _METHODS:
                raise Refused(
                    f"{self._op}: expected deflated or stored files, {source!r} is packed in a "
                    "rare way; pack the files anew"
                )
            check_size(self._op, source, member.file_size, self._left)
            with self._archive.open(member) as stream:
                # The size that was stated may be a lie.
                data = read_bounded(self._op, cast(BinaryIO, stream), source, self._left)
        self._left -= len(data)
        return data


@contextmanager
def open_zip(op: str, file: Path) -> Iterator[ZipReader]:
    """Opens a zip archive for reading.

    Arguments:
        op: The function that asks, for messages.
        file: The archive.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no zip archive or is damaged.
    """
    check_file(op, file)
    with _damage(op, str(file), "a zip archive"):
        archive = zipfile.ZipFile(file)
    with archive:
        with _damage(op, str(file), "a zip archive"):
            reader = ZipReader(op, archive, str(file), file.stat().st_size)
        yield reader


@contextmanager
def _damage(op: str, source: str, kind: str) -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except _DAMAGE as error:
        raise Refused(
            f"{op}: expected {kind}, {source!r} cannot be read ({type(error).__name__}: "
            f"{error}); the file is cut or damaged, get it again"
        ) from error


def read_tar(op: str, file: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads files of a tar archive, which may be gzipped.

    Arguments:
        op: The function that asks, for messages.
        file: The archive.
        names: The last parts of the wanted files' paths (`data_batch_1`); links don't count.

    Returns:
        The bytes of those that are there, by the name asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no tar archive, is damaged or unpacks to far more than it holds, or a
            name stands there twice.
    """
    data = read_file(op, file)
    if data[:2] == b"\x1f\x8b":
        data = gunzip(op, data, str(file))
    found: dict[str, bytes] = {}
    with (
        _damage(op, str(file), "a tar archive"),
        tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive,
    ):
        for member in archive:
            name = PurePosixPath(member.name).name
            # Sparse members may state any size.
            if name not in names or not member.isreg() or member.issparse():
                continue
            if name in found:
                raise Refused(
                    f"{op}: expected one {name!r} in {str(file)!r}, it stands there twice; get "
                    "the archive again"
                )
            found[name] = cast(BinaryIO, archive.extractfile(member)).read()
    return found
