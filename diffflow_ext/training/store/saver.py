"""Writer of checkpoints, which may use a thread while training continues."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .checkpoint import GROUPS, Checkpoint, save_checkpoint


class Saver:
    """Writes checkpoints one after another.

    Arguments:
        directory: The directory of all checkpoints.
        keep: The number of checkpoints to keep.
        beside: Whether a thread writes copies of the tensors while training continues.
    """

    def __init__(self, directory: Path, keep: int, *, beside: bool) -> None:
        self.directory, self.keep, self.beside = directory, keep, beside
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; raises a CheckpointError if this or the previous write failed."""
        self.wait()
        if not self.beside:
            save_checkpoint(self.directory, checkpoint, self.keep)
            return
        self._thread = threading.Thread(target=self._write, args=(_copied(checkpoint),))
        self._thread.start()

    def wait(self) -> None:
        """Waits for the thread; raises a CheckpointError if its write failed."""
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
    """Returns a copy that training doesn't change."""

    def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    return replace(
        checkpoint, **{name: copies(dict(getattr(checkpoint, name))) for name in GROUPS}
    )
