"""The directory of a run, its lock and its log.

    RUN/config.toml  RUN/metrics.jsonl  RUN/checkpoints/  RUN/evaluation.json  RUN/figures/
    RUN/log_to.json or RUN/tensorboard/, of runs that are logged elsewhere too

When a run is resumed, its log is cut back to the step of the checkpoint, so it equals the log of
an uninterrupted run, except for times.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from diffflow_ext.data.formats.reading import open_file, read_bytes
from diffflow_ext.figures.panels import SOFTWARE

from ..config.files import is_configuration
from .examples import comes_with_package, run_folder
from .folders import holds_checkpoint, remove_checkpoints, step_directories, sweep

#: Pictures of an evaluation, in RUN/figures.
PICTURES = ("samples.png", "data.png", "trajectories.png", "loss.png")
#: The end of the names of our files in RUN/tensorboard.
EVENTS_SUFFIX = ".diffflow"
#: A longer log is not read: a line has about 200 bytes.
MAX_LOG_BYTES = 2**30


class RunDirectory:
    """The paths of a run in the directory `root`, or of one that comes with the package."""

    def __init__(self, root: str | Path) -> None:
        self.root = run_folder(root)
        self.config = self.root / "config.toml"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.evaluation = self.root / "evaluation.json"
        self.figures = self.root / "figures"
        self.log_to = self.root / "log_to.json"
        self.events = self.root / "tensorboard"
        self.lock = self.root / ".lock"
        #: Whether `opened` found no directory, or an empty one with the lock of a killed process.
        self.is_new = False

    def holds_run(self) -> bool:
        """Returns whether a run of this package is here: its configuration or a checkpoint."""
        return is_configuration(self.config) or holds_checkpoint(self.checkpoints)

    def check_kinds(self) -> None:
        """Refuses folders, pipes and the like where a run has files, and files for its folders."""
        files = (*self._files(), self.checkpoints / "latest")
        folders = (self.checkpoints, self.figures)
        kinds: list[tuple[Path, Callable[[Path], bool], str]]
        kinds = [(path, os.path.isfile, "a file") for path in files]
        kinds += [(path, os.path.isdir, "a folder") for path in folders]
        # Links are not followed here: opening a lock empties the file, and in a shared folder of
        # events those of other runs have the same endings.
        kinds.append((self.lock, _is_plain_file, "a file that is no link,"))
        kinds.append((self.events, _is_plain_folder, "a folder that is no link,"))
        for path, fits, kind in kinds:
            if os.path.lexists(path) and not fits(path):
                raise ValueError(
                    f"run directory {str(self.root)!r}: expected {kind} or nothing at"
                    f" {str(path)!r}, got {_kind_of(path)}; move it away, or choose another"
                )

    def foreign(self) -> list[Path]:
        """Returns files, not of a run, that a run here would replace."""
        paths = [*self._files(), self.checkpoints / "latest"]
        return [path for path in paths + step_directories(self.checkpoints) if path.exists()]

    def _files(self) -> tuple[Path, ...]:
        """Returns the files of a run in the directory itself."""
        return (self.config, self.metrics, self.evaluation, self.log_to)

    def pictures_of_others(self) -> list[Path]:
        """Returns what has the name of a picture of an evaluation and is none of this package.

        Of runs, pictures of earlier versions have only the mark of matplotlib.
        """
        marks = (SOFTWARE, "Matplotlib version") if self.holds_run() else (SOFTWARE,)
        paths = [self.figures / name for name in PICTURES]
        return [path for path in paths if os.path.lexists(path) and not _has_mark(path, marks)]

    def others(self) -> list[str]:
        """Returns the names in the directory, without that of the lock."""
        return sorted(path.name for path in self.root.iterdir() if path != self.lock)

    def begin(self, configuration: str) -> None:
        """Writes the configuration, after removing the remains of an interrupted session."""
        with explained(self.root):
            sweep(self.checkpoints)
            replace_text(self.config, configuration)

    def clear(self) -> None:
        """Removes the files of a run but for config.toml, and nothing else."""
        _, *files = self._files()
        with explained(self.root):
            remove_checkpoints(self.checkpoints)
            events = filter(
                _is_plain_file, self.events.glob(f"events.out.tfevents.*{EVENTS_SUFFIX}")
            )
            for path in (*files, *map(_aside, self._files()), *events):
                path.unlink(missing_ok=True)
            others = self.pictures_of_others()
            for path in (self.figures / name for name in PICTURES):
                if path not in others:
                    path.unlink(missing_ok=True)

    def write_evaluation(self, text: str) -> None:
        """Replaces evaluation.json."""
        with explained(self.root):
            replace_text(self.evaluation, text)

    def make_writable(self) -> None:
        """Creates the directory, if it is missing; an OSError says that it can't be written to.

        A ValueError says that it comes with the package.
        """
        if comes_with_package(self.root):
            raise ValueError(
                f"expected a folder to write to, got {str(self.root)!r}, a run that comes with the"
                " package; name a folder of yours (--out FOLDER)"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.root).close()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Locks the directory for one writer; creates it, and removes it if it stays empty.

        An OSError says that it can't be written to, a ValueError that another process has it.
        """
        existed, locked_before = self.root.exists(), os.path.lexists(self.lock)
        try:
            with explained(self.root):
                self.make_writable()
            self.is_new = not existed or (locked_before and not self.others())
            self.check_kinds()
            with _locked(self.lock):
                yield
        finally:
            if not locked_before and self.root.is_dir() and not is_configuration(self.config):
                self.lock.unlink(missing_ok=True)
                if not existed and not any(self.root.iterdir()):
                    self.root.rmdir()


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Says which run directory can't be written to, and what to do."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or root, error.strerror or str(error)
        raise type(error)(
            f"run directory {str(root)!r}: expected a folder that can be written to, got"
            f" {reason!r} at {str(place)!r}; choose another, or mend its permissions or its disk"
        ) from error


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _has_mark(path: Path, marks: Iterable[str]) -> bool:
    try:
        with open_file("evaluate", path) as stream:
            head = stream.read(1024)
        return any(mark.encode() in head for mark in marks)
    except (OSError, ValueError):
        return False


def _kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    if path.is_dir():
        return "a folder"
    return "a file" if path.is_file() else "a socket, device or pipe"


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
        self._root = path.parent
        lines = [line for line in read_metrics(path) if line["step"] <= step]
        with explained(self._root):
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
        with explained(self._root):
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on the disk."""
        with explained(self._root):
            os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl up to the first damaged one; none if it's missing.

    A ValueError says that it isn't a regular file, or is larger than `MAX_LOG_BYTES`.
    """
    lines: list[dict[str, Any]] = []
    if not os.path.lexists(path):
        return lines
    data = read_bytes("metrics", path, MAX_LOG_BYTES, "move it away")
    for text in data.decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            break
        lines.append(line)
    return lines


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    aside = _aside(path)
    # What is left there is not followed: it may be a link.
    aside.unlink(missing_ok=True)
    with aside.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _aside(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")
