"""Checks of arguments: the one place where bad input is turned away, before anything is allocated.

The kernels work on raw addresses and check nothing themselves. Messages have one form:
``op: what was expected, what came, how to mend it``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore

from ._words import shown
from .noise import MAX_SAMPLE, MAX_STEP, NoiseKey

STATE_DTYPES = (torch.float32, torch.float64)
NETWORK_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Element indices are counted in fours in a 32-bit word.
MAX_ELEMENTS = 2**34
#: The smallest g and g sqrt(dt) of a residual, by the dtype of the state. With g * g^2 dt >= 1e-29
#: (1e-280) the gradient of its cost in g, the largest result, stays below 1.6e38 (1.6e289) for
#: terms of size M in d dimensions with M sqrt(d) <= 1e4: it is at most 16 M^2 d / (g * g^2 dt).
NOISE_FLOORS = {torch.float32: (1e-9, 1e-10), torch.float64: (1e-90, 1e-95)}
#: Asked for at every call, and slow to look up.
_RANGES = {d: (torch.finfo(d).tiny, torch.finfo(d).max) for d in STATE_DTYPES}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor(op: str, name: str, value: object) -> Tensor:
    """Returns `value` if it is an ordinary dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {type(value).__name__}")
    if not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(value):
        raise RuntimeError(
            f"{op}: torch.func transforms (vmap, grad, jvp) are not supported, because they would "
            "give every sample the same noise; call it on the whole batch, and use .backward() or "
            "torch.autograd.grad"
        )
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{op}: expected {name} to be dense, got {layout}")
    if torch.compiler.is_compiling():
        return value.resolve_neg()
    if _may_lack_memory(value):
        _refuse_without_memory(op, name, value)
    # Kernels read memory, where a lazy minus sign is not.
    return value.resolve_neg() if value.is_neg() else value


def _may_lack_memory(value: Tensor) -> bool:
    """Says whether a tensor is empty or, what is rare, has no memory of its own."""
    if type(value) is not Tensor and torch.nn.parameter.is_lazy(value):
        return True
    return value.data_ptr() == 0 or value.untyped_storage().nbytes() == 0


def _refuse_without_memory(op: str, name: str, value: Tensor) -> None:
    if torch.nn.parameter.is_lazy(value):
        raise ValueError(
            f"{op}: expected {name} to be initialised, got an uninitialised parameter"
        )
    if value.numel() and value.device.type in ("cpu", "cuda"):
        raise ValueError(
            f"{op}: expected {name} to hold values, got a tensor of shape {tuple(value.shape)} "
            f"without memory ({type(value).__name__}): a fake or wrapped tensor, or its memory "
            "was freed; pass an ordinary one, such as the result of .full_tensor() or .clone()"
        )


def state(op: str, name: str, value: object) -> Tensor:
    """Returns a state of shape (B, *event), float32 or float64, on a device with kernels."""
    x = tensor(op, name, value)
    if x.dtype not in STATE_DTYPES:
        raise TypeError(
            f"{op}: expected {name} to be float32 or float64, got {_dtype_name(x.dtype)}; "
            f"states keep full precision, convert with {name}.float()"
        )
    if x.dim() < 1:
        raise ValueError(f"{op}: expected {name} of shape (B, *event), got shape ()")
    device(op, name, x)
    if not torch.compiler.is_compiling() and math.prod(x.shape[1:]) > MAX_ELEMENTS:
        raise ValueError(
            f"{op}: expected at most 2^34 elements a sample, got {name} of shape {tuple(x.shape)}"
        )
    return x


def device(op: str, name: str, x: Tensor) -> None:
    """Checks that there are kernels for the tensor's device."""
    if x.device.type == "cpu":
        return
    if x.device.type != "cuda":
        raise ValueError(
            f"{op}: expected {name} on the CPU or a CUDA device, got {x.device}; "
            "move it there first"
        )
    from . import _backend

    info = _backend.build_info()
    if not info["cuda"]:
        raise RuntimeError(
            f"{op}: CUDA tensor given as {name}, but this build has no CUDA kernels "
            f"({info['cuda_note']}); rebuild with DIFFFLOW_CUDA=ON where nvcc is found "
            "(diffflow_ext.build_info() shows what is in it)"
        )


def finite_state(op: str, name: str, x: Tensor) -> None:
    """Refuses NaN and infinity on the CPU. On a device, looking would wait for all queued work."""
    if x.is_cuda or torch.compiler.is_compiling() or bool(torch.isfinite(x).all()):
        return
    where = tuple((~torch.isfinite(x)).nonzero()[0].tolist())
    raise ValueError(
        f"{op}: expected finite {name}, got {float(x[where])} at index {where}; "
        "remove or repair that sample"
    )


def weights(op: str, value: object, x: Tensor) -> Tensor | None:
    """Returns per-sample weights of shape (B,), or None."""
    if value is None:
        return None
    weight = tensor(op, "weight", value)
    if tuple(weight.shape) != (x.shape[0],) or weight.device != x.device:
        raise ValueError(
            f"{op}: expected weight of shape ({x.shape[0]},) on {x.device}, "
            f"got {tuple(weight.shape)} on {weight.device}"
        )
    finite_state(op, "weight", weight)
    return weight.detach().to(x.dtype).contiguous()


def like_state(op: str, name: str, value: object, x: Tensor, x_name: str = "x") -> Tensor:
    """Returns another state with the shape, dtype and device of `x`."""
    other = _companion(op, name, value, x, x_name)
    if other.dtype != x.dtype:
        raise TypeError(
            f"{op}: expected {name} to have the dtype of {x_name} ({_dtype_name(x.dtype)}), "
            f"got {_dtype_name(other.dtype)}"
        )
    return other


def network_output(op: str, name: str, value: object, x: Tensor, x_name: str = "x") -> Tensor:
    """Returns an output of drift or score: shape and device of `x`, a floating dtype."""
    other = _companion(op, name, value, x, x_name)
    if other.dtype not in NETWORK_DTYPES:
        raise TypeError(
            f"{op}: expected {name} to be float32, float64, bfloat16 or float16, "
            f"got {_dtype_name(other.dtype)}"
        )
    return other


def call_network(
    op: str, name: str, net: Callable[[Tensor, Tensor], Any], t: Tensor, x: Tensor
) -> Tensor:
    """Returns net(t, x), which must leave its arguments alone: they are used again."""
    if torch.compiler.is_compiling():
        return network_output(op, name, net(t, x), x)
    watched = [each for each in (t, x) if not each.is_inference()]
    versions = [each._version for each in watched]
    try:
        value = net(t, x)
    except RuntimeError as error:
        if "dtype" not in str(error) or x.dtype != torch.float64:
            raise
        raise TypeError(
            f"{op}: expected {name} to take float64 data, got: {error}; convert the data with "
            ".float(), or the network with .double()"
        ) from error
    if versions != [each._version for each in watched]:
        raise RuntimeError(f"{op}: {name} modified x or t in place; copy first")
    return network_output(op, name, value, x)


def _companion(op: str, name: str, value: object, x: Tensor, x_name: str) -> Tensor:
    other = tensor(op, name, value)
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


def positive(op: str, name: str, value: object, x: Tensor) -> float | Tensor:
    """Returns a positive scalar: a Python number, or a tensor of one element beside `x`.

    The value of a device's tensor is not looked at: reading it would wait for the device.
    """
    return _scalar(op, name, value, x, _fits)


def coefficient(op: str, name: str, value: object, x: Tensor) -> float | Tensor:
    """Returns a scalar of any sign: a Python number, or a tensor of one element beside `x`."""
    return _scalar(op, name, value, x, _within)


def noise_scale(op: str, value: object, x: Tensor) -> float | Tensor:
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
        if not scalar.is_cuda and not torch.compiler.is_compiling():
            check(op, name, float(scalar.detach()), x.dtype)
        return scalar
    number = finite(op, name, value)
    if not torch.compiler.is_compiling():
        check(op, name, number, x.dtype)
    return number


def _within(op: str, name: str, number: float, dtype: torch.dtype) -> None:
    """Refuses what is not finite in the dtype of the state."""
    high = _RANGES[dtype][1]
    if not -high <= number <= high:
        raise ValueError(
            f"{op}: expected |{name}| <= {high:.3g}, the range of {_dtype_name(dtype)}, "
            f"got {name}={number}; rescale the data or use float64"
        )


def _not_negative(op: str, name: str, number: float, dtype: torch.dtype) -> None:
    if not number >= 0:
        raise ValueError(f"{op}: expected {name} >= 0, got {name}={number}")
    _within(op, name, number, dtype)


def _fits(op: str, name: str, number: float, dtype: torch.dtype) -> None:
    """Refuses what is not positive, or would be zero or infinite in the dtype of the state."""
    low, high = _RANGES[dtype]
    if not number > 0:
        raise ValueError(f"{op}: expected {name} > 0, got {name}={number}")
    if not low <= number <= high:
        raise ValueError(
            f"{op}: expected {name} between {low:.3g} and {high:.3g}, the range of "
            f"{_dtype_name(dtype)}, got {name}={number}; rescale the time or use float64"
        )


def _scalar_tensor(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    scalar = tensor(op, name, value)
    if scalar.numel() != 1:
        raise ValueError(
            f"{op}: expected {name} to be a number or a tensor of one element, "
            f"got shape {tuple(scalar.shape)}"
        )
    if scalar.device != x.device or not scalar.dtype.is_floating_point:
        raise ValueError(
            f"{op}: expected a tensor {name} to be floating and on {x.device}, "
            f"got {_dtype_name(scalar.dtype)} on {scalar.device}"
        )
    return scalar


def step_noise(op: str, dt: float | Tensor, g: float | Tensor, x: Tensor) -> None:
    """Refuses a step whose noise g sqrt(dt) is too small to divide by, where values are known."""
    if torch.compiler.is_compiling() or any(isinstance(v, Tensor) and v.is_cuda for v in (dt, g)):
        return
    known = [float(v.detach()) if isinstance(v, Tensor) else v for v in (dt, g)]
    noise_floor(op, known[:1], known[1:], x)


def noise_floor(
    op: str, lengths: Sequence[float], g_next: Sequence[float | Tensor], x: Tensor
) -> None:
    """Refuses steps whose noise g_{i+1} sqrt(dt_i) is too small to divide by."""
    low_g, low = NOISE_FLOORS[x.dtype]
    for i, (dt, g) in enumerate(zip(lengths, g_next, strict=True)):
        if isinstance(g, Tensor):
            return
        if g < low_g or g * math.sqrt(dt) < low:
            raise ValueError(
                f"{op}: expected g >= {low_g:g} and g sqrt(dt) >= {low:g} for "
                f"{_dtype_name(x.dtype)}, got g={g:g} and dt={dt:g} at step {i}, by whose noise "
                "residuals are divided; take a larger g, longer steps or float64"
            )


def steps(op: str, lengths: list[float], x: Tensor) -> list[float]:
    """Returns the step lengths of a grid, all of which the dtype of the state can hold."""
    for name, value in (("shortest step", min(lengths)), ("longest step", max(lengths))):
        _fits(op, f"the {name}", value, x.dtype)
    return lengths


def real(op: str, name: str, value: object) -> float:
    """Returns a Python float, which may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: expected {name} to be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # pyright: ignore[reportOperatorIssue]


def finite(op: str, name: str, value: object) -> float:
    """Returns a finite Python float."""
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value  # pyright: ignore[reportReturnType]
    number = real(op, name, value)
    if not torch.compiler.is_compiling() and not math.isfinite(number):
        raise ValueError(f"{op}: expected {name} to be finite, got {name}={number}")
    return number


def positive_number(op: str, name: str, value: object) -> float:
    """Returns a finite Python float above 0."""
    number = real(op, name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{op}: expected {name} > 0, got {name}={number}")
    return number


def count(op: str, name: str, value: object, low: int, high: int) -> int:
    """Returns an integer in [low, high)."""
    if isinstance(value, torch.SymInt):
        return value  # pyright: ignore[reportReturnType]
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{op}: expected {name} to be an integer, got {shown(value)}")
    value = int(value)
    if not low <= value < high:
        raise ValueError(f"{op}: expected {low} <= {name} < {high}, got {name}={shown(value)}")
    return value


def one_of(op: str, name: str, value: object, kind: object) -> None:
    """Refuses a name that is not among those of a Literal."""
    if not isinstance(value, str) or value not in get_args(kind):
        raise ValueError(
            f"{op}: expected {name} to be one of {get_args(kind)}, got {shown(value)}"
        )


def flag(op: str, name: str, value: object) -> bool:
    """Returns True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: expected {name} to be True or False, got {shown(value)}")
    return value


def step(op: str, value: object) -> int:
    """Returns a step index that fits its 24 bits of the counter."""
    return count(op, "step", value, 0, MAX_STEP)


def sample_offset(op: str, value: object, samples: int) -> int:
    """Returns the global index of the first sample; the last one must fit its 32 bits too."""
    offset = count(op, "sample_offset", value, 0, MAX_SAMPLE)
    if not torch.compiler.is_compiling() and offset + samples > MAX_SAMPLE:
        raise ValueError(
            f"{op}: expected sample_offset + batch <= 2^32, got {offset} + {samples}; "
            "use another stream for more samples"
        )
    return offset


def key(op: str, value: object, where: torch.device) -> NoiseKey | Tensor:
    """Returns a NoiseKey, or its tensor form on the device `where`."""
    if isinstance(value, NoiseKey):
        return value
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{op}: expected key to be a NoiseKey or the tensor of NoiseKey.to_tensor, "
            f"got {type(value).__name__}"
        )
    value = tensor(op, "key", value)
    if value.dtype != torch.int64 or tuple(value.shape) != (2,) or value.device != where:
        raise ValueError(
            f"{op}: expected a key tensor of shape (2,), int64, on {where}, "
            f"got {tuple(value.shape)}, {_dtype_name(value.dtype)}, on {value.device}"
        )
    # Kernels read two neighbouring words.
    return value.contiguous()


def event_shape(op: str, name: str, value: object) -> tuple[int, ...]:
    """Returns a shape (B, *event) of non-negative integers."""
    if not isinstance(value, Sequence) or not value:
        raise TypeError(f"{op}: expected {name} to be a shape (B, *event), got {shown(value)}")
    shape = tuple(count(op, f"{name}[{i}]", n, 0, 2**63) for i, n in enumerate(value))
    if not torch.compiler.is_compiling() and math.prod(shape[1:]) > MAX_ELEMENTS:
        raise ValueError(f"{op}: expected at most 2^34 elements a sample, got {name}={shape}")
    return shape
