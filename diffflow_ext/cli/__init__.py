"""The command line: ``diffflow`` and ``python -m diffflow_ext``."""

from .program import main

__all__ = ["main"]
