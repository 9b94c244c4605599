"""Checkpoints of tests, what makes two equal, and forged manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffflow_ext.training import Checkpoint
from diffflow_ext.training.store import checkpoint as checkpoint_module

FILES = ("manifest.json", "model.safetensors", "ema.safetensors", "optim.safetensors")


def make(step: int, value: float = 1.0) -> Checkpoint:
    tensors = {
        "net.weight": torch.full((2, 3), value),
        "count": torch.tensor(step),
        "empty": torch.zeros(0, 2),
        "half": torch.tensor([value], dtype=torch.bfloat16),
    }
    optim = {"net.weight.exp_avg": torch.full((2, 3), -value)}
    return Checkpoint(step, tensors, tensors, optim, {"seed": 3, "counters": {"elapsed": 0.1}})


def equal(a: Checkpoint, b: Checkpoint) -> bool:
    groups = ((getattr(a, name), getattr(b, name)) for name in checkpoint_module.GROUPS)
    same = all(x.keys() == y.keys() and all(_same(x[k], y[k]) for k in x) for x, y in groups)
    return same and (a.step, a.meta) == (b.step, b.meta)


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(x, y)


def respell(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and gives it a fitting checksum, as a forger or another version would."""
    path = directory / "manifest.json"
    body = json.loads(path.read_bytes())
    del body["checksum"]
    change(body)
    checksum = checkpoint_module._digest(checkpoint_module._spell(body))
    path.write_bytes(checkpoint_module._spell({**body, "checksum": checksum}))
