"""Members of zip and tar archives, read in memory: nothing is extracted, sizes are bounded."""

from __future__ import annotations

import gzip
import io
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from .reading import Refused, check_file, check_size, read_bounded, unpacked_limit

__all__ = ["ZipReader", "open_zip", "read_tar"]


# What damaged archives raise: zipfile and tarfile let the errors of their decoders through.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ArithmeticError),
    *(ValueError, LookupError, RuntimeError, AttributeError, TypeError),
)


_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


_ENCRYPTED = 0x1


_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


_GZIP = b"\x1f\x8b"


class ZipReader:
    """The files of an open zip archive, and how many bytes may still be unpacked from it.

    Attributes:
        names: The names of the files, folders left out, in the order of the archive.
    """

    def __init__(self, op: str, archive: zipfile.ZipFile, source: str, size: int) -> None:
        self._op, self._archive, self._source = op, archive, source
        self._left = unpacked_limit(size)
        self._members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        self._check()
        self.names = list(self._members)

    def _check(self) -> None:
        names = self._archive.namelist()
        if len(set(names)) < len(names):
            raise self._refused("two members with one name")
        for info in self._members.values():
            if _is_trick(info):
                raise self._refused(
                    f"{info.filename[:80]!r}, which leaves the folder or is a link"
                )
            if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
                raise self._refused(f"{info.filename[:80]!r}, encrypted or packed in a rare way")

    def _refused(self, what: str) -> Refused:
        return Refused(
            f"{self._op}: expected an archive of plain, deflated or stored files, "
            f"{self._source!r} holds {what}; pack the files anew"
        )

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file, which count against the limit of the whole archive."""
        member, source = self._members[name], f"{self._source}[{name[:80]}]"
        check_size(self._op, source, member.file_size, self._left)
        with (
            _damage(self._op, self._source, "a zip archive"),
            self._archive.open(member) as stream,
        ):
            # The size that was stated may be a lie.
            data = read_bounded(self._op, cast(BinaryIO, stream), source, self._left)
        self._left -= len(data)
        return data


def _is_trick(info: zipfile.ZipInfo) -> bool:
    """Whether a name points out of its folder, or the member is a link or a device."""
    name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    path = PurePosixPath(name.replace("\\", "/"))
    escapes = path.is_absolute() or ".." in path.parts or _DRIVE.match(name) is not None
    return escapes or "\0" in name or kind not in (0, stat.S_IFREG)


@contextmanager
def open_zip(op: str, file: Path) -> Iterator[ZipReader]:
    """Opens a zip archive for reading.

    Arguments:
        op: The function that asks, for messages.
        file: The archive.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no zip archive, is damaged, encrypted or packed with another method
            than deflate, or holds links or names that leave its folder.
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


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes."""

    def __init__(self, op: str, stream: BinaryIO, source: str, limit: int) -> None:
        self._op, self._stream, self._source = op, stream, source
        self._limit = self._left = limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise Refused(
                f"{self._op}: expected at most {self._limit:,} bytes in {self._source!r}, it "
                "unpacks to more; a file that grows so much is damaged or hostile: unpack it by "
                "hand if you trust it"
            )
        return data


def read_tar(op: str, file: Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads files of a tar archive, which may be gzipped, in one pass.

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
    check_file(op, file)
    found: dict[str, bytes] = {}
    with _damage(op, str(file), "a tar archive"), file.open("rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if packed else raw)
        bounded = _Bounded(op, stream, str(file), unpacked_limit(file.stat().st_size))
        # "r|": one pass and no seeking, so that every byte that is unpacked counts.
        with tarfile.open(fileobj=cast(BinaryIO, bounded), mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isreg() and name in names:
                    found[name] = _unique(op, file, name, found, archive, member)
    return found


def _unique(
    op: str,
    file: Path,
    name: str,
    found: dict[str, bytes],
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
) -> bytes:
    stream = archive.extractfile(member)
    data = b"" if stream is None else stream.read()
    if name in found or len(data) != member.size:
        raise Refused(
            f"{op}: expected one whole {name!r} in {str(file)!r}, it stands there twice or is "
            "cut; get the archive again"
        )
    return data
