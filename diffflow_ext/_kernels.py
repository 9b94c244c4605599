"""The kernels as functions of checked tensors: allocate the result, call the core.

No autograd and no checks. `functional` adds both; `_operators` registers these for torch.compile.
States are made contiguous here; network outputs are brought to one dtype the kernels know.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend
from .noise import PURPOSES, NoiseKey

Scalar = float | Tensor
Key = NoiseKey | Tensor

_NO_NOISE: _backend.Noise = (0, 0, 0, 0, 0)


def address(x: Tensor | None) -> int:
    """Returns the address of a tensor, 0 for an absent one."""
    return 0 if x is None else x.data_ptr()


def _scalar(value: Scalar, x: Tensor) -> Scalar:
    return value.detach().to(x.dtype) if isinstance(value, Tensor) else value


def network_values(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Returns network outputs contiguous and in one dtype that pairs with the state's."""
    dtype = values[0].dtype
    alike = all(value.dtype == dtype for value in values)
    if not alike or not _backend.pairs(x.dtype, dtype):
        dtype = x.dtype
    return tuple(value.to(dtype).contiguous() for value in values)


def philox_words(counter: Tensor, key: Tensor) -> Tensor:
    """Philox words of int64 counters (n, 4) and keys (n, 2)."""
    words = torch.empty_like(counter)
    _backend.core.philox_words(
        (*_backend.where(counter), 0, *counter.shape),
        counter.data_ptr(),
        key.data_ptr(),
        words.data_ptr(),
    )
    return words


def normal(out: Tensor, key: Key, purpose: int, step: int, sample_offset: int) -> Tensor:
    """Fills `out`, contiguous, with standard normals."""
    noise = _backend.noise_source(key, purpose, step, sample_offset)
    _backend.core.normal(_backend.target(out), noise, out.data_ptr())
    return out


def em_step(
    x: Tensor,
    f: Tensor,
    dt: Scalar,
    g: Scalar,
    key: Key,
    step: int,
    sample_offset: int,
    out: Tensor | None = None,
) -> Tensor:
    """x + f dt + g sqrt(dt) delta_f, into `out` (contiguous) where given."""
    x = x.contiguous()
    (f,) = network_values(x, f)
    dt, g = _scalar(dt, x), _scalar(g, x)
    out = torch.empty_like(x) if out is None else out
    _backend.core.em_step(
        _backend.target(x, f.dtype),
        _backend.noise_source(key, PURPOSES["forward"], step, sample_offset),
        _backend.number(dt),
        _backend.number(g),
        x.data_ptr(),
        f.data_ptr(),
        out.data_ptr(),
    )
    return out


def backward_residual(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, dt: Scalar, g_next: Scalar
) -> Tensor:
    """delta_b of one step."""
    x, x_next = x.contiguous(), x_next.contiguous()
    f_next, s_next = network_values(x, f_next, s_next)
    dt, g_next = _scalar(dt, x), _scalar(g_next, x)
    out = torch.empty_like(x)
    _backend.core.backward_residual(
        _backend.target(x, f_next.dtype),
        _backend.number(dt),
        _backend.number(g_next),
        x.data_ptr(),
        x_next.data_ptr(),
        f_next.data_ptr(),
        s_next.data_ptr(),
        out.data_ptr(),
    )
    return out


def backward_residual_vjp(
    grad: Tensor, dt: Scalar, g_next: Scalar
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transpose of backward_residual: gradients of x, x_next, f_next, s_next."""
    grad = grad.contiguous()
    dt, g_next = _scalar(dt, grad), _scalar(g_next, grad)
    outs = tuple(torch.empty_like(grad) for _ in range(4))
    _backend.core.backward_residual_vjp(
        _backend.target(grad),
        _backend.number(dt),
        _backend.number(g_next),
        grad.data_ptr(),
        *(out.data_ptr() for out in outs),
    )
    return outs  # pyright: ignore[reportReturnType]


def residual_cost(
    x: Tensor,
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    dt: Scalar,
    g_next: Scalar,
    previous: Tensor | None = None,
) -> Tensor:
    """Per-sample 1/2 |delta_b|^2, added to `previous` where given."""
    x, x_next = x.contiguous(), x_next.contiguous()
    f_next, s_next = network_values(x, f_next, s_next)
    dt, g_next = _scalar(dt, x), _scalar(g_next, x)
    cost, scratch = x.new_empty(x.shape[0]), _backend.partials(x)
    _backend.core.residual_cost(
        _backend.target(x, f_next.dtype),
        _backend.number(dt),
        _backend.number(g_next),
        x.data_ptr(),
        x_next.data_ptr(),
        f_next.data_ptr(),
        s_next.data_ptr(),
        address(previous),
        cost.data_ptr(),
        address(scratch),
    )
    return cost


def residual_cost_vjp(
    grad: Tensor,
    x: Tensor,
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    dt: Scalar,
    g_next: Scalar,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_b grad_b 1/2 |delta_b|^2: x, x_next, f_next, s_next and g (per sample)."""
    x, x_next, grad = x.contiguous(), x_next.contiguous(), grad.contiguous()
    f_next, s_next = network_values(x, f_next, s_next)
    dt, g_next = _scalar(dt, x), _scalar(g_next, x)
    grad_x, grad_x_next = torch.empty_like(x), torch.empty_like(x)
    grad_f, grad_s = torch.empty_like(f_next), torch.empty_like(s_next)
    grad_g, scratch = torch.empty_like(grad), _backend.partials(x)
    _backend.core.residual_cost_vjp(
        _backend.target(x, f_next.dtype),
        _backend.number(dt),
        _backend.number(g_next),
        x.data_ptr(),
        x_next.data_ptr(),
        f_next.data_ptr(),
        s_next.data_ptr(),
        grad.data_ptr(),
        grad_x.data_ptr(),
        grad_x_next.data_ptr(),
        grad_f.data_ptr(),
        grad_s.data_ptr(),
        grad_g.data_ptr(),
        address(scratch),
    )
    return grad_x, grad_x_next, grad_f, grad_s, grad_g


def reverse_step(
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    dt: Scalar,
    g_next: Scalar,
    key: Key,
    step: int,
    stochasticity: float,
    sample_offset: int,
) -> Tensor:
    """x_next - [f - (1 + lambda^2)/2 g^2 s] dt + lambda g sqrt(dt) eps."""
    x_next = x_next.contiguous()
    f_next, s_next = network_values(x_next, f_next, s_next)
    dt, g_next = _scalar(dt, x_next), _scalar(g_next, x_next)
    out = torch.empty_like(x_next)
    _backend.core.reverse_step(
        _backend.target(x_next, f_next.dtype),
        _backend.noise_source(key, PURPOSES["reverse"], step, sample_offset),
        _backend.number(dt),
        _backend.number(g_next),
        stochasticity,
        x_next.data_ptr(),
        f_next.data_ptr(),
        s_next.data_ptr(),
        out.data_ptr(),
    )
    return out


def affine_step(
    x: Tensor,
    a: Tensor,
    b: Tensor | None,
    c_x: Scalar,
    c_a: Scalar,
    c_b: Scalar,
    noise_scale: Scalar,
    key: Key | None,
    purpose: int,
    step: int,
    sample_offset: int,
) -> Tensor:
    """c_x x + c_a a + c_b b + noise_scale z; no key where `noise_scale` is the number 0."""
    x = x.contiguous()
    if b is None:
        (a,) = network_values(x, a)
    else:
        a, b = network_values(x, a, b)
    noise = _NO_NOISE
    if key is not None:
        noise = _backend.noise_source(key, purpose, step, sample_offset)
    # Held until the call returns: a converted tensor belongs to nobody else.
    factors = [_scalar(c, x) for c in (c_x, c_a, c_b, noise_scale)]
    out = torch.empty_like(x)
    _backend.core.affine_step(
        _backend.target(x, a.dtype),
        noise,
        *map(_backend.number, factors),
        x.data_ptr(),
        a.data_ptr(),
        address(b),
        out.data_ptr(),
    )
    return out


def perturb(
    x0: Tensor, alpha_t: Tensor, sigma_t: Tensor, key: Key, step: int, sample_offset: int
) -> tuple[Tensor, Tensor]:
    """alpha_t x0 + sigma_t eps, and eps. The scalars have shape (1,) or (B,)."""
    x0 = x0.contiguous()
    alpha_t, sigma_t = alpha_t.to(x0.dtype).contiguous(), sigma_t.to(x0.dtype).contiguous()
    x_t, eps = torch.empty_like(x0), torch.empty_like(x0)
    _backend.core.perturb(
        _backend.target(x0),
        _backend.noise_source(key, PURPOSES["dsm"], step, sample_offset),
        x0.data_ptr(),
        alpha_t.data_ptr(),
        sigma_t.data_ptr(),
        int(alpha_t.numel() > 1),
        x_t.data_ptr(),
        eps.data_ptr(),
    )
    return x_t, eps


def noise_dot(v: Tensor, key: Key, purpose: int, step: int, sample_offset: int) -> Tensor:
    """Per-sample sum of v eps, with the noise of a step made again."""
    v = v.contiguous()
    dot, scratch = v.new_empty(v.shape[0]), _backend.partials(v)
    _backend.core.noise_dot(
        _backend.target(v),
        _backend.noise_source(key, purpose, step, sample_offset),
        v.data_ptr(),
        dot.data_ptr(),
        address(scratch),
    )
    return dot


def noise_energy(
    x: Tensor, key: Key, step: int, sample_offset: int, previous: Tensor | None = None
) -> Tensor:
    """Per-sample 1/2 |delta_f|^2 of a forward step over a state shaped like x."""
    energy, scratch = x.new_empty(x.shape[0]), _backend.partials(x)
    _backend.core.noise_energy(
        _backend.target(x),
        _backend.noise_source(key, PURPOSES["forward"], step, sample_offset),
        address(previous),
        energy.data_ptr(),
        address(scratch),
    )
    return energy


class AdjointState(NamedTuple):
    """What one state of the adjoint sweep hands to the one before it in time."""

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
    """The adjoint at one state: one pass over memory (see adjoint.py for the formulas).

    `x_prev` and `s` are None at the first state, `after` is None at the last.
    """
    if s is None:
        (f,) = network_values(x, f)
    else:
        f, s = network_values(x, f, s)
    dt, dt_next, g = (_scalar(value, x) for value in (dt, dt_next, g))
    result = AdjointResult(
        torch.empty_like(f),
        None if s is None else torch.empty_like(s),
        torch.empty_like(x),
        None if s is None else torch.empty_like(x),
        x.new_empty(x.shape[0]) if want_grad_g else None,
    )
    scratch = _backend.partials(x) if want_grad_g else None
    each = weight if isinstance(weight, Tensor) else None
    _backend.core.adjoint_step(
        _backend.target(x, f.dtype),
        _backend.noise_source(key, PURPOSES["forward"], step, sample_offset),
        _backend.number(dt),
        _backend.number(dt_next),
        _backend.number(g),
        1.0 if isinstance(weight, Tensor) else weight,
        [address(t) for t in (x_prev, x, f, s, *(after or (None,) * 4), each, *result, scratch)],
    )
    return result
