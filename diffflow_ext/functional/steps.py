r"""The steps of the SDE pair: Euler-Maruyama forward, and the reverse family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .checks import (
    are_usual_states,
    checked_finite,
    checked_network_output,
    checked_positive,
    checked_state,
)
from .core import Scalar, core, network_values, number, scalar_like, target
from .noise import (
    PURPOSES,
    Key,
    checked_key,
    checked_sample_offset,
    checked_step,
    noise_dot,
    noise_source,
    traceable_key,
)
from .operator import (
    Operator,
    call,
    first_order,
    like,
    root,
    save,
    saved,
    scalar_grad,
    traceable_scalar,
)
from .sums import row_dot
from .tensors import is_traced

#: The largest stochasticity: its square times a score must stay in the range of float32.
MAX_STOCHASTICITY = 1e9


def checked_stochasticity(op: str, value: object) -> float:
    """Returns the factor of the reverse family's noise, not negative."""
    strength = checked_finite(op, "stochasticity", value)
    if strength < 0:
        raise ValueError(f"{op}: expected stochasticity >= 0, got {strength}")
    if strength > MAX_STOCHASTICITY:
        raise ValueError(
            f"{op}: expected stochasticity <= {MAX_STOCHASTICITY:g}, got {strength}; 1 is the "
            "process that was trained"
        )
    return strength


def launch_em_step(
    x: Tensor,
    f: Tensor,
    dt: Scalar,
    g: Scalar,
    key: Key,
    step: int,
    sample_offset: int,
    out: Tensor | None = None,
) -> Tensor:
    """Returns x + f dt + g sqrt(dt) delta_f, in `out` (contiguous) if given."""
    x = x.contiguous()
    (f,) = network_values(x, f)
    dt, g = scalar_like(dt, x), scalar_like(g, x)
    out = torch.empty_like(x) if out is None else out
    core.em_step(
        target(x, f.dtype),
        noise_source(key, PURPOSES["forward"], step, sample_offset),
        number(dt),
        number(g),
        x.data_ptr(),
        f.data_ptr(),
        out.data_ptr(),
    )
    return out


_em_step = Operator(
    "em_step(Tensor x, Tensor f, Tensor dt, Tensor g, Tensor key, SymInt step, "
    "SymInt sample_offset) -> Tensor",
    launch_em_step,
    like,
)


class _EmStep(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        f: Tensor,
        dt: Scalar,
        g: Scalar,
        key: Key,
        step: int,
        sample_offset: int,
    ) -> Tensor:
        save(ctx, dt=dt, g=g, key=key, step=step, sample_offset=sample_offset, f_dtype=f.dtype)
        return _em_step(x, f, dt, g, key, step, sample_offset)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        values = saved(ctx)
        need_x, need_f, _, need_g, *_ = ctx.needs_input_grad
        dt = scalar_like(values["dt"], grad)
        grad_f = (grad * dt).to(values["f_dtype"]) if need_f else None
        grad_g = None
        if need_g:
            dot = noise_dot(
                grad, values["key"], PURPOSES["forward"], values["step"], values["sample_offset"]
            )
            grad_g = scalar_grad(dot * root(dt), values["g"])
        return (grad if need_x else None), grad_f, None, grad_g, None, None, None


def em_step(
    x: Tensor,
    f: Tensor,
    *,
    dt: Scalar,
    g: Scalar,
    key: Key,
    step: int,
    sample_offset: int = 0,
) -> Tensor:
    r"""Returns the next state of the forward SDE: one Euler-Maruyama step, with its noise.

    .. math:: x_{i+1} = x_i + f_i \Delta t_i + g_i \sqrt{\Delta t_i} \, \delta^F_i

    Arguments:
        x: The state :math:`x_i`, shape (B, *event), in data units.
        f: The drift at :math:`(t_i, x_i)`, same shape, in data units per time.
        dt: The step :math:`\Delta t_i > 0`, a number or a tensor of one element.
        g: The diffusion :math:`g_i > 0`, a number or a tensor of one element.
        key: Seed and stream of the noise.
        step: The index i, in [0, 2^24).
        sample_offset: The global index of the first sample.

    Returns:
        The state :math:`x_{i+1}`, same shape. Differentiable in `x`, `f` and a tensor `g`. The
        noise is ``normal(x.shape, key, purpose="forward", step=step)``.

    Raises:
        ValueError: If shapes differ, or `dt` or `g` is not positive.
        TypeError: If an argument has the wrong type.
        RuntimeError: If `x` lies on a device that this build has no kernels for.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 11
        | https://arxiv.org/abs/2110.07579
    """
    op = "em_step"
    if not are_usual_states(x, f):
        x = checked_state(op, "x", x)
        f = checked_network_output(op, "f", f, x)
    dt, g = checked_positive(op, "dt", dt, x), checked_positive(op, "g", g, x)
    key = checked_key(op, key, x.device)
    step = checked_step(op, step)
    sample_offset = checked_sample_offset(op, sample_offset, x.shape[0])
    if is_traced():
        dt, g, key = traceable_scalar(dt, x), traceable_scalar(g, x), traceable_key(key, x.device)
    return call(_EmStep, _em_step, x, f, dt, g, key, step, sample_offset)


def launch_reverse_step(
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
    """Returns x_next - [f - (1 + lambda^2)/2 g^2 s] dt + lambda g sqrt(dt) eps."""
    x_next = x_next.contiguous()
    f_next, s_next = network_values(x_next, f_next, s_next)
    dt, g_next = scalar_like(dt, x_next), scalar_like(g_next, x_next)
    out = torch.empty_like(x_next)
    core.reverse_step(
        target(x_next, f_next.dtype),
        noise_source(key, PURPOSES["reverse"], step, sample_offset),
        number(dt),
        number(g_next),
        stochasticity,
        x_next.data_ptr(),
        f_next.data_ptr(),
        s_next.data_ptr(),
        out.data_ptr(),
    )
    return out


_reverse_step = Operator(
    "reverse_step(Tensor x_next, Tensor f_next, Tensor s_next, Tensor dt, Tensor g_next, "
    "Tensor key, SymInt step, float stochasticity, SymInt sample_offset) -> Tensor",
    launch_reverse_step,
    like,
)


class _ReverseStep(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_next: Tensor,
        f: Tensor,
        s: Tensor,
        dt: Scalar,
        g: Scalar,
        key: Key,
        step: int,
        stochasticity: float,
        sample_offset: int,
    ) -> Tensor:
        learned = isinstance(g, Tensor) and g.requires_grad
        save(
            ctx, dt=dt, g=g, key=key, step=step, stochasticity=stochasticity,
            sample_offset=sample_offset, f_dtype=f.dtype, s_dtype=s.dtype,
            **({"s": s} if learned else {}),
        )  # fmt: skip
        return _reverse_step(x_next, f, s, dt, g, key, step, stochasticity, sample_offset)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        values = saved(ctx)
        dt, g = scalar_like(values["dt"], grad), scalar_like(values["g"], grad)
        strength = values["stochasticity"]
        need_x, need_f, need_s, _, need_g, *_ = ctx.needs_input_grad
        grad_f = (grad * -dt).to(values["f_dtype"]) if need_f else None
        grad_s = grad_g = None
        if need_s:
            grad_s = (grad * (0.5 * (1 + strength**2) * g * g * dt)).to(values["s_dtype"])
        if need_g:
            dot = noise_dot(
                grad, values["key"], PURPOSES["reverse"], values["step"], values["sample_offset"]
            )
            along_s = row_dot(grad, values["s"])
            per_sample = (1 + strength**2) * g * dt * along_s + strength * root(dt) * dot
            grad_g = scalar_grad(per_sample, values["g"])
        return (grad if need_x else None), grad_f, grad_s, None, grad_g, None, None, None, None


def reverse_step(
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    *,
    dt: Scalar,
    g_next: Scalar,
    key: Key,
    step: int,
    stochasticity: float = 1.0,
    sample_offset: int = 0,
) -> Tensor:
    r"""Returns the previous state of the reverse family: one Euler step, with its noise.

    .. math:: x_i = x_{i+1} - \left[ f_{i+1} - \tfrac{1 + \lambda^2}{2} g_{i+1}^2 s_{i+1} \right]
                    \Delta t_i + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

    :math:`\lambda = 1` is the process that training fits, :math:`\lambda = 0` an Euler step of the
    probability-flow ODE; in continuous time all have the same marginals.

    Arguments:
        x_next: The state :math:`x_{i+1}`, shape (B, *event), in data units.
        f_next: The drift at :math:`(t_{i+1}, x_{i+1})`, same shape, in data units per time.
        s_next: The score at :math:`(t_{i+1}, x_{i+1})`, same shape, in inverse data units.
        dt: The step :math:`\Delta t_i > 0`, a number or a tensor of one element.
        g_next: The diffusion :math:`g_{i+1} > 0`, a number or a tensor of one element.
        key: Seed and stream of the noise.
        step: The index i, in [0, 2^24).
        stochasticity: The factor :math:`\lambda \ge 0`, dimensionless.
        sample_offset: The global index of the first sample.

    Returns:
        The state :math:`x_i`, same shape. Differentiable in all tensors. The noise is
        ``normal(x_next.shape, key, purpose="reverse", step=step)``.

    Raises:
        ValueError: If shapes differ, `dt` or `g_next` is not positive, or `stochasticity` is
            negative or above 1e9.
        TypeError: If an argument has the wrong type.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 12 and 17
        | https://arxiv.org/abs/2110.07579
    """
    op = "reverse_step"
    x = x_next
    if not are_usual_states(x, f_next, s_next):
        x = checked_state(op, "x_next", x_next)
        f_next = checked_network_output(op, "f_next", f_next, x, "x_next")
        s_next = checked_network_output(op, "s_next", s_next, x, "x_next")
    dt, g = checked_positive(op, "dt", dt, x), checked_positive(op, "g_next", g_next, x)
    key = checked_key(op, key, x.device)
    strength = checked_stochasticity(op, stochasticity)
    step = checked_step(op, step)
    sample_offset = checked_sample_offset(op, sample_offset, x.shape[0])
    if is_traced():
        dt, g, key = traceable_scalar(dt, x), traceable_scalar(g, x), traceable_key(key, x.device)
    arguments = (x, f_next, s_next, dt, g, key, step, strength, sample_offset)
    return call(_ReverseStep, _reverse_step, *arguments)
