"""Callbacks: objects that follow a training and don't change it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffflow_ext.functional.checks import in_words

from ..config.fields import Config


class CallbackError(RuntimeError):
    """A callback has failed; its own error is the cause. Steps taken were saved before."""


@runtime_checkable
class Callback(Protocol):
    """What `train(callbacks=[...])` calls; a class that derives from it defines what it needs.

    Of several processes the first one calls, in the thread that trains, which waits. An error in
    a method ends the training with a :class:`CallbackError`. To end a training early, call
    ``signal.raise_signal(signal.SIGINT)``, which is as Ctrl-C.
    """

    def on_start(self, config: Config, out: Path, step: int) -> None:
        """Called once, before the first step, when data and model are ready.

        After an error nothing is trained, and a run that was to be overwritten is as it was.

        Arguments:
            config: The configuration, with all its defaults.
            out: The run directory. With `overwrite` it holds the old run until the first step of
                the new one is done, and is then cleared.
            step: The steps taken in earlier sessions, 0 for a new run. Lines of later steps, which
                a killed session may have logged, count no more: they come again.
        """

    def on_log(self, line: dict[str, float]) -> None:
        """Called for each line of metrics.jsonl, right after that was written.

        After an error the other callbacks get the line too, and the state is saved. What is no
        `Exception`, as of ``sys.exit``, ends the process at once, and the last save is what stays.

        Arguments:
            line: The line, with its `step`; a copy.
        """

    def on_end(self, error: BaseException | None) -> None:
        """Called once, at the end, when all is saved; only if `on_start` was without an error.

        An error here is a warning where the training itself has ended with one.

        Arguments:
            error: None if all steps are taken; otherwise what `train` raises, such as
                :class:`Interrupted`, :class:`TrainingError` or :class:`CallbackError`.
        """


class Callbacks:
    """Calls several callbacks, in their order."""

    def __init__(self, items: Sequence[Callback]) -> None:
        self.items = items
        self.started = list[Callback]()

    def on_start(self, config: Config, out: Path, step: int) -> None:
        """Starts each; those after one that fails aren't started."""
        for item in self.items:
            _call([item], "on_start", lambda item: item.on_start(config, out, step))
            self.started.append(item)

    def on_log(self, line: dict[str, float]) -> None:
        """Gives each a copy of a line."""
        mend = f"; step {line['step']} is saved: mend or drop the callback, and resume the run"
        _call(self.started, "on_log", lambda item: item.on_log({**line}), mend)

    def on_end(self, error: BaseException | None) -> None:
        """Ends those that were started."""
        try:
            _call(self.started, "on_end", lambda item: item.on_end(error))
        except CallbackError as failure:
            if error is None:
                raise
            warnings.warn(str(failure), stacklevel=2)


def checked_callbacks(items: Sequence[Callback]) -> list[Callback]:
    """Returns callbacks as a list, or raises a TypeError."""
    if isinstance(items, Callback) or not isinstance(items, Sequence):
        raise TypeError(f"train: callbacks={in_words(items)}: expected a list of callbacks")
    for item in items:
        if isinstance(item, type) or not isinstance(item, Callback):
            raise TypeError(
                "train: callbacks: expected objects with the methods on_start, on_log and on_end,"
                f" got {in_words(item)}; derive their class from training.Callback"
            )
    return list(items)


def _call(
    items: Sequence[Callback], method: str, call: Callable[[Callback], None], mend: str = ""
) -> None:
    """Calls all; then raises the first error, with the name of the class."""
    failures = list[CallbackError]()
    for item in items:
        try:
            call(item)
        except Exception as error:
            what = f"{type(item).__name__}.{method} failed: {type(error).__name__}: {error}"
            failures.append(CallbackError(f"train: {what}{mend}"))
            failures[-1].__cause__ = error
    if failures:
        raise failures[0]
