"""Contexts: what networks are given besides the time and the state, one row for each sample.

A context is a tensor of shape (B, ...) or a mapping of names to such tensors: labels, measured
quantities, images. Rows stay with their samples: where an engine evaluates several states of the
batch in one call, one after the other, each of them has the whole context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checks import check_finite, dtype_name, in_words
from .tensors import checked_tensor, refuse_tangent

Context = Tensor | Mapping[str, Tensor]
_MaybeContext = TypeVar("_MaybeContext", bound=Context | None)


def tensors_of(context: Context | None) -> list[Tensor]:
    """Returns the tensors of a context, in the order of a mapping; none of no context."""
    if context is None:
        return []
    return [context] if isinstance(context, Tensor) else list(context.values())


def learned_tensors(context: Context | None) -> list[Tensor]:
    """Returns the tensors of a context that need gradients."""
    return [c for c in tensors_of(context) if c.requires_grad]


def mapped(context: _MaybeContext, change: Callable[[Tensor], Tensor]) -> _MaybeContext:
    """Returns a context of the same form with other tensors; None for none."""
    if isinstance(context, Tensor):
        return change(context)  # pyright: ignore[reportReturnType]
    if isinstance(context, Mapping):
        return {name: change(value) for name, value in context.items()}  # pyright: ignore
    return context


def checked_context(op: str, context: Any, x: Tensor) -> Context | None:
    """Returns the context of the samples x, shape (B, *event); None for none.

    Raises:
        ValueError: If it has another number of rows, or is on another device, or not finite.
        TypeError: If it is no tensor and no mapping of names to tensors, or of another precision.
    """
    if context is None:
        return None
    if isinstance(context, Tensor):
        return _checked(op, "context", context, x)
    if not isinstance(context, Mapping) or not context:
        raise TypeError(
            f"{op}: expected context as a tensor of shape ({len(x)}, ...) or a mapping of names "
            f"to such tensors, got {in_words(context)}"
        )
    return {name: _checked(op, f"context[{name!r}]", c, x) for name, c in context.items()}


def _checked(op: str, name: str, value: object, x: Tensor) -> Tensor:
    c = checked_tensor(op, name, value)
    refuse_tangent(op, name, c)
    if c.dim() < 1 or c.shape[0] != x.shape[0]:
        raise ValueError(
            f"{op}: expected {name} of shape ({len(x)}, ...), one row for each sample, got "
            f"{tuple(c.shape)}; for one that all samples share, pass "
            f"context.expand({len(x)}, ...)"
        )
    if c.device != x.device:
        raise ValueError(
            f"{op}: expected {name} on the device of the samples ({x.device}), got {c.device}; "
            "move it with .to()"
        )
    if c.is_floating_point():
        if c.dtype != x.dtype:
            raise TypeError(
                f"{op}: expected {name} in the dtype of the samples ({dtype_name(x.dtype)}), got "
                f"{dtype_name(c.dtype)}; convert it with .to({x.dtype}), labels are int64"
            )
        check_finite(op, name, c)
    if torch.compiler.is_compiling():
        return c
    # Networks with gradients cannot save what was made in inference mode.
    with torch.inference_mode(False):
        return c.clone() if c.is_inference() else c


def leaves_of(context: _MaybeContext) -> _MaybeContext:
    """Returns the same context without the graphs from which it was computed."""
    return mapped(context, lambda c: c.detach().requires_grad_(c.requires_grad))


def repeated(context: _MaybeContext, rows: slice, times: int) -> _MaybeContext:
    """Returns some rows of a context, each `times` times in a row."""
    return mapped(context, lambda c: c[rows].repeat_interleave(times, 0))


def rows_for(context: Context, x: Tensor) -> Context:
    """Returns one row for each row of x, which holds one or several states of the batch.

    Raises:
        ValueError: If x holds no whole number of states.
    """
    own, count = tensors_of(context)[0].shape[0], x.shape[0]
    if own == count:
        return context
    if not own or count % own:
        raise ValueError(
            f"context: expected x to hold one or several states of {own} samples, got x of shape "
            f"{tuple(x.shape)}"
        )
    return mapped(context, lambda c: c.repeat(count // own, *(1,) * (c.dim() - 1)))
