"""Networks `net(t, x)`: their type, checked calls, and the autocast mode of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.functional.checks import checked_network_output


def call_network(
    op: str, name: str, net: Callable[[Tensor, Tensor], Any], t: Tensor, x: Tensor
) -> Tensor:
    """Returns net(t, x), checked; a network must not modify its arguments."""
    if torch.compiler.is_compiling():
        return checked_network_output(op, name, net(t, x), x)
    versions = _versions(t, x)
    try:
        value = net(t, x)
    except RuntimeError as error:
        if "dtype" not in str(error) or x.dtype != torch.float64:
            raise
        raise TypeError(
            f"{op}: expected {name} to take float64 data, got: {error}; convert the data with "
            ".float(), or the network with .double()"
        ) from error
    if versions != _versions(t, x):
        raise RuntimeError(f"{op}: {name} modified x or t in place; copy first")
    return checked_network_output(op, name, value, x)


def _versions(*tensors: Tensor) -> list[int]:
    """Returns torch's counts of writes to tensors, except for inference tensors."""
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


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
    def again(self) -> Iterator[None]:
        """Enters the mode, without autocast's cache of converted weights.

        Weights converted while gradients were off would be constants when gradients are on.
        """
        if not self.enabled and not torch.is_autocast_enabled(self.device_type):
            yield
            return
        with torch.autocast(self.device_type, self.dtype, self.enabled, cache_enabled=False):
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switches autocast off, as in backward passes."""
        if not torch.is_autocast_enabled(self.device_type):
            yield
            return
        with torch.autocast(self.device_type, enabled=False):
            yield


#: A drift or a score: called with the time, shape () or (B,), and the state, shape (B, *event).
Network = Callable[[Tensor, Tensor], Tensor]
