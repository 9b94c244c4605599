"""The step of the adjoint: the residual of one state, cotangents and gradients in one pass.

Its formulas are derived in :mod:`diffflow_ext.engines.adjoint.losses`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .core import Scalar, address, core, network_values, number, partials, scalar_like, target
from .noise import PURPOSES, Key, noise_source


class AdjointState(NamedTuple):
    """Results at one state that the adjoint sweep needs at the state before it in time."""

    local: Tensor
    vjp_f: Tensor | None
    vjp_s: Tensor | None
    carry: Tensor | None


class AdjointResult(NamedTuple):
    """Cotangents for the two networks, the rest of dL/dx_k, q_k, and dL/dg_k per sample."""

    cotangent_f: Tensor
    cotangent_s: Tensor | None
    local: Tensor
    carry: Tensor | None
    grad_g: Tensor | None


def _adjoint_tensors(
    x_prev: Tensor | None,
    x: Tensor,
    f: Tensor,
    s: Tensor | None,
    after: AdjointState | None,
    weight: Tensor | float,
    result: AdjointResult,
    scratch: Tensor | None,
) -> Any:
    """Returns the addresses of one state's tensors; those of absent tensors stay 0."""
    tensors = core.AdjointTensors()
    tensors.x, tensors.f = x.data_ptr(), f.data_ptr()
    tensors.cotangent_f, tensors.local = result.cotangent_f.data_ptr(), result.local.data_ptr()
    if s is not None:
        tensors.x_prev, tensors.s = address(x_prev), s.data_ptr()
        tensors.cotangent_s, tensors.carry = address(result.cotangent_s), address(result.carry)
    if after is not None:
        tensors.local_next, tensors.carry_next = after.local.data_ptr(), address(after.carry)
        tensors.vjp_f_next, tensors.vjp_s_next = address(after.vjp_f), address(after.vjp_s)
    if isinstance(weight, Tensor):
        tensors.weight = weight.data_ptr()
    if result.grad_g is not None:
        tensors.grad_g, tensors.partials = result.grad_g.data_ptr(), address(scratch)
    return tensors


def adjoint_step(
    x_prev: Tensor | None,
    x: Tensor,
    f: Tensor,
    s: Tensor | None,
    after: AdjointState | None,
    *,
    weight: Tensor | float,
    dt: Scalar,
    dt_next: Scalar,
    g: Scalar,
    key: Key,
    step: int,
    sample_offset: int,
    want_grad_g: bool,
) -> AdjointResult:
    """Returns the adjoint at one state from one pass over memory.

    `x_prev` and `s` are None at the first state, `after` is None at the last.
    """
    if s is None:
        (f,) = network_values(x, f)
    else:
        f, s = network_values(x, f, s)
    dt, dt_next, g = (scalar_like(value, x) for value in (dt, dt_next, g))
    result = AdjointResult(
        torch.empty_like(f),
        None if s is None else torch.empty_like(s),
        torch.empty_like(x),
        None if s is None else torch.empty_like(x),
        x.new_empty(x.shape[0]) if want_grad_g else None,
    )
    scratch = partials(x) if want_grad_g else None
    core.adjoint_step(
        target(x, f.dtype),
        noise_source(key, PURPOSES["forward"], step, sample_offset),
        number(dt),
        number(dt_next),
        number(g),
        1.0 if isinstance(weight, Tensor) else weight,
        _adjoint_tensors(x_prev, x, f, s, after, weight, result, scratch),
    )
    return result
