"""Checkpoints of a training session, written at once or by a thread beside the training."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .checkpoint import GROUPS, Checkpoint, save_checkpoint


class Saver:
    """Writes checkpoints one after another.

    Arguments:
        directory: Where they live.
        keep: How many stay.
        beside: Whether training goes on while one is written. Its tensors are copied first; a
            kill in that time costs what an earlier one of the same save would have cost.
    """

    def __init__(self, directory: Path, keep: int, *, beside: bool) -> None:
        self.directory, self.keep, self.beside = directory, keep, beside
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, after the one before it.

        Raises:
            CheckpointError: If writing this one or the one before failed.
        """
        self.wait()
        if not self.beside:
            save_checkpoint(self.directory, checkpoint, self.keep)
            return
        self._thread = threading.Thread(target=self._write, args=(_copied(checkpoint),))
        self._thread.start()

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            CheckpointError: If it could not be.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            save_checkpoint(self.directory, checkpoint, self.keep)
        except BaseException as error:
            self._error = error


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the same with tensors that training doesn't touch."""

    def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    return replace(
        checkpoint, **{name: copies(dict(getattr(checkpoint, name))) for name in GROUPS}
    )
