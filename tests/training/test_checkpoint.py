"""Checkpoints that are read: whole or refused, whatever byte changes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_cases import FILES, equal, make, respell
from watching import opened

from diffflow_ext.training import Checkpoint, CheckpointError
from diffflow_ext.training.store import checkpoint as checkpoint_module
from diffflow_ext.training.store.checkpoint import (
    load_checkpoint,
    load_latest,
    save_checkpoint,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoints", make(5))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint of few bytes, for tests that try each of them."""
    tensors = {"w": torch.ones(3)}
    return save_checkpoint(tmp_path / "small", Checkpoint(5, tensors, tensors, tensors, {}))


def test_round_trip(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert (saved.parent / "latest").read_text() == "step-00000005\n"
    assert saved.name == "step-00000005"
    assert equal(load_checkpoint(saved), make(5))
    assert equal(load_latest(saved.parent), make(5))
    manifest = json.loads((saved / "manifest.json").read_bytes())
    assert (manifest["format"], manifest["step"]) == (checkpoint_module.FORMAT_VERSION, 5)
    described = manifest["files"]["model.safetensors"]["tensors"]
    assert described["half"]["dtype"] == "torch.bfloat16"
    assert len(described["empty"]["sha256"]) == 64


def test_views_and_shared_memory_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "b": base, "t": base.t(), "s": base[1:, ::2], "e": base[:1].expand(3, 4)}
    path = save_checkpoint(tmp_path, Checkpoint(1, tensors, {}, {}, {}))
    loaded = load_checkpoint(path).model
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", FILES)
def test_each_truncation_is_detected(small: Path, name: str) -> None:
    path = small / name
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(small)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_each_changed_bit_is_detected(small: Path, name: str, stride: int) -> None:
    """Every seventh bit lies in every byte, at all its places."""
    path = small / name
    data = bytearray(path.read_bytes())
    for bit in range(0, 8 * len(data), stride):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_checkpoint(small)
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("name", FILES)
def test_appended_byte_and_missing_file_are_detected(saved: Path, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved)


def test_damaged_tensor_is_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["net.weight"][1, 2] = 1.0000001
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'net\.weight' is dam"):
        load_checkpoint(saved)


def test_manifest_of_another_step_is_detected(saved: Path) -> None:
    other = saved.rename(saved.with_name("step-00000006"))
    with pytest.raises(CheckpointError, match="belongs to step 5"):
        load_checkpoint(other)


FORGERIES: list[Callable[[dict[str, Any]], object]] = [
    lambda body: body.pop("files"),
    lambda body: body.update(files=[]),
    lambda body: body.update(step="five"),
    lambda body: body["files"].pop("ema.safetensors"),
    lambda body: body["files"]["ema.safetensors"].update(tensors=None),
    lambda body: body["files"]["ema.safetensors"].update(tensors=[]),
    lambda body: body["files"]["ema.safetensors"]["tensors"].pop("half"),
    lambda body: body["files"]["ema.safetensors"].update(bytes=2**60),
    lambda body: body.update(kind="other"),
]


FOREIGN = [b"", b"[]", b"null", b"{}", b"[" * 200_000, b"1" * 5000, b"\xff\xfe{", b"\x80\x04."]


def test_forged_and_foreign_manifests_raise_the_one_error(saved: Path) -> None:
    path = saved / "manifest.json"
    good = path.read_bytes()
    for forge in FORGERIES:
        path.write_bytes(good)
        respell(saved, forge)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)
    for data in FOREIGN:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)


def test_nothing_in_a_hostile_checkpoint_is_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(canary),))

    trap, header = tmp_path / "trap.pickle", (2**60).to_bytes(8, "little") + b"{}"
    trap.write_bytes(pickle.dumps(Trap()))
    zipped = tmp_path / "zipped"
    torch.save(Trap(), zipped)
    hostile = {
        "pickle": ("model.safetensors", trap.read_bytes()),
        "torch": ("ema.safetensors", zipped.read_bytes()),
        "header": ("optim.safetensors", header),
        "manifest": ("manifest.json", trap.read_bytes()),
    }
    directories = []
    for kind, (name, data) in hostile.items():
        directory = save_checkpoint(tmp_path / kind, make(5))
        (directory / name).write_bytes(data)
        if name != "manifest.json":
            # Sizes and checksums that fit: the forger has thought of them.
            digest = hashlib.sha256(data).hexdigest()
            entry = {"bytes": len(data), "sha256": digest}
            respell(directory, lambda body, n=name, e=entry: body["files"][n].update(e))
        directories.append(directory)
    outside = save_checkpoint(tmp_path / "outside", make(5))
    respell(outside, lambda body: body["files"].update({"../../trap.pickle": {"bytes": 1}}))
    imports = "from diffflow_ext.training.store.checkpoint import load_checkpoint"
    outcomes = opened(imports, "load_checkpoint", [*directories, outside], trap)
    # A file that no checkpoint has is never opened.
    assert outcomes.pop(str(outside)) == "read"
    assert all(text.startswith("CheckpointError") for text in outcomes.values())
    # The control alone has left its mark.
    assert canary.is_dir()
