"""The command line: ``diffflow`` and ``python -m diffflow_ext``."""

from .commands import main

__all__ = [
    "main",
]
