"""Members of zip and tar archives, read in memory: nothing is extracted, sizes are bounded."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from .reading import (
    Refused,
    check_file,
    check_size,
    read_bounded,
    read_file,
    unpack,
    unpacked_limit,
)

# Errors of damaged archives, including those of decoders inside zipfile and tarfile.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ArithmeticError),
    *(ValueError, LookupError, RuntimeError, AttributeError, TypeError),
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound
ENCRYPTED = 1  # the bit among a member's flags


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


def read_zip(
    op: str, file: Path, wanted: Callable[[str], bool], limit: int
) -> Iterator[tuple[str, bytes]]:
    """Lists the wanted files of a zip archive; returns their sources and bytes, by name, as read.

    Archives that are damaged, encrypted, packed with another method than deflate, have a name
    twice, unpack to far more than their size or to a file above `limit` bytes are refused.
    """
    check_file(op, file)
    with _damage(op, str(file), "a zip archive"):
        archive = zipfile.ZipFile(file)
        members = [info for info in archive.infolist() if wanted(info.filename)]
    members.sort(key=lambda info: info.filename)
    _check_members(op, file, members)
    return _unpacked(op, file, archive, members, limit)


def _check_members(op: str, file: Path, members: list[zipfile.ZipInfo]) -> None:
    last = None
    for member in members:
        source = _in_zip(file, member)
        if member.filename == last:
            raise Refused(
                f"{op}: expected each name once, {source!r} comes twice; pack the files anew"
            )
        last = member.filename
        if member.flag_bits & ENCRYPTED:
            raise Refused(
                f"{op}: expected files without a password, {source!r} is encrypted; unpack the "
                "archive and name the folder"
            )
        if member.compress_type not in METHODS:
            raise Refused(
                f"{op}: expected deflated or stored files, {source!r} is packed in a rare "
                "way; pack the files anew"
            )


def _unpacked(
    op: str, file: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], limit: int
) -> Iterator[tuple[str, bytes]]:
    left = unpacked_limit(file.stat().st_size)
    with archive:
        for member in members:
            source = _in_zip(file, member)
            check_size(op, source, member.file_size, min(left, limit))
            # The stated size may be wrong.
            with (
                _damage(op, str(file), "a zip archive"),
                archive.open(member) as stream,
            ):
                data = read_bounded(op, cast(BinaryIO, stream), source, min(left, limit))
            left -= len(data)
            yield source, data


def _in_zip(file: Path, member: zipfile.ZipInfo) -> str:
    return f"{file}[{member.filename[:80]}]"


def read_tar(op: str, file: Path, names: Collection[str]) -> dict[str, bytes]:
    """Returns the bytes of files of a tar archive, by the last parts of their paths.

    The archive may be gzipped; links and missing names are skipped. Archives that are damaged,
    unpack to far more than their size, or have a name twice are refused.
    """
    data = read_file(op, file)
    if data[:2] == b"\x1f\x8b":
        data = unpack(op, data, str(file))
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
                    f"{op}: expected one {name!r} in {str(file)!r}, it has two; get "
                    "the archive again"
                )
            found[name] = cast(BinaryIO, archive.extractfile(member)).read()
    return found
