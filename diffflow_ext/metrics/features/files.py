"""Extractors in files, which are never executed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from .digits import DigitClassifier, DigitExtractor, hash_of

KIND = "diffflow_ext extractor 1"
MAX_EXTRACTOR_BYTES = 2**24
# What reading a file that holds anything at all can raise.
_BROKEN = (ValueError, LookupError, TypeError, RuntimeError, RecursionError, SafetensorError)


def save_extractor(path: str | os.PathLike[str], extractor: DigitExtractor) -> Path:
    """Writes a trained extractor as .safetensors, with its name and hash.

    A reader finds the old file or the new one, never a part.

    Raises:
        ValueError: If the path doesn't end in .safetensors.
        OSError: If it can't be written.
    """
    file = Path(path)
    if file.suffix.lower() != ".safetensors":
        raise ValueError(
            f"save_extractor: expected a path ending in .safetensors, got {str(file)!r}; add the "
            "ending"
        )
    data = safetensors.torch.save(extractor.classifier.state_dict(), _describe(extractor))
    aside = file.with_name(f".tmp-{file.name}")
    aside.unlink(missing_ok=True)  # It may be a link, which isn't followed.
    try:
        aside.write_bytes(data)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    return file


def load_extractor(path: str | os.PathLike[str]) -> DigitExtractor:
    """Reads an extractor that `save_extractor` wrote, and checks its hash.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or something else.
    """
    file = Path(path)
    data = _read(file)
    try:
        return _decode(data)
    except _BROKEN as error:
        raise ValueError(
            f"load_extractor: expected {file} to be a file of save_extractor, got: {error}; "
            "train the extractor anew"
        ) from error


def _read(file: Path) -> bytes:
    """Returns the bytes of a regular file; never waits for the writer of a pipe."""
    try:
        stream = os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    except OSError as error:
        raise type(error)(
            f"load_extractor: expected a file of save_extractor at {str(file)!r}, got "
            f"{error.strerror!r}; check the path, or train one: diffflow extractor"
        ) from error
    with stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"load_extractor: expected a file, got a device or pipe at {str(file)!r}; check "
                "the path"
            )
        if status.st_size > MAX_EXTRACTOR_BYTES:
            raise ValueError(
                f"load_extractor: expected at most {MAX_EXTRACTOR_BYTES} bytes, {file} has "
                f"{status.st_size}; is it the right file?"
            )
        return stream.read(status.st_size)


def _describe(extractor: DigitExtractor) -> dict[str, str]:
    classifier = extractor.classifier
    described = {
        "kind": KIND,
        "name": extractor.name,
        "hash": extractor.hash,
        "size": str(classifier.size),
        "classes": str(classifier.num_classes),
        "weights": hash_of(classifier),
    }
    spelt = json.dumps(described, sort_keys=True).encode()
    return described | {"checksum": hashlib.sha256(spelt).hexdigest()}


def _decode(data: bytes) -> DigitExtractor:
    weights = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = header.get("__metadata__", {})
    if described.get("kind") != KIND:
        raise ValueError(f"the kind {described.get('kind')!r} instead of {KIND!r}")
    classifier = DigitClassifier(int(described["size"]), int(described["classes"]))
    classifier.load_state_dict(weights)
    extractor = DigitExtractor(classifier, described["name"])
    if described != _describe(extractor):
        raise ValueError("a description that doesn't fit the weights: a bit has changed")
    return extractor
