"""Noise as a value: a standard normal is a pure function of where it is used.

Every draw of the package is ``normal(seed, stream, purpose, step, sample, element)``:
Philox4x32-10 with the 64-bit seed as its key and the counter::

    word 0   element // 4          word 2   step | purpose << 24
    word 1   global sample index   word 3   stream

so it depends on nothing else: not on how a batch is split, on threads, dtype, device or the number
of processes. Nobody advances a generator, and noise that a backward pass needs is made again
instead of being stored.

References:
    | Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., SC 2011)
    | https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._words import shown

__all__ = ["PURPOSES", "NoiseKey", "purpose_code"]

#: What draws are for. Two purposes never share a counter, so their noise is independent.
PURPOSES: dict[str, int] = {
    "forward": 0,
    "reverse": 1,
    "prior": 2,
    "dsm": 3,
    "hutchinson": 4,
    "dequantise": 5,
    "grid": 6,
    "langevin": 7,
    "data": 8,
}

MAX_STEP = 2**24
MAX_SAMPLE = 2**32
MAX_STREAM = 2**32


@dataclass(frozen=True)
class NoiseKey:
    """Names a family of draws.

    Arguments:
        seed: The seed of a run. Any integer; its lowest 64 bits count.
        stream: Which use of the seed this is, in [0, 2^32): a training iteration, a sampling call.

    Raises:
        TypeError: If one of the two is not an integer.
        ValueError: If `stream` does not fit its 32 bits.
    """

    seed: int
    stream: int = 0

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("stream", self.stream)):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"NoiseKey: expected an integer {name}, got {shown(value)}")
            object.__setattr__(self, name, int(value))
        if not 0 <= self.stream < MAX_STREAM:
            raise ValueError(
                f"NoiseKey: expected 0 <= stream < 2^32, got {shown(self.stream)}; "
                "use another seed for more streams"
            )

    @classmethod
    def from_torch(cls) -> NoiseKey:
        """Draws a seed from torch's default generator, so that `torch.manual_seed` governs it."""
        return cls(int(torch.randint(2**63 - 1, (), dtype=torch.int64)))

    def at(self, stream: int) -> NoiseKey:
        """Returns the key of another stream of the same seed."""
        return replace(self, stream=stream)

    def to_tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns the int64 tensor ``[seed, stream]``, which every op takes in place of a key.

        A captured CUDA graph reads it at each replay: write a new stream into it for fresh noise.
        """
        seed = self.seed & (2**64 - 1)
        words = [seed - 2**64 if seed >= 2**63 else seed, self.stream]
        return torch.tensor(words, dtype=torch.int64).to(place("NoiseKey.to_tensor", device))


def place(op: str, device: torch.device | str) -> torch.device:
    """Returns a device that is there, with its index.

    Raises:
        TypeError: If `device` names none.
        ValueError: If this machine or this build of torch does not have it.
    """
    if not isinstance(device, (torch.device, str)):
        raise TypeError(
            f"{op}: expected device to be a torch.device or its name, got {shown(device)}"
        )
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{op}: expected a device of this machine, got {shown(device)}: {reason}"
        ) from error


def purpose_code(op: str, purpose: str) -> int:
    """Returns the number of a purpose.

    Raises:
        ValueError: If there is no such purpose.
    """
    code = PURPOSES.get(purpose) if isinstance(purpose, str) else None
    if code is None:
        raise ValueError(
            f"{op}: expected purpose to be one of {list(PURPOSES)}, got {shown(purpose)}"
        )
    return code
