"""From the folder of a run to its newest checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path

from .checkpoint import Checkpoint, load_latest, step_directories
from .directory import RunDirectory


def read_run(path: str | Path) -> Checkpoint:
    """Returns the newest whole checkpoint of a run.

    Raises:
        ValueError: If there is no run.
        CheckpointError: If it has no whole checkpoint.
    """
    run = RunDirectory(path)
    if run.root.is_file():
        raise ValueError(f"{path}: expected the folder of a run, got a file; name the folder")
    if not run.holds_run() and not step_directories(run.checkpoints):
        above = [parent for parent in run.root.absolute().parents[:2] if _holds_run(parent)]
        hint = f"diffflow train DATA --out {shlex.quote(str(path))} makes one"
        hint = f"the run is {shlex.quote(str(above[0]))}" if above else hint
        raise ValueError(f"{path}: no run there; {hint}")
    return load_latest(run.checkpoints)


def _holds_run(path: Path) -> bool:
    return RunDirectory(path).holds_run()
