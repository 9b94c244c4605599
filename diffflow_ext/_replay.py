"""Evaluating a network twice as if once: random state and autocast are put back.

The adjoint evaluates each network in the forward sweep and again in the backward sweep. Both must
compute the same function, so the random state (dropout) and the autocast mode of the first time
are those of the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Autocast", "RandomTape"]


@dataclass(frozen=True)
class Autocast:
    """The autocast mode of one device type, to be entered again."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, device_type: str) -> Autocast:
        """Reads the mode that is in force."""
        return cls(
            device_type,
            torch.is_autocast_enabled(device_type),
            torch.get_autocast_dtype(device_type),
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        """Enters the mode.

        Without autocast's cache of converted weights: weights that were converted while gradients
        were off would be taken for constants when they are on.
        """
        if not self.enabled and not torch.is_autocast_enabled(self.device_type):
            yield
            return
        with torch.autocast(self.device_type, self.dtype, self.enabled, cache_enabled=False):
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Leaves whatever mode is in force, as a backward pass should."""
        if not torch.is_autocast_enabled(self.device_type):
            yield
            return
        with torch.autocast(self.device_type, enabled=False):
            yield


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

    Networks that draw nothing cost one stored state in all, and nothing is put back for them.
    While a CUDA graph is captured nothing is recorded: states cannot be read there, and networks
    must not draw.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[object, tuple[Tensor, ...]] = {}
        self._last: tuple[Tensor, ...] = ()
        self._drew = False
        self._outside: tuple[Tensor, ...] | None = None

    def record(self, label: object) -> None:
        """Remembers the present state under a label, before the evaluation that it names."""
        now = _states(self.device)
        if not self._last:
            self._last = now
        elif any(not torch.equal(a, b) for a, b in zip(now, self._last, strict=True)):
            self._last, self._drew = now, True
        self._marks[label] = self._last

    def close(self) -> None:
        """Ends the first sweep, so that draws of its last evaluation are seen."""
        self.record(None)

    def replay(self, label: object) -> None:
        """Puts back the state of a label. An evaluation that is the first goes on from outside."""
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
        """Leaves the global random state as if nothing had been put back."""
        try:
            yield
        finally:
            if self._outside is not None:
                _set_states(self.device, self._outside)
                self._outside = None

    def pack(self) -> Tensor:
        """Returns all recorded states as rows of bytes: operators hand on tensors alone."""
        rows = [torch.cat([s.cpu() for s in states]) for states in self._marks.values()]
        return torch.stack(rows)

    def unpack(self, labels: list[object], rows: Tensor) -> None:
        """Takes over the rows of :meth:`pack`, recorded under these labels in this order."""
        sizes = [state.numel() for state in _states(self.device)]
        for label, row in zip(labels, rows, strict=True):
            self._marks[label] = tuple(part.clone() for part in row.split(sizes))
        self._drew = True

    @property
    def labels(self) -> list[object]:
        """The labels, in the order in which they were recorded."""
        return list(self._marks)
