"""The kernels as torch operators, for graphs that torch.compile and torch.export record.

Eager code calls `_kernels` directly, which is several times cheaper. Seeds and coefficients are
tensors here: an integer or float argument would be compiled in and every new value would compile
again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._backend import pairs

__all__ = ["operators", "register_operator"]

_LIBRARY = torch.library.Library("diffflow_ext", "DEF")

_RESIDUAL = "Tensor x, Tensor x_next, Tensor f_next, Tensor s_next, Tensor dt, Tensor g_next"
_NOISE = "Tensor key, SymInt step, SymInt sample_offset"

operators = torch.ops.diffflow_ext


def register_operator(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Defines an operator, without autograd, and returns it."""
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"diffflow_ext::{name}", fake, lib=_LIBRARY)
    return getattr(operators, name)


def _like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _per_sample(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0])


def _network_like(x: Tensor, value: Tensor, other: Tensor) -> Tensor:
    dtype = value.dtype
    if other.dtype != dtype or not pairs(x.dtype, dtype):
        dtype = x.dtype
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _cost_vjp_fake(
    grad: Tensor, x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    network = (_network_like(x, f_next, s_next), _network_like(x, f_next, s_next))
    return _like(x), _like(x), *network, grad.new_empty(grad.shape)


def _normal(
    shape: list[int],
    key: Tensor,
    purpose: int,
    step: int,
    sample_offset: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    out = torch.empty(shape, dtype=dtype, device=device)
    return _kernels.normal(out, key, purpose, step, sample_offset)


def _normal_fake(
    shape: list[int],
    key: Tensor,
    purpose: int,
    step: int,
    sample_offset: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _affine_step(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c_x: Tensor,
    c_a: Tensor,
    c_b: Tensor,
    noise_scale: Tensor,
    key: Tensor | None,
    purpose: int,
    step: int,
    sample_offset: int,
) -> Tensor:
    """No key says that there is no noise, which a tensor's value cannot."""
    scale = 0.0 if key is None else noise_scale
    return _kernels.affine_step(x, a, b, c_x, c_a, c_b, scale, key, purpose, step, sample_offset)


register_operator(
    "normal(SymInt[] shape, Tensor key, int purpose, SymInt step, SymInt sample_offset, "
    "ScalarType dtype, Device device) -> Tensor",
    _normal,
    _normal_fake,
)
register_operator(
    f"em_step(Tensor x, Tensor f, Tensor dt, Tensor g, {_NOISE}) -> Tensor",
    _kernels.em_step,
    _like,
)
register_operator(f"backward_residual({_RESIDUAL}) -> Tensor", _kernels.backward_residual, _like)
register_operator(
    "backward_residual_vjp(Tensor grad, Tensor dt, Tensor g_next)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _kernels.backward_residual_vjp,
    lambda grad, dt, g_next: tuple(_like(grad) for _ in range(4)),
)
register_operator(f"residual_cost({_RESIDUAL}) -> Tensor", _kernels.residual_cost, _per_sample)
register_operator(
    f"residual_cost_vjp(Tensor grad, {_RESIDUAL}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernels.residual_cost_vjp,
    _cost_vjp_fake,
)
register_operator(
    "reverse_step(Tensor x_next, Tensor f_next, Tensor s_next, Tensor dt, Tensor g_next, "
    "Tensor key, SymInt step, float stochasticity, SymInt sample_offset) -> Tensor",
    _kernels.reverse_step,
    _like,
)
register_operator(
    "affine_step(Tensor x, Tensor a, Tensor? b, Tensor c_x, Tensor c_a, Tensor c_b, "
    "Tensor noise_scale, Tensor? key, int purpose, SymInt step, SymInt sample_offset) -> Tensor",
    _affine_step,
    _like,
)
register_operator(
    f"perturb(Tensor x0, Tensor alpha_t, Tensor sigma_t, {_NOISE}) -> (Tensor, Tensor)",
    _kernels.perturb,
    lambda x0, *_: (_like(x0), _like(x0)),
)
register_operator(
    "noise_dot(Tensor v, Tensor key, int purpose, SymInt step, SymInt sample_offset) -> Tensor",
    _kernels.noise_dot,
    _per_sample,
)
