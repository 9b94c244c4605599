"""Checks of arguments, made once, before anything is allocated.

The kernels work on raw addresses and check nothing. Messages have one form:
``op: what was expected, what came, how to mend it``.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .core import build_info
from .tensors import (
    are_usual,
    checked_tensor,
    hides_values,
    refuse_tangent,
    refuse_transforms,
)

#: Dtypes of states, and of network outputs.
STATE_DTYPES = (torch.float32, torch.float64)
NETWORK_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Element indices are counted in fours in a 32-bit word.
_MAX_ELEMENTS = 2**34
#: Smallest and largest positive numbers; torch.finfo is slow.
_RANGES = {d: (torch.finfo(d).tiny, torch.finfo(d).max) for d in STATE_DTYPES}
_CPU = torch.device("cpu")
#: Characters of a value in a message.
_LONGEST = 100


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def in_words(value: object) -> str:
    """Returns a short description of a value for an error message."""
    if isinstance(value, Tensor):
        shape = "unknown shape" if is_lazy(value) or value.is_nested else f"{tuple(value.shape)}"
        return f"a tensor of {shape}" if shape[0] == "u" else f"a tensor of shape {shape}"
    if isinstance(value, int) and abs(value) >= 2**128:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print the largest.
    if isinstance(value, (list, tuple, dict, set)) and _holds_tensors(value):
        return f"a {type(value).__name__} of {len(value)}"
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # An address tells nothing.
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _holds_tensors(values: object) -> bool:
    if isinstance(values, dict):
        return any(map(_holds_tensors, values.values()))
    if isinstance(values, (list, tuple, set)):
        return any(map(_holds_tensors, values))
    return isinstance(values, Tensor)


def resolve_device(op: str, device: torch.device | str) -> torch.device:
    """Returns a device of this machine, with its index."""
    if not isinstance(device, (torch.device, str)):
        raise TypeError(
            f"{op}: expected device to be a torch.device or its name, got {in_words(device)}"
        )
    if device == "cpu":
        return _CPU
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{op}: expected a device of this machine, got {in_words(device)}: {reason}"
        ) from error


def are_usual_states(*tensors: Tensor) -> bool:
    """Says whether the checks of states and network outputs would return all as they are.

    These are ordinary tensors on the CPU, all of the dtype and shape of the first.
    """
    if not are_usual(tensors):
        return False
    x = tensors[0]
    shape, dtype = x.shape, x.dtype
    if dtype not in STATE_DTYPES or not shape or x.numel() > _MAX_ELEMENTS:
        return False
    for other in tensors[1:]:
        if other.dtype is not dtype or other.shape != shape:
            return False
    return True


def checked_state(op: str, name: str, value: object) -> Tensor:
    """Returns a state of shape (B, *event), float32 or float64, on a device with kernels."""
    refuse_transforms(op)
    x = checked_tensor(op, name, value)
    refuse_tangent(op, name, x)
    if x.dtype not in STATE_DTYPES:
        raise TypeError(
            f"{op}: expected {name} to be float32 or float64, got {dtype_name(x.dtype)}; "
            f"states keep full precision, convert with {name}.float()"
        )
    if x.dim() < 1:
        raise ValueError(f"{op}: expected {name} of shape (B, *event), got shape ()")
    check_device(op, name, x)
    if not torch.compiler.is_compiling() and math.prod(x.shape[1:]) > _MAX_ELEMENTS:
        raise ValueError(
            f"{op}: expected at most 2^34 elements a sample, got {name} of shape {tuple(x.shape)}"
        )
    return x


def check_device(op: str, name: str, x: Tensor) -> None:
    """Checks that there are kernels for the tensor's device."""
    if x.device.type == "cpu":
        return
    if x.device.type != "cuda":
        raise ValueError(
            f"{op}: expected {name} on the CPU or a CUDA device, got {x.device}; "
            "move it there first"
        )
    info = build_info()
    if not info["cuda"]:
        raise RuntimeError(
            f"{op}: CUDA tensor given as {name}, but this build has no CUDA kernels "
            f"({info['cuda_note']}); rebuild with DIFFFLOW_CUDA=ON where nvcc is found "
            "(diffflow_ext.build_info() shows what is in it)"
        )


def check_finite(op: str, name: str, x: Tensor) -> None:
    """Refuses NaN and infinity on the CPU. On a GPU the check would wait for all queued work."""
    if x.is_cuda or hides_values() or bool(torch.isfinite(x).all()):
        return
    index = tuple((~torch.isfinite(x)).nonzero()[0].tolist())
    raise ValueError(
        f"{op}: expected finite {name}, got {float(x[index])} at index {index}; "
        "remove or repair that sample"
    )


def checked_weights(op: str, value: object, x: Tensor) -> Tensor | None:
    """Returns per-sample weights of shape (B,), or None."""
    if value is None:
        return None
    weight = checked_tensor(op, "weight", value)
    if tuple(weight.shape) != (x.shape[0],) or weight.device != x.device:
        raise ValueError(
            f"{op}: expected weight of shape ({x.shape[0]},) on {x.device}, "
            f"got {tuple(weight.shape)} on {weight.device}"
        )
    check_finite(op, "weight", weight)
    return weight.detach().to(x.dtype).contiguous()


def checked_like_state(op: str, name: str, value: object, x: Tensor, x_name: str = "x") -> Tensor:
    """Returns another state with the shape, dtype and device of `x`."""
    other = _companion(op, name, value, x, x_name)
    if other.dtype != x.dtype:
        raise TypeError(
            f"{op}: expected {name} to have the dtype of {x_name} ({dtype_name(x.dtype)}), "
            f"got {dtype_name(other.dtype)}"
        )
    return other


def checked_network_output(
    op: str, name: str, value: object, x: Tensor, x_name: str = "x", *, dual: bool = False
) -> Tensor:
    """Returns an output of drift or score: shape and device of `x`, a floating dtype.

    With `dual` it may have a tangent of forward-mode AD.
    """
    other = _companion(op, name, value, x, x_name)
    if not dual:
        refuse_tangent(op, name, other)
    if other.dtype not in NETWORK_DTYPES:
        raise TypeError(
            f"{op}: expected {name} to be float32, float64, bfloat16 or float16, "
            f"got {dtype_name(other.dtype)}"
        )
    return other


def _companion(op: str, name: str, value: object, x: Tensor, x_name: str) -> Tensor:
    other = checked_tensor(op, name, value)
    if other.shape != x.shape:
        raise ValueError(
            f"{op}: expected {name} to have the shape of {x_name}, "
            f"got {tuple(other.shape)} and {tuple(x.shape)}"
        )
    if other.device != x.device:
        raise ValueError(
            f"{op}: expected {name} on the device of {x_name} ({x.device}), got {other.device}"
        )
    return other


def checked_positive(op: str, name: str, value: object, x: Tensor) -> float | Tensor:
    """Returns a positive scalar: a Python number, or a tensor of one element beside `x`.

    The value of a tensor on a GPU is not checked: reading it would wait for the device.
    """
    if type(value) is float and not torch.compiler.is_compiling():
        low, high = _RANGES[x.dtype]
        if low <= value <= high:
            return value
    return _scalar(op, name, value, x, _fits)


def checked_coefficient(op: str, name: str, value: object, x: Tensor) -> float | Tensor:
    """Returns a scalar of any sign: a Python number, or a tensor of one element beside `x`."""
    return _scalar(op, name, value, x, _within)


def checked_noise_scale(op: str, value: object, x: Tensor) -> float | Tensor:
    """Returns a standard deviation >= 0: a Python number, or a tensor of one element."""
    return _scalar(op, "noise_scale", value, x, _not_negative)


def _scalar(
    op: str,
    name: str,
    value: object,
    x: Tensor,
    check: Callable[[str, str, float, torch.dtype], None],
) -> float | Tensor:
    if isinstance(value, Tensor):
        scalar = _scalar_tensor(op, name, value, x)
        if not scalar.is_cuda and not hides_values():
            check(op, name, float(scalar.detach()), x.dtype)
        return scalar
    number = checked_finite(op, name, value)
    if not torch.compiler.is_compiling():
        check(op, name, number, x.dtype)
    return number


def _within(op: str, name: str, number: float, dtype: torch.dtype) -> None:
    """Refuses a number that is not finite in the dtype of the state."""
    high = _RANGES[dtype][1]
    if not -high <= number <= high:
        raise ValueError(
            f"{op}: expected |{name}| <= {high:.3g}, the range of {dtype_name(dtype)}, "
            f"got {name}={number}; rescale the data or use float64"
        )


def _not_negative(op: str, name: str, number: float, dtype: torch.dtype) -> None:
    if not number >= 0:
        raise ValueError(f"{op}: expected {name} >= 0, got {name}={number}")
    _within(op, name, number, dtype)


def _fits(op: str, name: str, number: float, dtype: torch.dtype) -> None:
    """Refuses a number that is not positive and finite in the dtype of the state."""
    low, high = _RANGES[dtype]
    if not number > 0:
        raise ValueError(f"{op}: expected {name} > 0, got {name}={number}")
    if not low <= number <= high:
        raise ValueError(
            f"{op}: expected {name} between {low:.3g} and {high:.3g}, the range of "
            f"{dtype_name(dtype)}, got {name}={number}; rescale the time or use float64"
        )


def _scalar_tensor(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    scalar = checked_tensor(op, name, value)
    refuse_tangent(op, name, scalar)
    if scalar.numel() != 1:
        raise ValueError(
            f"{op}: expected {name} to be a number or a tensor of one element, "
            f"got shape {tuple(scalar.shape)}"
        )
    if scalar.device != x.device or not scalar.dtype.is_floating_point:
        raise ValueError(
            f"{op}: expected a tensor {name} to be floating and on {x.device}, "
            f"got {dtype_name(scalar.dtype)} on {scalar.device}"
        )
    return scalar


def checked_steps(op: str, lengths: list[float], x: Tensor) -> list[float]:
    """Returns the step lengths of a grid, all of which the dtype of the state can hold."""
    for name, value in (("shortest step", min(lengths)), ("longest step", max(lengths))):
        _fits(op, f"the {name}", value, x.dtype)
    return lengths


def checked_real(op: str, name: str, value: object) -> float:
    """Returns a Python float, which may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: expected {name} to be a number, got {in_words(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # pyright: ignore[reportOperatorIssue]


def checked_finite(op: str, name: str, value: object) -> float:
    """Returns a finite Python float."""
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value  # pyright: ignore[reportReturnType]
    number = checked_real(op, name, value)
    if not torch.compiler.is_compiling() and not math.isfinite(number):
        raise ValueError(f"{op}: expected {name} to be finite, got {name}={number}")
    return number


def checked_positive_number(op: str, name: str, value: object) -> float:
    """Returns a finite Python float above 0."""
    number = checked_real(op, name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{op}: expected {name} > 0, got {name}={number}")
    return number


def checked_count(op: str, name: str, value: object, low: int, high: int) -> int:
    """Returns an integer in [low, high)."""
    if isinstance(value, torch.SymInt):
        return value  # pyright: ignore[reportReturnType]
    if type(value) is int and low <= value < high:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{op}: expected {name} to be an integer, got {in_words(value)}")
    value = int(value)
    if not low <= value < high:
        raise ValueError(f"{op}: expected {low} <= {name} < {high}, got {name}={in_words(value)}")
    return value


def check_choice(op: str, name: str, value: object, kind: object) -> None:
    """Refuses a value that is not one of a Literal's names."""
    if not isinstance(value, str) or value not in get_args(kind):
        raise ValueError(
            f"{op}: expected {name} to be one of {get_args(kind)}, got {in_words(value)}"
        )


def checked_flag(op: str, name: str, value: object) -> bool:
    """Returns True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: expected {name} to be True or False, got {in_words(value)}")
    return value


def checked_shape(op: str, name: str, value: object) -> tuple[int, ...]:
    """Returns a shape (B, *event) of non-negative integers."""
    refuse_transforms(op)
    if not isinstance(value, Sequence) or not value:
        raise TypeError(f"{op}: expected {name} to be a shape (B, *event), got {in_words(value)}")
    if all([type(n) is int and 0 <= n < 2**63 for n in value]):
        shape = tuple(value)
    else:
        shape = tuple(checked_count(op, f"{name}[{i}]", n, 0, 2**63) for i, n in enumerate(value))
    if not torch.compiler.is_compiling() and math.prod(shape[1:]) > _MAX_ELEMENTS:
        raise ValueError(f"{op}: expected at most 2^34 elements a sample, got {name}={shape}")
    return shape
