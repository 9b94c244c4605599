"""Random states of the forward sweep, restored in the backward sweep.

The adjoint evaluates each network in both sweeps. Both must compute the same function, also with
dropout, so the second evaluation starts from the random state of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def _states(device: torch.device) -> tuple[Tensor, ...]:
    if device.type != "cuda":
        return (torch.get_rng_state(),)
    if torch.cuda.is_current_stream_capturing():
        return ()
    return torch.get_rng_state(), torch.cuda.get_rng_state(device)


def _set_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    if states:
        torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


class RandomTape:
    """Random states before each of a sequence of evaluations.

    For networks that draw no random numbers one state is stored, and none restored. While a CUDA
    graph is captured nothing is recorded: states cannot be read, and networks must not draw.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[object, tuple[Tensor, ...]] = {}
        self._last: tuple[Tensor, ...] = ()
        self._drew = False
        self._outside: tuple[Tensor, ...] | None = None

    def record(self, label: object) -> None:
        """Stores the current state under a label, before an evaluation."""
        now = _states(self.device)
        if not self._last:
            self._last = now
        elif any(not torch.equal(a, b) for a, b in zip(now, self._last, strict=True)):
            self._last, self._drew = now, True
        self._marks[label] = self._last

    def close(self) -> None:
        """Ends the first sweep, so that draws of its last evaluation are noticed."""
        self.record(None)

    def replay(self, label: object) -> None:
        """Restores the state of a label; for an unknown label, the state outside of the tape."""
        if label in self._marks:
            if not self._drew:
                return
            if self._outside is None:
                self._outside = _states(self.device)
            _set_states(self.device, self._marks[label])
        elif self._outside is not None:
            _set_states(self.device, self._outside)
            self._outside = None

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restores the state outside of the tape at the end."""
        try:
            yield
        finally:
            if self._outside is not None:
                _set_states(self.device, self._outside)
                self._outside = None
