"""Noise as a value: a standard normal is a pure function of where it is used.

Every draw is a function of (seed, stream, purpose, step, sample, element): Philox4x32-10 with the
64-bit seed as its key and the counter::

    word 0   element // 4          word 2   step | purpose << 24
    word 1   global sample index   word 3   stream

It does not depend on how a batch is split, on threads, dtype, device or the number of processes.
There is no generator with a state, and backward passes compute their noise again instead of
storing it.

References:
    | Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., SC 2011)
    | https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import (
    NETWORK_DTYPES,
    check_device,
    checked_count,
    checked_shape,
    dtype_name,
    in_words,
    resolve_device,
)
from .core import Noise, address, core, device_and_stream, partials, target
from .operator import Operator, per_sample
from .tensors import checked_tensor, is_traced

#: Uses of noise. Different purposes have different counters, so their noise is independent.
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
    """Selects noise by a seed and a stream.

    Arguments:
        seed: The seed of a run, in [0, 2^64).
        stream: Which use of the seed this is, in [0, 2^32): a training iteration, a sampling call.

    Raises:
        TypeError: If one of the two is not an integer.
        ValueError: If the seed does not fit 64 bits, or the stream 32.
    """

    seed: int
    stream: int = 0

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("stream", self.stream)):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"NoiseKey: expected an integer {name}, got {in_words(value)}")
            object.__setattr__(self, name, int(value))
        if not 0 <= self.seed < 2**64:
            raise ValueError(
                f"NoiseKey: expected 0 <= seed < 2^64, got seed={in_words(self.seed)}; another "
                "one would have the noise of its lowest 64 bits"
            )
        if not 0 <= self.stream < MAX_STREAM:
            raise ValueError(
                f"NoiseKey: expected 0 <= stream < 2^32, got {in_words(self.stream)}; "
                "use another seed for more streams"
            )

    @classmethod
    def from_torch(cls) -> NoiseKey:
        """Draws a seed from torch's default generator, so that `torch.manual_seed` governs it."""
        return cls(int(torch.randint(2**63 - 1, (), dtype=torch.int64)))

    @classmethod
    def from_tensor(cls, key: Tensor) -> NoiseKey:
        """Returns the key in an int64 tensor ``[seed, stream]``, the inverse of `to_tensor`."""
        seed, stream = key.tolist()
        return cls(seed % 2**64, stream)

    def at(self, stream: int) -> NoiseKey:
        """Returns the key of another stream of the same seed."""
        return replace(self, stream=stream)

    def to_tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns the int64 tensor ``[seed, stream]``, which every op takes in place of a key.

        A captured CUDA graph reads it at each replay: write a new stream into it for fresh noise.
        """
        words = [self.seed - 2**64 if self.seed >= 2**63 else self.seed, self.stream]
        return torch.tensor(words, dtype=torch.int64).to(
            resolve_device("NoiseKey.to_tensor", device)
        )


#: A key, or its tensor, which a captured CUDA graph reads anew at each replay.
Key = NoiseKey | Tensor


def purpose_code(op: str, purpose: str) -> int:
    """Returns the number of a purpose."""
    code = PURPOSES.get(purpose) if isinstance(purpose, str) else None
    if code is None:
        raise ValueError(
            f"{op}: expected purpose to be one of {list(PURPOSES)}, got {in_words(purpose)}"
        )
    return code


def checked_step(op: str, value: object) -> int:
    """Returns a step index that fits its 24 bits of the counter."""
    return checked_count(op, "step", value, 0, MAX_STEP)


def checked_sample_offset(op: str, value: object, samples: int) -> int:
    """Returns the global index of the first sample; the last one must fit its 32 bits too."""
    sample_offset = checked_count(op, "sample_offset", value, 0, MAX_SAMPLE)
    if not torch.compiler.is_compiling() and sample_offset + samples > MAX_SAMPLE:
        raise ValueError(
            f"{op}: expected sample_offset + batch <= 2^32, got {sample_offset} + {samples}; "
            "use another stream for more samples"
        )
    return sample_offset


def checked_key(op: str, value: object, device: torch.device) -> NoiseKey | Tensor:
    """Returns a NoiseKey, or its tensor form on a device."""
    if isinstance(value, NoiseKey):
        return value
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{op}: expected key to be a NoiseKey or the tensor of NoiseKey.to_tensor, "
            f"got {type(value).__name__}"
        )
    value = checked_tensor(op, "key", value)
    if value.dtype != torch.int64 or tuple(value.shape) != (2,) or value.device != device:
        raise ValueError(
            f"{op}: expected a key tensor of shape (2,), int64, on {device}, "
            f"got {tuple(value.shape)}, {dtype_name(value.dtype)}, on {value.device}"
        )
    # Kernels read two neighbouring words.
    return value.contiguous()


def traceable_key(key: Key, device: torch.device) -> Key:
    """Returns a key as a tensor while a graph is traced."""
    if isinstance(key, NoiseKey) and is_traced():
        return key.to_tensor(device)
    return key


def noise_source(key: Key, purpose: int, step: int, sample_offset: int) -> Noise:
    """Returns the core's form of a noise source."""
    if isinstance(key, NoiseKey):
        return key.seed, key.stream, purpose, step, sample_offset, 0
    return 0, 0, purpose, step, sample_offset, key.data_ptr()


def launch_philox_words(counter: Tensor, key: Tensor) -> Tensor:
    """Returns the Philox words of int64 counters (n, 4) and keys (n, 2)."""
    words = torch.empty_like(counter)
    core.philox_words(
        (*device_and_stream(counter), 0, *counter.shape),
        counter.data_ptr(),
        key.data_ptr(),
        words.data_ptr(),
    )
    return words


def philox_words(counter: Tensor, key: Tensor) -> Tensor:
    """Returns the four random words of Philox4x32-10 for each counter: the bare generator.

    Arguments:
        counter: Counters, int64 with values in [0, 2^32), shape (*, 4).
        key: Keys, int64 with values in [0, 2^32), shape (2,) or (*, 2).

    Returns:
        The words, int64 with values in [0, 2^32), shape (*, 4).

    Raises:
        TypeError: If an argument is not an int64 tensor.
        ValueError: If a shape or a value is out of range.

    References:
        | Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., SC 2011)
        | https://doi.org/10.1145/2063384.2063405
    """
    op = "philox_words"
    _philox_argument(op, "counter", counter, 4)
    _philox_argument(op, "key", key, 2)
    if key.shape != (2,) and key.shape[:-1] != counter.shape[:-1]:
        raise ValueError(
            f"{op}: expected key of shape (2,) or {(*counter.shape[:-1], 2)}, "
            f"got {tuple(key.shape)}"
        )
    flat = counter.reshape(-1, 4).contiguous()
    keys = key.to(counter.device).expand(*counter.shape[:-1], 2).reshape(-1, 2).contiguous()
    return launch_philox_words(flat, keys).reshape(counter.shape)


def _philox_argument(op: str, name: str, value: Tensor, words: int) -> None:
    checked_tensor(op, name, value)
    check_device(op, name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{op}: expected {name} to be int64, got {value.dtype}")
    if value.dim() < 1 or value.shape[-1] != words:
        raise ValueError(f"{op}: expected {name} of shape (*, {words}), got {tuple(value.shape)}")
    if ((value < 0) | (value >= 2**32)).any():
        raise ValueError(f"{op}: expected {name} in [0, 2^32)")


def launch_normal(out: Tensor, key: Key, purpose: int, step: int, sample_offset: int) -> Tensor:
    """Fills `out`, contiguous, with standard normals."""
    noise = noise_source(key, purpose, step, sample_offset)
    core.normal(target(out), noise, out.data_ptr())
    return out


def _traced_normal(
    shape: list[int],
    key: Tensor,
    purpose: int,
    step: int,
    sample_offset: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    out = torch.empty(shape, dtype=dtype, device=device)
    return launch_normal(out, key, purpose, step, sample_offset)


_normal = Operator(
    "normal(SymInt[] shape, Tensor key, int purpose, SymInt step, SymInt sample_offset, "
    "ScalarType dtype, Device device) -> Tensor",
    _traced_normal,
    lambda shape, key, purpose, step, sample_offset, dtype, device: torch.empty(
        shape, dtype=dtype, device=device
    ),
)


def normal(
    shape: tuple[int, ...],
    key: Key,
    *,
    purpose: str = "forward",
    step: int = 0,
    sample_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Returns the standard normals that the other ops compute in registers.

    .. math:: z = \sqrt{-2 \log u} \, (\cos 2 \pi v, \sin 2 \pi v)

    with u and v from Philox. A draw depends only on (seed, stream, purpose, step, sample,
    element), so any part of the noise can be computed again, bit for bit.

    Arguments:
        shape: The shape (B, *event).
        key: Seed and stream, a NoiseKey or its tensor on `device`.
        purpose: What the draw is for, a name in :data:`diffflow_ext.functional.PURPOSES`.
        step: The step of the grid, in [0, 2^24).
        sample_offset: The global index of the first sample, in [0, 2^32).
        dtype: float32, or another floating dtype, to which the same draws are rounded.
        device: The device of the result.

    Returns:
        Normals of the given shape, |z| <= 5.77.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument has the wrong type.
    """
    op = "normal"
    shape = checked_shape(op, "shape", shape)
    if not torch.compiler.is_compiling():
        device = resolve_device(op, device)
    else:
        device = torch.empty(0, device=device).device
    if not isinstance(dtype, torch.dtype) or dtype not in NETWORK_DTYPES:
        raise TypeError(f"{op}: expected a floating dtype, got {in_words(dtype)}")
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    key = checked_key(op, key, device)
    code = purpose_code(op, purpose)
    step = checked_step(op, step)
    sample_offset = checked_sample_offset(op, sample_offset, shape[0])
    if is_traced():
        tensor = traceable_key(key, device)
        return _normal.traced(shape, tensor, code, step, sample_offset, compute, device).to(dtype)
    out = torch.empty(shape, dtype=compute, device=device)
    check_device(op, "device", out)
    launch_normal(out, key, code, step, sample_offset)
    return out if dtype is compute else out.to(dtype)


def noise_like(x: Tensor, key: Key, purpose: int, step: int, sample_offset: int) -> Tensor:
    """Returns the noise of a step in the shape, dtype and device of a state."""
    if is_traced():
        return _normal.traced(x.shape, key, purpose, step, sample_offset, x.dtype, x.device)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return launch_normal(out, key, purpose, step, sample_offset)


#: Random times of samples are draws of purpose "grid"; TimeGrid.stratified uses its step 0.
_TIMES_STEP = 1


def sample_uniforms(like: Tensor, key: Key, count: int, sample_offset: int) -> Tensor:
    """Returns `count` uniforms in (0, 1) for each sample, float64, functions of its index."""
    normals = normal(
        (like.shape[0], count),
        key,
        purpose="grid",
        step=_TIMES_STEP,
        sample_offset=sample_offset,
        dtype=torch.float64,
        device=like.device,
    )
    return torch.special.ndtr(normals)


def uniforms(count: int, key: NoiseKey) -> Tensor:
    """Returns `count` uniforms in (0, 1): the normal distribution function of keyed normals."""
    draws = torch.empty(1, count, dtype=torch.float64)
    launch_normal(draws, key, PURPOSES["grid"], 0, 0)
    return torch.special.ndtr(draws[0])


def signs(like: Tensor, key: Key, step: int, sample_offset: int) -> Tensor:
    """Returns random signs, the probes of least variance among those with independent entries."""
    normals = noise_like(like, key, PURPOSES["hutchinson"], step, sample_offset)
    return torch.where(normals < 0, -1.0, 1.0).to(like.dtype)


def _launch_noise_dot(v: Tensor, key: Key, purpose: int, step: int, sample_offset: int) -> Tensor:
    """Returns the sum of v eps for each sample, with the noise of a step."""
    v = v.contiguous()
    dot, scratch = v.new_empty(v.shape[0]), partials(v)
    core.noise_dot(
        target(v),
        noise_source(key, purpose, step, sample_offset),
        v.data_ptr(),
        dot.data_ptr(),
        address(scratch),
    )
    return dot


noise_dot = Operator(
    "noise_dot(Tensor v, Tensor key, int purpose, SymInt step, SymInt sample_offset) -> Tensor",
    _launch_noise_dot,
    per_sample,
)


def noise_energy(
    x: Tensor, key: Key, step: int, sample_offset: int, previous: Tensor | None = None
) -> Tensor:
    """Returns 1/2 |delta_f|^2 of a forward step for each sample of a state shaped like x."""
    energy, scratch = x.new_empty(x.shape[0]), partials(x)
    core.noise_energy(
        target(x),
        noise_source(key, PURPOSES["forward"], step, sample_offset),
        address(previous),
        energy.data_ptr(),
        address(scratch),
    )
    return energy
