"""Runs by several processes, and what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore

from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.directory import read_metrics

SMALL = ("--width", "16", "--depth", "1", "--num-steps", "4", "--log-every", "1")
POINTS = ("moons", *SMALL, "--batch-size", "10", "--steps", "4", "--threads", "1")


class Process(subprocess.Popen[str]):
    """A process of a group, and the store by which the group finds itself."""

    store: TCPStore


def start(
    size: int,
    *arguments: str,
    program: Sequence[str] = ("-m", "diffflow_ext"),
    folder: Path | None = None,
) -> list[Process]:
    """Starts the program in several processes, with the environment that torchrun gives them.

    The word RANK becomes a folder of each process's own. As torchrun does, this process holds the
    store: a port that process 0 of the group opened seconds later could be that of another test by
    then, and process 1 would wait for that one's answer.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    processes = list[Process]()
    for rank in range(size):
        own = str((folder or Path()) / str(rank))
        words = (sys.executable, *program, *(own if w == "RANK" else w for w in arguments))
        env = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(Process(words, env=env, **pipes, text=True))
        processes[-1].store = store
    return processes


def finished(processes: Sequence[Process], seconds: float = 240) -> list[tuple[int, str, str]]:
    """Returns exit code, stdout and stderr of each; all end after `seconds`, with what they said.

    A process that is killed then has the code -9.
    """
    deadline, ends = time.monotonic() + seconds, []
    try:
        for process in processes:
            try:
                said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                said = process.communicate()
            ends.append((process.returncode, *said))
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
