"""Changes of the process for the time of a training session: threads, generators, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM was received; the state was saved before this is raised."""

    def __init__(self, signum: int, saved: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; saved {saved}")
        self.signum = signum


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Sets the number of threads, unless it is None; refuses far more than processors."""
    before, most = torch.get_num_threads(), 4 * (os.cpu_count() or 1)
    if count is not None and count > most:
        raise ValueError(
            f"train: expected threads <= {most} on this machine, got {count}; take fewer"
        )
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def own_generator(device: torch.device) -> Iterator[None]:
    """Restores torch's generators at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of ending the process."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, handler in old.items():
            signal.signal(other, handler)

    for number in old:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
