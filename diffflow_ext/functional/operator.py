"""Parts of every op: the operator, tensors saved for the backward pass, sums of gradients.

An op is one block of one file: the launch, which allocates the result and calls the core; its
`Operator`; the autograd function; the public function with the formula and the checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .core import Scalar, has_kernels
from .tensors import is_traced

_LIBRARY = torch.library.Library("diffflow_ext", "DEF")
operators = torch.ops.diffflow_ext


class Operator:
    """An op without autograd: a plain call in eager code, a torch operator where it is traced.

    The plain call is several times cheaper. Seeds and coefficients are tensors in the operator's
    schema: an integer or a float would be compiled in, and every new value would compile again.

    Arguments:
        schema: The operator's name and arguments, as torch.library takes them.
        launch: Allocates the result and calls the core.
        fake: Returns a result of the same shape and dtype without computing it.
    """

    def __init__(self, schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> None:
        name = schema.split("(", 1)[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"diffflow_ext::{name}", fake, lib=_LIBRARY)
        self.launch, self.traced = launch, getattr(operators, name)

    def __call__(self, *arguments: Any) -> Any:
        """Returns the op's result for checked arguments."""
        return (self.traced if is_traced() else self.launch)(*arguments)


def call(function: type[Function], op: Operator, *arguments: Any) -> Any:
    """Calls an op, by its autograd function if one of its arguments may need a gradient."""
    if torch.is_grad_enabled():
        for value in arguments:
            if isinstance(value, Tensor) and value.requires_grad:
                return function.apply(*arguments)
    return op(*arguments)


def like(x: Tensor, *_: Any) -> Tensor:
    """Returns an empty result of the shape and dtype of x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def per_sample(x: Tensor, *_: Any) -> Tensor:
    """Returns an empty result with one number for each sample."""
    return x.new_empty(x.shape[0])


def network_like(x: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Returns an empty result of the shape of x, in the dtype of network outputs."""
    dtype = value.dtype
    if other.dtype != dtype or not has_kernels(x.dtype, dtype):
        dtype = x.dtype
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def traceable_scalar(value: Scalar, x: Tensor) -> Scalar:
    """Returns a number as a tensor while a graph is traced: its value must not be compiled in."""
    if isinstance(value, Tensor) or not is_traced():
        return value
    return torch.tensor(value, dtype=x.dtype, device=x.device)


def save(ctx: Any, **values: Any) -> None:
    """Saves tensors by `save_for_backward`, other values as attributes of the context."""
    ctx.plain, ctx.names = values, [n for n, value in values.items() if isinstance(value, Tensor)]
    if ctx.names:
        ctx.save_for_backward(*(values.pop(name) for name in ctx.names))


def saved(ctx: Any) -> dict[str, Any]:
    """Returns the values that `save` was given, by name."""
    if not ctx.names:
        return ctx.plain
    return {**ctx.plain, **dict(zip(ctx.names, ctx.saved_tensors, strict=True))}


def root(value: Scalar) -> Scalar:
    """Returns the square root of a number or a tensor."""
    return value.sqrt() if isinstance(value, Tensor) else value**0.5


def scalar_grad(per_sample: Tensor, scalar: Scalar) -> Tensor:
    """Sums a gradient over the batch, in float64, into the shape of a tensor scalar."""
    assert isinstance(scalar, Tensor)
    return per_sample.double().sum().to(scalar.dtype).reshape(scalar.shape)


def first_order(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Makes a backward pass refuse `create_graph=True`.

    torch's once_differentiable returns constants if the incoming gradient is a constant: a
    gradient penalty would silently have no effect.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():
            return backward(ctx, *grads)
        if torch.is_grad_enabled():
            raise RuntimeError(
                "diffflow_ext: second derivatives are not supported; differentiate without "
                "create_graph=True, or write the expression in plain torch, as "
                "diffflow_ext.functional.reference does"
            )
        # Kernels read memory, which does not contain torch's lazy minus sign.
        resolved = (g.resolve_neg() if g is not None and g.is_neg() else g for g in grads)
        return backward(ctx, *resolved)

    return once
