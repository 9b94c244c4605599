"""Checkpoints, written atomically and verified when read.

    DIRECTORY/step-00000500/{model,ema,optim}.safetensors  manifest.json
    DIRECTORY/latest                                       the name of the newest, for other tools

Of a run that is shared `model` and `optim` have no tensors, and then no file.

A checkpoint is written into a hidden directory, which is synced and then renamed; after that the
pointer is replaced and old checkpoints are removed. At every moment the directory therefore has
the old checkpoint, the new one or both. The manifest has dtype, shape and SHA-256 of each tensor
and a checksum of itself, and a fixed spelling, so every changed bit is detected. There is no
pickle, so nothing is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from diffflow_ext.data.formats.reading import open_file, read_bytes

from .folders import (
    GROUPS,
    KIND,
    MAX_MANIFEST_BYTES,
    TEMPORARY,
    CheckpointError,
    remove,
    remove_checkpoint,
    step_directories,
    step_of,
    sweep,
)

FORMAT_VERSION = 1

# Errors of reading damaged files.
_BROKEN = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
    SafetensorError,
)

Tensors = Mapping[str, Tensor]


class _NewerFormatError(CheckpointError):
    """A whole checkpoint of a newer format, which an older one must not silently replace."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Arguments:
        step: Completed training steps.
        model: Weights by name.
        ema: Averaged weights by name.
        optim: State of the optimiser by flat name.
        meta: JSON data of the writer.
    """

    step: int
    model: Tensors
    ema: Tensors
    optim: Tensors
    meta: dict[str, Any]

    def __repr__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self.model.values())
        return f"Checkpoint(step {self.step:,}, {len(self.model)} tensors of {numbers:,} numbers)"


def save_checkpoint(directory: str | Path, checkpoint: Checkpoint, keep: int = 3) -> Path:
    """Writes a checkpoint durably, then removes all but the newest `keep`; returns its directory.

    Arguments:
        directory: The directory of all checkpoints, created if missing.
        checkpoint: The checkpoint; `meta` must be JSON data with finite numbers.
        keep: The number of checkpoints to keep, including the new one; at least 1.

    Raises:
        ValueError: If `keep` is less than 1, or there is a whole checkpoint of this step.
        CheckpointError: If writing fails; earlier checkpoints are unchanged.
    """
    if keep < 1:
        raise ValueError(f"save_checkpoint: keep={keep}: expected at least 1")
    directory = Path(directory)
    target = directory / f"step-{checkpoint.step:08d}"
    files = _encode(checkpoint)
    _refuse_whole(target)
    with _explained(directory, sum(map(len, files.values()))):
        directory.mkdir(parents=True, exist_ok=True)
        _write_aside_and_rename(target, files)
        _replace_pointer(directory, target.name)
        _prune(directory, checkpoint.step, keep)
    return target


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Returns the checkpoint in one `step-…` directory after verifying all of it.

    Raises:
        CheckpointError: If anything is missing, damaged, foreign, or of a newer format.
    """
    directory = Path(directory)
    try:
        return _read(directory)
    except _BROKEN as error:
        # Some errors of libraries say nothing but their name.
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{directory}: not a whole checkpoint: {reason}") from error


def load_latest(directory: str | Path) -> Checkpoint:
    """Returns the newest whole checkpoint, with a warning for each newer damaged one.

    Raises:
        CheckpointError: If there is none, or the newest is of a newer format.
    """
    directory, damaged = Path(directory), list[str]()
    out = shlex.quote(str(directory.parent))
    for candidate in step_directories(directory):
        try:
            checkpoint = load_checkpoint(candidate)
        except _NewerFormatError:
            raise
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warnings.warn(
                f"{message}; falling back to {candidate.name}, an older one, from which `diffflow"
                f" train --out {out} --resume` goes on",
                stacklevel=2,
            )
        return checkpoint
    if not damaged:
        raise CheckpointError(
            f"{directory}: no checkpoint there; `diffflow train --out {out} --resume` trains from"
            " the start"
        )
    config = shlex.quote(str(directory.parent / "config.toml"))
    raise CheckpointError(
        f"{'; '.join(damaged)}; no other is whole: train again, `diffflow train --config"
        f" {config} --out {out} --overwrite`"
    )


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Returns the bytes of each file by name."""
    groups = {name: _plain(getattr(checkpoint, name)) for name in GROUPS}
    groups = {name: tensors for name, tensors in groups.items() if tensors or name == "ema"}
    files = {f"{name}.safetensors": safetensors.torch.save(groups[name]) for name in groups}
    described = {
        f"{name}.safetensors": {
            "bytes": len(files[f"{name}.safetensors"]),
            "sha256": _digest(files[f"{name}.safetensors"]),
            "tensors": {key: _describe(value) for key, value in groups[name].items()},
        }
        for name in groups
    }
    body = {
        "kind": KIND,
        "format": FORMAT_VERSION,
        "step": checkpoint.step,
        "meta": checkpoint.meta,
        "files": described,
    }
    files["manifest.json"] = _spell(body | {"checksum": _digest(_spell(body))})
    return files


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    """Returns copies on the CPU that share no memory, in the order of their names."""
    copies = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return {name: tensor.clone() for name, tensor in copies.items()}


def _describe(tensor: Tensor) -> dict[str, Any]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "sha256": _digest(data)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _spell(values: Mapping[str, Any]) -> bytes:
    """Returns the fixed spelling of a manifest."""
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _refuse_whole(target: Path) -> None:
    if not target.exists():
        return
    try:
        load_checkpoint(target)
    except _NewerFormatError:
        raise
    except CheckpointError:
        return
    raise ValueError(f"save_checkpoint: {target} is there already and whole")


@contextlib.contextmanager
def _explained(directory: Path, needed: int) -> Iterator[None]:
    """Turns a failed write into a CheckpointError, after removing its remains."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            sweep(directory)
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{error.filename or directory}: cannot write the checkpoint, which needs"
            f" {needed} bytes: {reason}; earlier checkpoints are untouched"
        ) from error


def _write_aside_and_rename(target: Path, files: Mapping[str, bytes]) -> None:
    aside = target.with_name(f"{TEMPORARY}{target.name}")
    remove(aside)
    aside.mkdir()
    for name, data in files.items():
        _write_synced(aside / name, data)
    _sync_directory(aside)
    if target.exists():
        remove_checkpoint(target)
    os.rename(aside, target)
    _sync_directory(target.parent)


def _replace_pointer(directory: Path, name: str) -> None:
    aside = directory / f"{TEMPORARY}latest"
    _write_synced(aside, f"{name}\n".encode())
    os.replace(aside, directory / "latest")
    _sync_directory(directory)


def _prune(directory: Path, step: int, keep: int) -> None:
    """Removes older checkpoints; newer ones are damaged and do not count."""
    older = [entry for entry in step_directories(directory) if step_of(entry) < step]
    for entry in older[keep - 1 :]:
        remove_checkpoint(entry)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows can't open a directory, and syncs its entries itself.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(directory: Path) -> Checkpoint:
    manifest = _read_manifest(directory / "manifest.json")
    step = manifest["step"]
    if directory.name != f"step-{step:08d}":
        raise CheckpointError(f"{directory}: its manifest belongs to step {step}")
    groups = {name: _read_group(directory, name, manifest["files"]) for name in GROUPS}
    return Checkpoint(step=step, meta=manifest["meta"], **groups)


def _read_manifest(path: Path) -> dict[str, Any]:
    data = read_bytes(
        "checkpoint", path, MAX_MANIFEST_BYTES, "it is no manifest of a checkpoint; train again"
    )
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise CheckpointError(f"{path}: not the manifest of a {KIND}")
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    if data != _spell(manifest) or manifest["checksum"] != _digest(_spell(body)):
        raise CheckpointError(f"{path}: its checksum doesn't match: the file is damaged")
    if manifest["format"] != FORMAT_VERSION:
        raise _NewerFormatError(
            f"{path}: checkpoint format {manifest['format']}, but this version of diffflow_ext"
            f" reads format {FORMAT_VERSION}; update diffflow_ext"
        )
    return manifest


def _read_group(directory: Path, group: str, files: Mapping[str, Any]) -> dict[str, Tensor]:
    path = directory / f"{group}.safetensors"
    if group != "ema" and path.name not in files:
        return {}
    expected = files[path.name]
    data = _read_tensors(path, expected)
    tensors = safetensors.torch.load(data)
    if tensors.keys() != expected["tensors"].keys():
        raise CheckpointError(f"{path}: its tensors aren't those of the manifest")
    for name, tensor in tensors.items():
        if _describe(tensor) != expected["tensors"][name]:
            raise CheckpointError(f"{path}: tensor {name!r} is damaged")
    if _digest(data) != expected["sha256"]:
        raise CheckpointError(f"{path}: its checksum doesn't match: the file is damaged")
    return tensors


def _read_tensors(path: Path, expected: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a file of tensors, whose size must be that of header and tensors."""
    with open_file("checkpoint", path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path}: expected {expected['bytes']} bytes, got {size}")
        header = int.from_bytes(stream.read(8), "little")
        needed = sum(map(_size_of, expected["tensors"].values()))
        if header > MAX_MANIFEST_BYTES or 8 + header + needed != size:
            raise CheckpointError(
                f"{path}: expected {needed} bytes of tensors behind a header of {header}, got"
                f" {size} bytes: the file is damaged"
            )
        stream.seek(0)
        return stream.read(size)


def _size_of(description: Mapping[str, Any]) -> int:
    """Returns the bytes of a tensor by its description in a manifest."""
    dtype = getattr(torch, description["dtype"].removeprefix("torch."))
    return math.prod(description["shape"]) * dtype.itemsize
