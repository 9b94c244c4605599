"""One section of the check, in a process of its own: calls a function and keeps what it records.

    python -m benchmarks.gpu.section MODULE:FUNCTION DEVICE FILE [ARGUMENT ...]

A row is written at once, so that it outlives the process, however that ends. Rows are measurements
or, with a `test`, checks. Each can have a `status`, passed, failed or skipped, and the reason.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """Appends rows to a file, one JSON a line."""

    path: Path

    def __call__(self, **row: Any) -> None:
        """Appends one row."""
        with self.path.open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")


def main(call: str, device: str, path: str, *arguments: str) -> None:
    """Calls the function."""
    module, _, function = call.partition(":")
    getattr(importlib.import_module(module), function)(device, Record(Path(path)), *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
