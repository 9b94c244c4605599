"""How values are named in messages: short, and without looking into a tensor's memory."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parameter import is_lazy

__all__ = ["shown"]

LONGEST = 100


def shown(value: object) -> str:
    """Returns a value in words for the line of an error."""
    if isinstance(value, Tensor):
        shape = "unknown shape" if is_lazy(value) or value.is_nested else f"{tuple(value.shape)}"
        return f"a tensor of {shape}" if shape[0] == "u" else f"a tensor of shape {shape}"
    if isinstance(value, int) and abs(value) >= 2**128:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print the largest.
    if isinstance(value, (list, tuple, dict, set)):
        return (
            f"a {type(value).__name__} of {len(value)}" if _holds_tensors(value) else _cut(value)
        )
    return _cut(value)


def _holds_tensors(values: object) -> bool:
    if isinstance(values, dict):
        return any(map(_holds_tensors, values.values()))
    if isinstance(values, (list, tuple, set)):
        return any(map(_holds_tensors, values))
    return isinstance(values, Tensor)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
