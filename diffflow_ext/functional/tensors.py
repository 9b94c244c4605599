"""Which tensors compiled code can read: dense ones with memory, outside of torch's transforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.nn.parameter import is_lazy

# Bound here, because each op asks several times.
_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active


def is_traced() -> bool:
    """Says whether torch must see each op: it records a graph, or a dispatch mode watches.

    So it is in torch.compile, torch.jit.trace, make_fx, FakeTensorMode, FlopCounterMode and so on.
    """
    return _compiling() or _dispatch_modes() > 0 or _tracing_state() is not None


def hides_values() -> bool:
    """Says whether tensors have no values that may be read: a graph is recorded for others."""
    return is_traced() and (_compiling() or _records())


def _records() -> bool:
    keys, mode = torch._C._TorchDispatchModeKey, torch._C._get_dispatch_mode
    modes = (_tracing_state(), mode(keys.PROXY), mode(keys.FAKE))
    return any(one is not None for one in modes)


def refuse_tracing(op: str) -> None:
    """Refuses a call that computes outside of torch, where torch records a graph or has no values.

    torch.compile breaks its graph at such calls.
    """
    if not _compiling() and _records():
        raise RuntimeError(
            f"{op}: expected a call with values, got one in torch.jit.trace, make_fx or "
            "FakeTensorMode, which cannot see what compiled code computes; call it outside"
        )


def are_usual(tensors: Sequence[object]) -> bool:
    """Says whether `checked_tensor` would return all tensors as they are, as in most calls.

    This takes less time than a single operation of PyTorch.
    """
    if is_traced() or forward_ad._current_level >= 0 or _transforms_active():
        return False
    for value in tensors:
        if (
            type(value) is not Tensor
            or not value.is_cpu
            or value.is_nested
            or value.layout is not torch.strided
            or is_functorch_wrapped_tensor(value)
            or value.data_ptr() == 0
            or value.untyped_storage().nbytes() == 0
            or value.is_neg()
        ):
            return False
    return True


def checked_tensor(op: str, name: str, value: object) -> Tensor:
    """Returns `value` if it is an ordinary dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {type(value).__name__}")
    if not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(value):
        raise _transformed(op)
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{op}: expected {name} to be dense, got {layout}")
    if torch.compiler.is_compiling():
        return value.resolve_neg()
    if _may_lack_memory(value):
        _refuse_without_memory(op, name, value)
    # Kernels read memory, which does not contain torch's lazy minus sign.
    return value.resolve_neg() if value.is_neg() else value


def refuse_transforms(op: str) -> None:
    """Refuses a call inside of a torch.func transform, whose tensors compiled code cannot read."""
    if not torch.compiler.is_compiling() and _transforms_active():
        raise _transformed(op)


def _transformed(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}: torch.func transforms (vmap, grad, jvp) are not supported, because compiled code "
        "computes the values; use .backward() or torch.autograd.grad, the whole batch in one "
        "call, and a loop over the models of an ensemble"
    )


def in_forward_mode() -> bool:
    """Says whether forward-mode AD is on (torch.autograd.forward_ad.dual_level)."""
    return forward_ad._current_level >= 0


def refuse_tangent(op: str, name: str, value: Tensor) -> None:
    """Refuses a dual tensor of forward-mode AD, whose tangent compiled code would drop."""
    if in_forward_mode() and forward_ad.unpack_dual(value).tangent is not None:
        raise RuntimeError(
            f"{op}: expected {name} without a tangent, got a dual tensor of torch.autograd."
            "forward_ad, which compiled ops do not support; use .backward() or torch.autograd.grad"
        )


def _may_lack_memory(value: Tensor) -> bool:
    """Says whether a tensor is empty or has no memory of its own."""
    if type(value) is not Tensor and (is_lazy(value) or _is_fake(value)):
        return True
    return value.data_ptr() == 0 or value.untyped_storage().nbytes() == 0


def _is_fake(value: Tensor) -> bool:
    return type(value).__name__ == "FakeTensor"  # Importing the class takes long.


def _refuse_without_memory(op: str, name: str, value: Tensor) -> None:
    if is_lazy(value):
        raise ValueError(
            f"{op}: expected {name} to be initialised, got an uninitialised parameter"
        )
    if (value.numel() or _is_fake(value)) and value.device.type in ("cpu", "cuda"):
        raise ValueError(
            f"{op}: expected {name} to hold values, got a tensor of shape {tuple(value.shape)} "
            f"without memory ({type(value).__name__}): a fake or wrapped tensor, or its memory "
            "was freed; pass an ordinary one, such as the result of .full_tensor() or .clone()"
        )
