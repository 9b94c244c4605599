"""The folder of the data sets that are known by name."""

from __future__ import annotations

import os
from pathlib import Path


def data_home() -> Path:
    """Returns the folder of the named sets; it need not exist.

    It is `$DIFFFLOW_DATA` if that is set and not empty, else `~/.cache/diffflow_ext`. Each set has
    a folder of its name in it: `mnist/train-images-idx3-ubyte`, `power/data.npy`.
    """
    chosen = os.environ.get("DIFFFLOW_DATA", "")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "diffflow_ext"
