"""Libraries that only flows need."""

import importlib
from typing import Any


def library(op: str, name: str) -> Any:
    """Imports an optional library.

    Arguments:
        op: What needs it.
        name: The library.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # The library is there, and lacks something itself.
            raise
        raise ImportError(
            f"{op}: expected {name} to be installed; pip install 'diffflow_ext[flows]'", name=name
        ) from error
