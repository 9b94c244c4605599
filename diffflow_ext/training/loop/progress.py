"""Progress of a training: a bar on a terminal or in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm.auto import tqdm

#: Between two lines where there is no terminal.
SECONDS = 30.0


class Progress:
    """Shows how far a training is, on stderr.

    Arguments:
        steps: All steps.
        done: Steps done before.
        shown: True for the bar, False for nothing, None for the bar on a terminal and in a
            notebook, and for lines elsewhere.
    """

    def __init__(self, steps: int, done: int, shown: bool | None) -> None:
        self.steps = steps
        disabled = None if shown is None else not shown
        self.bar = tqdm(total=steps, initial=done, disable=disabled, unit="step")
        self.has_lines = shown is None and bool(self.bar.disable)
        self.last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.bar.close()

    def update(self) -> None:
        """Counts a step."""
        self.bar.update()

    def show(self, step: int, text: str) -> None:
        """Shows what is known after a step, counted from 1."""
        self.bar.set_postfix_str(text)
        if self.has_lines and time.monotonic() - self.last >= SECONDS:
            self.last = time.monotonic()
            print(f"step {step:,} of {self.steps:,}: {text}", file=sys.stderr, flush=True)
