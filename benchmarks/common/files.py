"""Where reports go, and how they are written. Imports nothing that must be installed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Reports that the pages show.
RESULTS = ROOT / "benchmarks" / "results"
#: Where programs write if not told otherwise; git ignores it.
WORK = ROOT / "runs"


def write_json(path: Path, value: Any) -> None:
    """Writes a file that readers find whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(aside, path)
