"""Runs by several processes, and what they leave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.directory import read_metrics

SMALL = ("--width", "16", "--depth", "1", "--num-steps", "4", "--log-every", "1")
POINTS = ("moons", *SMALL, "--batch-size", "10", "--steps", "4", "--threads", "1")


def start(
    size: int,
    *arguments: str,
    program: Sequence[str] = ("-m", "diffflow_ext"),
    folder: Path | None = None,
) -> list[subprocess.Popen[str]]:
    """Starts the program in several processes, with the environment that torchrun gives them.

    The word RANK becomes a folder of each process's own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [
                *(sys.executable, *program),
                *(str((folder or Path()) / str(rank)) if w == "RANK" else w for w in arguments),
            ],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def finished(
    processes: Sequence[subprocess.Popen[str]], seconds: float = 240
) -> list[tuple[int, str, str]]:
    """Returns exit code, stdout and stderr of each."""
    ends = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=seconds)
            ends.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ends


def run(size: int, *arguments: str) -> list[tuple[int, str, str]]:
    ends = finished(start(size, *arguments))
    assert [end[0] for end in ends] == [0] * size, ends
    return ends


def weights(folder: Path) -> dict[str, Tensor]:
    checkpoint = load_latest(folder / "checkpoints")
    named = {f"{group}.{k}": v for group in ("model", "ema", "optim")
             for k, v in getattr(checkpoint, group).items()}  # fmt: skip
    return {name: value.double() for name, value in named.items()}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def assert_like(folder: Path, other: Path) -> None:
    """The same run but for the order of sums."""
    assert losses(folder) == pytest.approx(losses(other), rel=1e-6)
    expected = weights(other)
    assert weights(folder).keys() == expected.keys()
    for name, value in weights(folder).items():
        # Adam divides by the root of the second moment: where a gradient is near 0, so is that.
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5, msg=name)
