"""Extractors, weights and features in files. None is executed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..npy import parse_npy
from ..points import points
from .digits import DigitClassifier, DigitExtractor
from .extractor import hash_of

__all__ = ["load_extractor", "load_features", "load_weights", "save_extractor"]


KIND = "diffflow_ext extractor 1"


MAX_EXTRACTOR_BYTES = 2**24


MAX_FEATURES_BYTES = 2**33  # a million rows of 2,048 in float32


# The first release in which weights_only=True keeps its promise (CVE-2025-32434).
SAFE_TORCH = (2, 6)


# What reading a file that holds anything at all can raise.
_BROKEN = (ValueError, LookupError, TypeError, RuntimeError, RecursionError, SafetensorError)


def save_extractor(path: str | os.PathLike[str], extractor: DigitExtractor) -> Path:
    """Writes a trained extractor as .safetensors, with its name and hash.

    A reader finds the old file or the new one, never a part.

    Raises:
        TypeError: If the extractor isn't one of `train_extractor`.
        ValueError: If the path doesn't end in .safetensors.
        OSError: If it can't be written.
    """
    file = Path(path)
    if not isinstance(extractor, DigitExtractor):
        raise TypeError(
            "save_extractor: expected an extractor of train_extractor, got "
            f"{type(extractor).__name__}; keep the weights of other modules by safetensors"
        )
    if file.suffix.lower() != ".safetensors":
        raise ValueError(
            f"save_extractor: expected a path ending in .safetensors, got {str(file)!r}; add the "
            "ending"
        )
    data = safetensors.torch.save(extractor.classifier.state_dict(), _describe(extractor))
    aside = file.with_name(f".tmp-{file.name}")
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
    data = _read("load_extractor", path, MAX_EXTRACTOR_BYTES)
    try:
        return _decode(data)
    except _BROKEN as error:
        raise ValueError(
            f"load_extractor: expected {path} to be a file of save_extractor, got: {error}; "
            "train the extractor anew"
        ) from error


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the weights of a network of your own, without executing anything.

    A file name that ends in a hash, as in pt_inception-2015-12-05-6726825d.pth, is checked
    against the SHA-256 of the file. Hand the result to `load_state_dict` of the network.

    Arguments:
        path: A .safetensors, .pth or .pt file that holds a flat state_dict. TorchScript archives
            are refused: to load one is to execute it.

    Returns:
        Tensors on the CPU by name.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If torch is too old to read .pth files safely.
        ValueError: If the file is damaged, another one than its name says, or no state_dict.
    """
    file = Path(path)
    _require_named_hash(file)
    if file.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except SafetensorError as error:
            raise ValueError(
                f"load_weights: expected {file} to be safetensors, got: {error}; fetch it anew"
            ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise RuntimeError(
            f"load_weights: expected torch >= 2.6 to read {file} without executing it, got "
            f"{torch.__version__}; update torch, or convert the file to safetensors"
        )
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # The classes differ between releases, and with what's broken.
        raise ValueError(
            f"load_weights: expected {file} to be a plain state_dict, got: "
            f"{str(error).splitlines()[0]}; it's damaged, or holds code, which isn't run here"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"load_weights: expected {file} to hold tensors by name, got {type(weights).__name__} "
            "of something else; save module.state_dict() alone"
        )
    return {str(name): value for name, value in weights.items()}


def load_features(path: str | os.PathLike[str]) -> Tensor:
    """Reads features that another tool extracted, from .npy, as float64 with shape (n, d).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, would need pickle, or holds no finite (n, d) numbers.
    """
    try:
        array = parse_npy(_read("load_features", path, MAX_FEATURES_BYTES))
        if array.dtype.kind == "U":
            raise ValueError("text")
    except _BROKEN as error:
        raise ValueError(
            f"load_features: expected {path} to be an .npy of numbers, got: {error}; write it "
            "with numpy.save"
        ) from error
    return points("load_features", "the features", array.astype(np.float64, copy=False), 1)


def _read(op: str, path: str | os.PathLike[str], most: int) -> bytes:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise ValueError(
                f"{op}: expected at most {most} bytes, {path} has {size}; is it the right file?"
            )
        return stream.read(size)


def _describe(extractor: DigitExtractor) -> dict[str, str]:
    classifier = extractor.classifier
    described = {
        "kind": KIND,
        "name": extractor.name,
        "hash": extractor.hash,
        "size": str(classifier.size),
        "classes": str(classifier.num_classes),
        "weights": hash_of(classifier, "float"),
    }
    spelt = json.dumps(described, sort_keys=True).encode()
    return described | {"checksum": hashlib.sha256(spelt).hexdigest()}


def _decode(data: bytes) -> DigitExtractor:
    found = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = header.get("__metadata__", {})
    if described.get("kind") != KIND:
        raise ValueError(f"the kind {described.get('kind')!r} instead of {KIND!r}")
    classifier = DigitClassifier(int(described["size"]), int(described["classes"]))
    expected = classifier.state_dict()
    if _layout(found) != _layout(expected):
        raise ValueError("other tensors than a classifier has")
    classifier.load_state_dict(found)
    extractor = DigitExtractor(classifier, described["name"])
    if described != _describe(extractor):
        raise ValueError("a description that doesn't fit the weights: a bit has changed")
    return extractor


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _require_named_hash(file: Path) -> None:
    named = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", file.name)
    # Eight decimal digits are rather a date.
    if named is None or re.fullmatch(r"\d{8}", named[1]):
        return
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    if not digest.hexdigest().startswith(named[1]):
        raise ValueError(
            f"load_weights: expected {file} to have the SHA-256 {named[1]}... of its name, got "
            f"{digest.hexdigest()[: len(named[1])]}...; fetch it anew"
        )
