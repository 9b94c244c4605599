"""Changes of the process for the time of a training session: threads, generators, signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from tqdm.auto import tqdm

#: Seconds after which a second signal ends the process, if an operation doesn't let Python do so.
GRACE = 2.0


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
def signals(*, announce: bool) -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of ending the process; a second one ends it.

    With `announce`, a line on stderr tells so when the first one arrives.
    """
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
        with _watched(announce):
            yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watched(announce: bool) -> Iterator[None]:
    """Watches signals in a thread: Python's handlers wait for the end of a compiled operation."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, announce), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _watch(reader: int, announce: bool) -> None:
    """Reads the numbers of signals from a pipe until it's closed."""
    seen = 0
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        seen += 1
        if seen == 1 and announce:
            name = signal.Signals(number[0]).name
            text = f"diffflow: {name}: finishing this step, then saving; a second one ends at once"
            with contextlib.suppress(OSError, ValueError):  # Nobody may listen any more.
                tqdm.write(text, file=sys.stderr)
        # A pipe that is closed can be read, too. Notebooks, with all their state, are not ended.
        if seen > 1 and not select.select([reader], [], [], GRACE)[0] and not hasattr(sys, "ps1"):
            os._exit(128 + number[0])
