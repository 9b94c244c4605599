"""Which folders are checkpoints, and their removal: files of others stay where they are."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from diffflow_ext.data.formats.reading import read_bytes

KIND = "diffflow_ext checkpoint"
GROUPS = ("model", "ema", "optim")
FILES = {"manifest.json", *(f"{name}.safetensors" for name in GROUPS)}
TEMPORARY = ".tmp-"
# Larger files are no manifests and are not read.
MAX_MANIFEST_BYTES = 64 * 2**20
_STEP = re.compile(r"step-\d{8,}", re.ASCII)
# Names of interrupted saves.
_REMAINS = re.compile(r"\.tmp-(latest|(drop-)?step-\d{8,})", re.ASCII)


class CheckpointError(RuntimeError):
    """A checkpoint can't be written, is missing or damaged, or has a newer format."""


def step_directories(directory: str | Path) -> list[Path]:
    """Returns the `step-…` folders of a directory, newest first; none if it's missing.

    A folder that holds files of others alone is none of them.

    Raises:
        CheckpointError: If the directory can't be read.
    """
    try:
        entries = list(Path(directory).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{directory}: expected a folder of checkpoints, got: {error.strerror}; move it away,"
            " or check its permissions"
        ) from error
    steps = [entry for entry in entries if _STEP.fullmatch(entry.name)]
    return sorted(filter(_may_be_checkpoint, steps), key=step_of, reverse=True)


def _may_be_checkpoint(entry: Path) -> bool:
    try:
        names = {path.name for path in entry.iterdir()}
    except NotADirectoryError:
        return False
    except OSError:  # Loading it says why.
        return os.path.isdir(entry)
    return not names or not names.isdisjoint(FILES)


def holds_checkpoint(directory: Path) -> bool:
    """Returns whether a directory has a checkpoint of this package, perhaps a damaged one."""
    return any(_names_kind(entry / "manifest.json") for entry in step_directories(directory))


def _names_kind(manifest: Path) -> bool:
    try:
        return KIND.encode() in read_bytes("checkpoint", manifest, MAX_MANIFEST_BYTES)
    except (OSError, ValueError):
        return False


def sweep(directory: str | Path) -> None:
    """Removes the remains of interrupted saves; there must be no save in progress."""
    path = Path(directory)
    if not path.is_dir():
        return
    for entry in path.iterdir():
        if _REMAINS.fullmatch(entry.name):
            remove(entry)


def remove_checkpoints(directory: Path) -> None:
    """Removes all checkpoints, the oldest first, and nothing else."""
    sweep(directory)
    for entry in reversed(step_directories(directory)):
        remove_checkpoint(entry)
    if directory.is_dir():
        (directory / "latest").unlink(missing_ok=True)


def remove_checkpoint(entry: Path) -> None:
    """Removes a checkpoint, but for files of others in its folder.

    A folder of ours alone is renamed first: a part of it must not look like a checkpoint.
    """
    if entry.is_symlink():
        entry.unlink()
        return
    ours = [path for path in entry.iterdir() if path.name in FILES and not _is_folder(path)]
    if len(ours) < len(list(entry.iterdir())):
        for path in ours:
            path.unlink()
        return
    renamed = entry.with_name(f"{TEMPORARY}drop-{entry.name}")
    remove(renamed)
    os.rename(entry, renamed)
    remove(renamed)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def remove(entry: Path) -> None:
    """Removes a file, a link or a folder of ours, if it's there."""
    if _is_folder(entry):
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def step_of(entry: Path) -> int:
    """Returns the step in the name of a checkpoint's folder."""
    return int(entry.name.removeprefix("step-"))
