"""Progress of long work: a bar on a terminal or in a notebook, a line now and then elsewhere.

Lines go to the logger ``diffflow_ext`` where logging is set up to take its level INFO, as after
``logging.basicConfig(level="INFO")``, and to stderr otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType

from tqdm.auto import tqdm

#: Between two lines where there is no bar.
SECONDS = 30.0
#: Before a bar is shown of work that is mostly short.
DELAY = 2.0
LOGGER = logging.getLogger("diffflow_ext")

_SHOWN: ContextVar[bool | None] = ContextVar("shown", default=None)


@contextlib.contextmanager
def show_progress(shown: bool | None) -> Iterator[None]:
    """Sets whether progress is shown of what is done inside.

    Arguments:
        shown: True for bars, False for nothing; None, as outside, for bars on a terminal and in a
            notebook, and elsewhere a line every half a minute.
    """
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


class Progress:
    """Shows how far some work is.

    Arguments:
        unit: What is counted, in the singular.
        total: How many there are in all.
        done: How many were done before.
        shown: As of `show_progress`, which None leaves to decide.
        delay: Seconds before a bar is shown.
    """

    def __init__(
        self,
        unit: str,
        total: int,
        done: int = 0,
        *,
        shown: bool | None = None,
        delay: float = 0.0,
    ) -> None:
        shown = _SHOWN.get() if shown is None else shown
        self.unit, self.total, self.before, self.done, self.text = unit, total, done, done, ""
        disabled = None if shown is None else not shown
        self.bar = tqdm(total=total, initial=done, disable=disabled, unit=unit, delay=delay)
        self.is_silent = shown is False
        self.has_lines = shown is None and bool(self.bar.disable)
        self.start = self.last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.bar.close()

    def say(self, lines: Iterable[str]) -> None:
        """Writes lines, unless nothing is to be shown."""
        if self.is_silent:
            return
        for line in lines:
            if LOGGER.isEnabledFor(logging.INFO) and LOGGER.hasHandlers():
                LOGGER.info(line)
            else:
                # Of a bar it is stdout in notebooks, where stderr is for errors.
                self.bar.write(line, getattr(self.bar, "fp", sys.stderr))

    def update(self, count: int, text: str | None = None) -> None:
        """Counts what was done, and keeps a text about it until the next one."""
        self.done += count
        if text is not None:
            self.text = text
            self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.has_lines and now - self.last >= SECONDS:
            self.last = now
            left = (now - self.start) * (self.total - self.done) / (self.done - self.before)
            parts = [self.text] * bool(self.text)
            if self.done < self.total:
                parts.append(f"about {tqdm.format_interval(left)} left")
            self.say([f"{self.unit} {self.done:,} of {self.total:,}: {', '.join(parts)}"])


def tracked(starts: range, total: int, unit: str, *, shown: bool = True) -> Iterator[int]:
    """Yields where pieces of work start, and shows how far it is once that takes long.

    Arguments:
        starts: Where each piece starts; all but the last have the length of its step.
        total: The end of the last one.
        unit: What is counted, in the singular.
        shown: Whether this process shows anything.
    """
    with Progress(unit, total, shown=None if shown else False, delay=DELAY) as progress:
        for start in starts:
            yield start
            progress.update(min(starts.step, total - start))
