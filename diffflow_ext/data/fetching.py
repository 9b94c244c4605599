"""Downloads public data sets into the folder of named sets, checked by SHA-256."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .formats.reading import optional_package
from .sets.home import data_home


class FetchError(OSError):
    """A failed download: no network, no disk space, or unexpected bytes."""


@dataclass(frozen=True)
class _Source:
    """The source of a set: `files` are the SHA-256 and the names of the files under `url`."""

    url: str
    files: str

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file."""
        pairs = (line.split() for line in self.files.strip().splitlines())
        return {name: digest for digest, name in pairs}


_SOURCES = {
    "mnist": _Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  t10k-labels-idx1-ubyte.gz
""",
    ),
    "fashion-mnist": _Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        """
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845  train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5  t10k-labels-idx1-ubyte.gz
""",
    ),
    "cifar10": _Source(
        "https://www.cs.toronto.edu/~kriz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd  cifar-10-binary.tar.gz",
    ),
}

FETCHABLE: Mapping[str, str] = MappingProxyType(
    {name: source.url for name, source in _SOURCES.items()}
)


def fetch(name: str, dest: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a data set.

    Files that are present and correct are kept. A file gets its name only when it is complete and
    checked, so an interrupted download leaves no partial file.

    Arguments:
        name: A key of `FETCHABLE`: `mnist`, `fashion-mnist` or `cifar10`.
        dest: The folder for the files; by default the set's folder in `data_home`.

    Returns:
        The folder, which `open_dataset` takes.

    Raises:
        ImportError: If the package pooch, which downloads, is not installed.
        ValueError: If `name` is no such set.
        FetchError: If the server cannot be reached, its bytes differ, or the folder cannot be
            written.
    """
    if name not in _SOURCES:
        raise ValueError(
            f"fetch: expected one of {', '.join(_SOURCES)}, got {name!r}; other sets must be "
            "brought by hand (diffflow data list)"
        )
    pooch = optional_package("fetch", "pooch", "downloads")
    source = _SOURCES[name]
    folder = data_home() / name if dest is None else Path(dest)
    for file, digest in source.digests.items():
        try:
            present = (folder / file).exists()
            path = pooch.retrieve(f"{source.url}/{file}", f"sha256:{digest}", file, folder)
            if not present:
                os.chmod(path, 0o644)  # pooch makes files readable only by their owner.
        # A wrong hash is a ValueError, failures of network and disk are OSErrors.
        except (ValueError, OSError) as error:
            raise FetchError(
                f"fetch: expected {file} with SHA-256 {digest} from {source.url} in "
                f"{str(folder)!r}, got {type(error).__name__}: {error}; check the network and the "
                f"folder (DIFFFLOW_DATA), or bring the files of {name} there by hand"
            ) from error
    return folder
