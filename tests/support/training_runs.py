"""Training runs of tests: their data, what must not depend on interruptions, and a sudden end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import idx

from diffflow_ext.training import Config, train
from diffflow_ext.training.loop.state import TrainState
from diffflow_ext.training.store.checkpoint import step_directories

TIMING = ("samples_per_second", "elapsed")


class Kill(BaseException):
    """Stands for the end of the process: nothing catches it."""


def kill() -> None:
    raise Kill


def train_until_killed(config: Config, out: Path, step: int, resume: bool = False) -> None:
    """Trains until just before the optimiser takes a step, counted from 0."""
    with pytest.MonkeyPatch.context() as patch:
        before_update(patch, step, kill)
        with pytest.raises(Kill):
            train(config, out, resume=resume)


def before_update(patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Does something just before the optimiser takes a step, counted from 0."""
    real = TrainState.update

    def update(state: TrainState, learning_rates: Sequence[float]) -> None:
        if state.step == step:
            action()
        real(state, learning_rates)

    patch.setattr(TrainState, "update", update)


def outcome(out: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Returns what must not depend on interruptions: all tensors, and the log without times."""
    newest = step_directories(out / "checkpoints")[0]
    files = {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}
    lines = [
        {name: value for name, value in line.items() if name not in TIMING}
        for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    ]
    return files, lines


def write_table(path: Path, rows: int = 400, columns: int = 2, seed: int = 0) -> Path:
    """Writes correlated normals as a table with the columns c0, c1, ..."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).cumsum(1)
    head = ",".join(f"c{i}" for i in range(columns))
    path.write_text(f"{head}\n" + "".join(",".join(map(str, r)) + "\n" for r in values.tolist()))
    return path


def write_images(folder: Path, size: int, count: int = 100, held_out: int = 80) -> Path:
    """Writes grey images of blobs, whose label is their place, in the layout of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for role, n in (("train", count), ("t10k", held_out)):
        labels = generator.integers(0, 2, n).astype(np.uint8)
        images = generator.integers(0, 40, (n, size, size), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            start = 0 if label else size // 2
            image[: size // 2, start : start + size // 2] += 200
        (folder / f"{role}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{role}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder
