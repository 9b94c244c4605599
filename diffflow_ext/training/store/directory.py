"""The directory of a run, its lock and its log.

    RUN/config.toml  RUN/metrics.jsonl  RUN/checkpoints/  RUN/evaluation.json  RUN/figures/

When a run is resumed, its log is cut back to the step of the checkpoint, so it equals the log of
an uninterrupted run, except for times.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout


class RunDirectory:
    """The paths of a run in the directory `root`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.toml"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.evaluation = self.root / "evaluation.json"
        self.figures = self.root / "figures"
        self.lock = self.root / ".lock"

    def holds_run(self) -> bool:
        """Returns whether a run was started here."""
        return any(path.exists() for path in (self.config, self.metrics, self.checkpoints))

    def clear(self) -> None:
        """Removes the files of a run, and nothing else."""
        for path in (self.config, self.metrics, self.evaluation):
            path.unlink(missing_ok=True)
        for path in (self.checkpoints, self.figures):
            if path.exists():
                shutil.rmtree(path)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Locks the directory for one writer; creates it, and removes it if it stays empty.

        An OSError says that it can't be written to, a ValueError that another process has it.
        """
        existed = self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=self.root).close()
            with _locked(self.lock):
                yield
        finally:
            if not existed and {*self.root.iterdir()} <= {self.lock}:
                self.lock.unlink(missing_ok=True)
                self.root.rmdir()


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Holds a lock, which the system releases even if this process is killed."""
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"{lock.parent}: another process is training there") from error


class MetricsLog:
    """An open metrics.jsonl, without its lines after a step; 0 empties it."""

    def __init__(self, path: Path, step: int) -> None:
        lines = [line for line in read_metrics(path) if line["step"] <= step]
        replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends and flushes one line."""
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on the disk."""
        os.fsync(self._file.fileno())


class NoLog(MetricsLog):
    """The log of a process that writes nothing."""

    def __init__(self) -> None:
        self._file = io.StringIO()

    def write(self, values: Mapping[str, Any]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl up to the first damaged one; none if it's missing."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            break
        lines.append(line)
    return lines


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    aside = path.with_name(f".tmp-{path.name}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
