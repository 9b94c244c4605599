"""The backward residual, its cost, and the smallest noise that residuals can be divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .checks import (
    are_usual_states,
    checked_like_state,
    checked_network_output,
    checked_positive,
    checked_state,
    dtype_name,
)
from .core import Scalar, address, core, network_values, number, partials, scalar_like, target
from .operator import (
    Operator,
    call,
    first_order,
    like,
    network_like,
    per_sample,
    root,
    save,
    saved,
    scalar_grad,
    traceable_scalar,
)
from .tensors import hides_values, is_traced

#: The smallest g and g sqrt(dt) of a residual, by the dtype of the state. With g * g^2 dt >= 1e-29
#: (1e-280) the gradient of its cost in g, the largest result, stays below 1.6e38 (1.6e289) for
#: terms of size M in d dimensions with M sqrt(d) <= 1e4: it is at most 16 M^2 d / (g * g^2 dt).
NOISE_FLOORS = {torch.float32: (1e-9, 1e-10), torch.float64: (1e-90, 1e-95)}
_TENSORS = "Tensor x, Tensor x_next, Tensor f_next, Tensor s_next, Tensor dt, Tensor g_next"


def check_step_noise(op: str, dt: float | Tensor, g: float | Tensor, x: Tensor) -> None:
    """Refuses a step whose noise g sqrt(dt) is too small to divide by, where values are known."""
    if type(dt) is float and type(g) is float:
        low_g, low = NOISE_FLOORS[x.dtype]
        if g >= low_g and g * math.sqrt(dt) >= low:
            return
    if any(isinstance(v, Tensor) and v.is_cuda for v in (dt, g)):
        return
    known = [float(v.detach()) if isinstance(v, Tensor) else v for v in (dt, g)]
    check_noise_floor(op, known[:1], known[1:], x)


def check_noise_floor(
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
                f"{dtype_name(x.dtype)}, got g={g} and dt={dt:g} at step {i}: residuals are "
                "divided by this noise; take a larger g, longer steps or float64"
            )


def _residual_arguments(
    op: str,
    x: Tensor,
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    dt: Scalar,
    g_next: Scalar,
) -> tuple[Any, ...]:
    if not are_usual_states(x, x_next, f_next, s_next):
        x = checked_state(op, "x", x)
        x_next = checked_like_state(op, "x_next", x_next, x)
        f_next = checked_network_output(op, "f_next", f_next, x)
        s_next = checked_network_output(op, "s_next", s_next, x)
    dt, g = checked_positive(op, "dt", dt, x), checked_positive(op, "g_next", g_next, x)
    if not hides_values():
        check_step_noise(op, dt, g, x)
    if is_traced():
        dt, g = traceable_scalar(dt, x), traceable_scalar(g, x)
    return x, x_next, f_next, s_next, dt, g


def launch_backward_residual(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, dt: Scalar, g_next: Scalar
) -> Tensor:
    """Returns delta_b of one step."""
    x, x_next = x.contiguous(), x_next.contiguous()
    f_next, s_next = network_values(x, f_next, s_next)
    dt, g_next = scalar_like(dt, x), scalar_like(g_next, x)
    out = torch.empty_like(x)
    core.backward_residual(
        target(x, f_next.dtype),
        number(dt),
        number(g_next),
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
    """Returns the gradients of x, x_next, f_next and s_next, the transpose of the residual."""
    grad = grad.contiguous()
    dt, g_next = scalar_like(dt, grad), scalar_like(g_next, grad)
    outs = tuple(torch.empty_like(grad) for _ in range(4))
    core.backward_residual_vjp(
        target(grad),
        number(dt),
        number(g_next),
        grad.data_ptr(),
        *(out.data_ptr() for out in outs),
    )
    return outs  # pyright: ignore[reportReturnType]


_backward_residual = Operator(
    f"backward_residual({_TENSORS}) -> Tensor", launch_backward_residual, like
)

_backward_residual_vjp = Operator(
    "backward_residual_vjp(Tensor grad, Tensor dt, Tensor g_next)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    backward_residual_vjp,
    lambda grad, dt, g_next: tuple(like(grad) for _ in range(4)),
)


class _BackwardResidual(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: Scalar, g: Scalar
    ) -> Tensor:
        delta_b = _backward_residual(x, x_next, f, s, dt, g)
        learned = isinstance(g, Tensor) and g.requires_grad
        extra = {"delta_b": delta_b, "s": s} if learned else {}
        save(ctx, dt=dt, g=g, f_dtype=f.dtype, s_dtype=s.dtype, **extra)
        return delta_b

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        values = saved(ctx)
        x, x_next, f, s = _backward_residual_vjp(grad, values["dt"], values["g"])
        grad_g = None
        if ctx.needs_input_grad[5]:
            dt, g = scalar_like(values["dt"], grad), scalar_like(values["g"], grad)
            slope = values["delta_b"] + 2 * g * root(dt) * values["s"].to(grad.dtype)
            grad_g = scalar_grad(-(grad * slope) / g, values["g"])
        return x, x_next, f.to(values["f_dtype"]), s.to(values["s_dtype"]), None, grad_g


def backward_residual(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *, dt: Scalar, g_next: Scalar
) -> Tensor:
    r"""Returns the noise with which the reverse SDE would step from `x_next` to `x`.

    .. math:: \delta^B_i = \frac{x_i - x_{i+1} + (f_{i+1} - g_{i+1}^2 s_{i+1}) \Delta t_i}
                                {g_{i+1} \sqrt{\Delta t_i}}

    Standard normal if drift and score reverse one another; half its squared norm is the cost of
    step i.

    Arguments:
        x: The state :math:`x_i`, shape (B, *event), in data units.
        x_next: The state :math:`x_{i+1}`, same shape.
        f_next: The drift at :math:`(t_{i+1}, x_{i+1})`, same shape, in data units per time.
        s_next: The score at :math:`(t_{i+1}, x_{i+1})`, same shape, in inverse data units.
        dt: The step :math:`\Delta t_i > 0`, a number or a tensor of one element.
        g_next: The diffusion :math:`g_{i+1} > 0`, a number or a tensor of one element.

    Returns:
        The residual :math:`\delta^B_i`, dimensionless, same shape. Differentiable in all tensors.

    The residual divides by the noise of the step, which therefore has a floor:
    :math:`g \ge 10^{-9}` and :math:`g \sqrt{\Delta t} \ge 10^{-10}` in float32 (:math:`10^{-90}`
    and :math:`10^{-95}` in float64). Above it value and gradients are finite and right to 1e-5 of
    the sum of their terms' magnitudes in float32, if data and the terms :math:`f \Delta t`,
    :math:`g^2 s \Delta t` are of size M with :math:`M \sqrt d \le 10^4`. If the noise is below
    :math:`10^{-7} M`, rounding errors of the states dominate the residual.

    Raises:
        ValueError: If shapes differ, `dt` or `g_next` is not positive, or they are below the floor
            (values of tensors on a GPU are not checked).
        TypeError: If an argument has the wrong type.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 15
        | https://arxiv.org/abs/2110.07579
    """
    arguments = _residual_arguments("backward_residual", x, x_next, f_next, s_next, dt, g_next)
    return call(_BackwardResidual, _backward_residual, *arguments)


def launch_residual_cost(
    x: Tensor,
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    dt: Scalar,
    g_next: Scalar,
    previous: Tensor | None = None,
) -> Tensor:
    """Returns 1/2 |delta_b|^2 for each sample, added to `previous` if given."""
    x, x_next = x.contiguous(), x_next.contiguous()
    f_next, s_next = network_values(x, f_next, s_next)
    dt, g_next = scalar_like(dt, x), scalar_like(g_next, x)
    cost, scratch = x.new_empty(x.shape[0]), partials(x)
    core.residual_cost(
        target(x, f_next.dtype),
        number(dt),
        number(g_next),
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
    """Returns the gradients of sum_b grad_b 1/2 |delta_b|^2; that of g is per sample."""
    x, x_next, grad = x.contiguous(), x_next.contiguous(), grad.contiguous()
    f_next, s_next = network_values(x, f_next, s_next)
    dt, g_next = scalar_like(dt, x), scalar_like(g_next, x)
    grad_x, grad_x_next = torch.empty_like(x), torch.empty_like(x)
    grad_f, grad_s = torch.empty_like(f_next), torch.empty_like(s_next)
    grad_g, scratch = torch.empty_like(grad), partials(x)
    core.residual_cost_vjp(
        target(x, f_next.dtype),
        number(dt),
        number(g_next),
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


def _fake_cost_vjp(
    grad: Tensor, x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    network = (network_like(x, f_next, s_next), network_like(x, f_next, s_next))
    return like(x), like(x), *network, grad.new_empty(grad.shape)


_residual_cost = Operator(f"residual_cost({_TENSORS}) -> Tensor", launch_residual_cost, per_sample)

_residual_cost_vjp = Operator(
    f"residual_cost_vjp(Tensor grad, {_TENSORS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    residual_cost_vjp,
    _fake_cost_vjp,
)


class _ResidualCost(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: Scalar, g: Scalar
    ) -> Tensor:
        save(ctx, x=x, x_next=x_next, f=f, s=s, dt=dt, g=g)
        return _residual_cost(x, x_next, f, s, dt, g)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        values = saved(ctx)
        f, s = values["f"], values["s"]
        grad_x, grad_x_next, grad_f, grad_s, grad_g = _residual_cost_vjp(
            grad, values["x"], values["x_next"], f, s, values["dt"], values["g"]
        )
        summed = scalar_grad(grad_g, values["g"]) if ctx.needs_input_grad[5] else None
        return grad_x, grad_x_next, grad_f.to(f.dtype), grad_s.to(s.dtype), None, summed


def residual_cost(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *, dt: Scalar, g_next: Scalar
) -> Tensor:
    r"""Returns the cost of one step for each sample, shape (B,), in nats.

    .. math:: c_i = \tfrac12 \| \delta^B_i \|^2

    Arguments and errors are those of :func:`backward_residual`, whose result is not stored. The
    sum has a fixed order, the same on every device and for any number of threads. Differentiable
    in all tensors.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 16
        | https://arxiv.org/abs/2110.07579
    """
    arguments = _residual_arguments("residual_cost", x, x_next, f_next, s_next, dt, g_next)
    return call(_ResidualCost, _residual_cost, *arguments)
