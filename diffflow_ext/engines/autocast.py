"""The autocast mode of a network's calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

#: Earlier versions of torch also keep weights that were converted without gradients, and hand
#: these constants to calls with gradients, in all threads (pytorch pull request 165068).
_CACHE_HAS_GRAPHS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


@dataclass(frozen=True)
class Autocast:
    """The autocast mode of one device type."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, device_type: str) -> Autocast:
        """Returns the current mode."""
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, enabled, torch.get_autocast_dtype(device_type))

    @contextmanager
    def again(self, *, cached: bool = False) -> Iterator[None]:
        """Enters the mode.

        With `cached`, inside of :meth:`sweep`, weights that were converted before are used again.
        All calls must then have gradients on, or all off: weights converted while they were off
        would be constants.
        """
        if not self.enabled and not torch.is_autocast_enabled(self.device_type):
            yield
            return
        cached = cached and _CACHE_HAS_GRAPHS
        with torch.autocast(self.device_type, self.dtype, self.enabled, cache_enabled=cached):
            yield

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Switches autocast off between calls, which share converted weights of their own."""
        if not self.enabled:
            with self.off():
                yield
            return
        torch.clear_autocast_cache()
        try:
            # torch empties its cache at the end of the outermost mode.
            with torch.autocast(self.device_type, enabled=False):
                yield
        finally:
            torch.clear_autocast_cache()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switches autocast off, as in backward passes."""
        if not torch.is_autocast_enabled(self.device_type):
            yield
            return
        with torch.autocast(self.device_type, enabled=False):
            yield
