r"""The fused operations of the discretised SDE pair, each with gradients.

On a grid with steps :math:`\Delta t_i = t_{i+1} - t_i`:

.. math::
    x_{i+1} &= x_i + f_i \Delta t_i + g_i \sqrt{\Delta t_i} \, \delta^F_i \\
    \delta^B_i &= \frac{x_i - x_{i+1} + (f_{i+1} - g_{i+1}^2 s_{i+1}) \Delta t_i}
                       {g_{i+1} \sqrt{\Delta t_i}} \\
    x_i &= x_{i+1} - \left[ f_{i+1} - \tfrac{1 + \lambda^2}{2} g_{i+1}^2 s_{i+1} \right] \Delta t_i
           + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

and, for solvers whose coefficients are known, :math:`y = c_x x + c_a a + c_b b + s z`.

Contracts of all ops. States are float32 or float64 of shape (B, *event) on the CPU or a CUDA
device; network outputs may also be bfloat16 or float16. Any strides; inputs are never modified.
Each op is one pass over memory in the current stream, deterministic, and safe to capture in a
CUDA graph when its key is a tensor (:meth:`NoiseKey.to_tensor`). Gradients exist in all tensors,
in a tensor `g` and in the factors of `affine_step`, not in `dt`; second derivatives raise. Under
torch.compile the ops do not break the graph: pass scalars as tensors there if they change, or each
new value compiles again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _checks, _kernels
from ._affine import affine_step
from ._autograd import (
    Key,
    Scalar,
    kernel,
    root,
    row_dot,
    save,
    saved,
    scalar_grad,
    traceable_key,
    traceable_scalar,
)
from ._first_order import first_order
from ._operators import operators
from ._words import shown
from .noise import PURPOSES, place, purpose_code

__all__ = [
    "affine_step",
    "backward_residual",
    "em_step",
    "normal",
    "perturb",
    "philox_words",
    "residual_cost",
    "reverse_step",
]


# --- noise ---------------------------------------------------------------------------------------


def philox_words(counter: Tensor, key: Tensor) -> Tensor:
    """Returns the four random words of Philox4x32-10 for each counter: the bare generator.

    Arguments:
        counter: Counters, int64 with values in [0, 2^32), shape (*, 4).
        key: Keys, int64 with values in [0, 2^32), shape (2,) or (*, 2).

    Returns:
        The words, int64 with values in [0, 2^32), shape (*, 4).

    Raises:
        TypeError: If an argument is not an int64 tensor.
        ValueError: If a shape or a value is out of range.

    References:
        | Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., SC 2011)
        | https://doi.org/10.1145/2063384.2063405
    """
    op = "philox_words"
    _philox_argument(op, "counter", counter, 4)
    _philox_argument(op, "key", key, 2)
    if key.shape != (2,) and key.shape[:-1] != counter.shape[:-1]:
        raise ValueError(
            f"{op}: expected key of shape (2,) or {(*counter.shape[:-1], 2)}, "
            f"got {tuple(key.shape)}"
        )
    flat = counter.reshape(-1, 4).contiguous()
    keys = key.to(counter.device).expand(*counter.shape[:-1], 2).reshape(-1, 2).contiguous()
    return _kernels.philox_words(flat, keys).reshape(counter.shape)


def _philox_argument(op: str, name: str, value: Tensor, words: int) -> None:
    _checks.tensor(op, name, value)
    _checks.device(op, name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{op}: expected {name} to be int64, got {value.dtype}")
    if value.dim() < 1 or value.shape[-1] != words:
        raise ValueError(f"{op}: expected {name} of shape (*, {words}), got {tuple(value.shape)}")
    if ((value < 0) | (value >= 2**32)).any():
        raise ValueError(f"{op}: expected {name} in [0, 2^32)")


def normal(
    shape: tuple[int, ...],
    key: Key,
    *,
    purpose: str = "forward",
    step: int = 0,
    sample_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Returns the standard normals that the other ops make in registers.

    .. math:: z = \sqrt{-2 \log u} \, (\cos 2 \pi v, \sin 2 \pi v)

    with u and v from Philox. A draw depends on (seed, stream, purpose, step, sample, element)
    alone, so that any part of the noise can be made again anywhere, bit for bit.

    Arguments:
        shape: The shape (B, *event).
        key: Seed and stream, a NoiseKey or its tensor on `device`.
        purpose: What the draw is for, a name in :data:`diffflow_ext.noise.PURPOSES`.
        step: The step of the grid, in [0, 2^24).
        sample_offset: The global index of the first sample, in [0, 2^32).
        dtype: float32, or another floating type that holds the same draws, rounded.
        device: Where the result lies.

    Returns:
        Normals of the given shape, |z| <= 5.77.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument has the wrong type.
    """
    op = "normal"
    shape = _checks.event_shape(op, "shape", shape)
    where = device if torch.compiler.is_compiling() else place(op, device)
    where = torch.empty(0, device=where).device
    if not isinstance(dtype, torch.dtype) or dtype not in _checks.NETWORK_DTYPES:
        raise TypeError(f"{op}: expected a floating dtype, got {shown(dtype)}")
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    key = _checks.key(op, key, where)
    code = purpose_code(op, purpose)
    step, offset = _checks.step(op, step), _checks.sample_offset(op, sample_offset, shape[0])
    if torch.compiler.is_compiling():
        tensor = traceable_key(key, where)
        return operators.normal(shape, tensor, code, step, offset, compute, where).to(dtype)
    out = torch.empty(shape, dtype=compute, device=where)
    _checks.device(op, "device", out)
    return _kernels.normal(out, key, code, step, offset).to(dtype)


# --- forward step --------------------------------------------------------------------------------


class _EmStep(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, dt: Scalar, g: Scalar, key: Key, step: int, offset: int
    ) -> Tensor:
        save(ctx, dt=dt, g=g, key=key, step=step, offset=offset, f_dtype=f.dtype)
        return kernel("em_step")(x, f, dt, g, key, step, offset)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        at = saved(ctx)
        need_x, need_f, _, need_g, *_ = ctx.needs_input_grad
        grad_f = (grad * at["dt"]).to(at["f_dtype"]) if need_f else None
        grad_g = None
        if need_g:
            dot = kernel("noise_dot")(
                grad, at["key"], PURPOSES["forward"], at["step"], at["offset"]
            )
            grad_g = scalar_grad(dot * root(at["dt"]), at["g"])
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
    r"""Returns the next state of the forward SDE, one Euler-Maruyama step with noise made on chip.

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
    x = _checks.state(op, "x", x)
    f = _checks.network_output(op, "f", f, x)
    dt = traceable_scalar(_checks.positive(op, "dt", dt, x), x)
    g = traceable_scalar(_checks.positive(op, "g", g, x), x)
    key = traceable_key(_checks.key(op, key, x.device), x.device)
    step, offset = _checks.step(op, step), _checks.sample_offset(op, sample_offset, x.shape[0])
    return _EmStep.apply(x, f, dt, g, key, step, offset)


# --- residual ------------------------------------------------------------------------------------


class _BackwardResidual(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: Scalar, g: Scalar
    ) -> Tensor:
        delta_b = kernel("backward_residual")(x, x_next, f, s, dt, g)
        learned = isinstance(g, Tensor) and g.requires_grad
        extra = {"delta_b": delta_b, "s": s} if learned else {}
        save(ctx, dt=dt, g=g, f_dtype=f.dtype, s_dtype=s.dtype, **extra)
        return delta_b

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        at = saved(ctx)
        x, x_next, f, s = kernel("backward_residual_vjp")(grad, at["dt"], at["g"])
        grad_g = None
        if ctx.needs_input_grad[5]:
            slope = at["delta_b"] + 2 * at["g"] * root(at["dt"]) * at["s"].to(grad.dtype)
            grad_g = scalar_grad(-(grad * slope) / at["g"], at["g"])
        return x, x_next, f.to(at["f_dtype"]), s.to(at["s_dtype"]), None, grad_g


def _residual_arguments(
    op: str,
    x: Tensor,
    x_next: Tensor,
    f_next: Tensor,
    s_next: Tensor,
    dt: Scalar,
    g_next: Scalar,
) -> tuple[Any, ...]:
    x = _checks.state(op, "x", x)
    x_next = _checks.like_state(op, "x_next", x_next, x)
    f_next = _checks.network_output(op, "f_next", f_next, x)
    s_next = _checks.network_output(op, "s_next", s_next, x)
    dt = traceable_scalar(_checks.positive(op, "dt", dt, x), x)
    g_next = traceable_scalar(_checks.positive(op, "g_next", g_next, x), x)
    _checks.step_noise(op, dt, g_next, x)
    return x, x_next, f_next, s_next, dt, g_next


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

    The noise of the step is divided by, so it has a floor: :math:`g \ge 10^{-9}` and
    :math:`g \sqrt{\Delta t} \ge 10^{-10}` in float32 (:math:`10^{-90}` and :math:`10^{-95}` in
    float64). Above it value and gradients are finite and right to 1e-5 of the sum of their terms'
    magnitudes in float32, if data and the terms :math:`f \Delta t`, :math:`g^2 s \Delta t` are of
    size M with :math:`M \sqrt d \le 10^4`. Noise below :math:`10^{-7} M` drowns in the rounding of
    the states before that: the residual then is a number, but not one that means much.

    Raises:
        ValueError: If shapes differ, `dt` or `g_next` is not positive, or they are below the floor
            (tensors on a device are not looked at).
        TypeError: If an argument has the wrong type.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 15
        | https://arxiv.org/abs/2110.07579
    """
    arguments = _residual_arguments("backward_residual", x, x_next, f_next, s_next, dt, g_next)
    return _BackwardResidual.apply(*arguments)


class _ResidualCost(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: Scalar, g: Scalar
    ) -> Tensor:
        save(ctx, x=x, x_next=x_next, f=f, s=s, dt=dt, g=g)
        return kernel("residual_cost")(x, x_next, f, s, dt, g)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        at = saved(ctx)
        f, s = at["f"], at["s"]
        grad_x, grad_x_next, grad_f, grad_s, grad_g = kernel("residual_cost_vjp")(
            grad, at["x"], at["x_next"], f, s, at["dt"], at["g"]
        )
        summed = scalar_grad(grad_g, at["g"]) if ctx.needs_input_grad[5] else None
        return grad_x, grad_x_next, grad_f.to(f.dtype), grad_s.to(s.dtype), None, summed


def residual_cost(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *, dt: Scalar, g_next: Scalar
) -> Tensor:
    r"""Returns the cost of one step for each sample; the residual itself is never written.

    .. math:: c_i = \tfrac12 \| \delta^B_i \|^2

    The sum runs in a fixed order, the same on every device and for any number of threads.

    Arguments:
        x: The state :math:`x_i`, shape (B, *event), in data units.
        x_next: The state :math:`x_{i+1}`, same shape.
        f_next: The drift at :math:`(t_{i+1}, x_{i+1})`, same shape.
        s_next: The score at :math:`(t_{i+1}, x_{i+1})`, same shape.
        dt: The step :math:`\Delta t_i > 0`, a number or a tensor of one element.
        g_next: The diffusion :math:`g_{i+1} > 0`, a number or a tensor of one element.

    Returns:
        The costs, shape (B,), in nats. Differentiable in all tensors.

    Raises:
        ValueError: If shapes differ, `dt` or `g_next` is not positive, or they are below the floor
            of :func:`backward_residual`.
        TypeError: If an argument has the wrong type.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 16
        | https://arxiv.org/abs/2110.07579
    """
    arguments = _residual_arguments("residual_cost", x, x_next, f_next, s_next, dt, g_next)
    return _ResidualCost.apply(*arguments)


# --- reverse step --------------------------------------------------------------------------------


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
        offset: int,
    ) -> Tensor:
        learned = isinstance(g, Tensor) and g.requires_grad
        save(
            ctx, dt=dt, g=g, key=key, step=step, stochasticity=stochasticity, offset=offset,
            f_dtype=f.dtype, s_dtype=s.dtype, **({"s": s} if learned else {}),
        )  # fmt: skip
        return kernel("reverse_step")(x_next, f, s, dt, g, key, step, stochasticity, offset)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        at = saved(ctx)
        dt, g, strength = at["dt"], at["g"], at["stochasticity"]
        grad_f = (-grad * dt).to(at["f_dtype"])
        grad_s = (grad * (0.5 * (1 + strength**2) * g * g * dt)).to(at["s_dtype"])
        grad_g = None
        if ctx.needs_input_grad[4]:
            dot = kernel("noise_dot")(
                grad, at["key"], PURPOSES["reverse"], at["step"], at["offset"]
            )
            along_s = row_dot(grad, at["s"])
            per_sample = (1 + strength**2) * g * dt * along_s + strength * root(dt) * dot
            grad_g = scalar_grad(per_sample, g)
        return grad, grad_f, grad_s, None, grad_g, None, None, None, None


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
    r"""Returns the previous state of the reverse family, one step with noise made on chip.

    .. math:: x_i = x_{i+1} - \left[ f_{i+1} - \tfrac{1 + \lambda^2}{2} g_{i+1}^2 s_{i+1} \right]
                    \Delta t_i + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

    :math:`\lambda = 1` is the process that training fits, :math:`\lambda = 0` an Euler step of the
    probability-flow ODE; all keep the same marginals in continuous time.

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
        ValueError: If shapes differ, `dt` or `g_next` is not positive, or `stochasticity` < 0.
        TypeError: If an argument has the wrong type.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 12 and 17
        | https://arxiv.org/abs/2110.07579
    """
    op = "reverse_step"
    x = _checks.state(op, "x_next", x_next)
    f_next = _checks.network_output(op, "f_next", f_next, x, "x_next")
    s_next = _checks.network_output(op, "s_next", s_next, x, "x_next")
    dt = traceable_scalar(_checks.positive(op, "dt", dt, x), x)
    g_next = traceable_scalar(_checks.positive(op, "g_next", g_next, x), x)
    key = traceable_key(_checks.key(op, key, x.device), x.device)
    strength = _checks.finite(op, "stochasticity", stochasticity)
    if strength < 0:
        raise ValueError(f"{op}: expected stochasticity >= 0, got {strength}")
    step, offset = _checks.step(op, step), _checks.sample_offset(op, sample_offset, x.shape[0])
    return _ReverseStep.apply(x, f_next, s_next, dt, g_next, key, step, strength, offset)


# --- perturbation --------------------------------------------------------------------------------


class _Perturb(Function):
    @staticmethod
    def forward(
        ctx: Any, x0: Tensor, alpha_t: Tensor, sigma_t: Tensor, key: Key, step: int, offset: int
    ) -> tuple[Tensor, Tensor]:
        x_t, eps = kernel("perturb")(x0, alpha_t, sigma_t, key, step, offset)
        save(ctx, x0=x0, alpha_t=alpha_t, sigma_t=sigma_t, eps=eps)
        ctx.mark_non_differentiable(eps)
        return x_t, eps

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        at = saved(ctx)
        rows = (-1,) + (1,) * (grad.dim() - 1)
        need_x, need_alpha, need_sigma, *_rest = ctx.needs_input_grad
        grad_x = grad * at["alpha_t"].to(grad.dtype).reshape(rows) if need_x else None
        grad_alpha = _like_scalars(row_dot(grad, at["x0"]), at["alpha_t"]) if need_alpha else None
        grad_sigma = _like_scalars(row_dot(grad, at["eps"]), at["sigma_t"]) if need_sigma else None
        return grad_x, grad_alpha, grad_sigma, None, None, None


def _like_scalars(per_sample: Tensor, scalar: Tensor) -> Tensor:
    return (per_sample.sum().reshape(1) if scalar.numel() == 1 else per_sample).to(scalar.dtype)


def perturb(
    x0: Tensor,
    *,
    alpha_t: Scalar,
    sigma_t: Scalar,
    key: Key,
    step: int = 0,
    sample_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Returns noisy data of a linear diffusion, and the noise, in one pass.

    .. math:: x_t = \alpha_t x_0 + \sigma_t \varepsilon

    Arguments:
        x0: The data, shape (B, *event).
        alpha_t: The mean factor, a number or a tensor of shape () or (B,).
        sigma_t: The standard deviation >= 0 in data units, a number or a tensor of shape () or
            (B,).
        key: Seed and stream of the noise.
        step: Which draw of the stream, in [0, 2^24).
        sample_offset: The global index of the first sample.

    Returns:
        The pair :math:`(x_t, \varepsilon)`, same shape. :math:`x_t` is differentiable in `x0` and
        in tensor scalars; the noise is ``normal(x0.shape, key, purpose="dsm", step=step)``.

    Raises:
        ValueError: If a shape is wrong or `sigma_t` is negative.
        TypeError: If an argument has the wrong type.
    """
    op = "perturb"
    x0 = _checks.state(op, "x0", x0)
    alpha = _sample_scalars(op, "alpha_t", alpha_t, x0)
    sigma = _sample_scalars(op, "sigma_t", sigma_t, x0)
    if not (sigma.is_cuda or torch.compiler.is_compiling()) and bool((sigma < 0).any()):
        raise ValueError(f"{op}: expected sigma_t >= 0, got {float(sigma.min())}")
    if alpha.numel() != sigma.numel():
        alpha, sigma = alpha.expand(x0.shape[0]), sigma.expand(x0.shape[0])
    key = traceable_key(_checks.key(op, key, x0.device), x0.device)
    step, offset = _checks.step(op, step), _checks.sample_offset(op, sample_offset, x0.shape[0])
    return _Perturb.apply(x0, alpha, sigma, key, step, offset)  # pyright: ignore


def _sample_scalars(op: str, name: str, value: Scalar, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        number = _checks.coefficient(op, name, value, x)
        return torch.full((1,), number, dtype=x.dtype, device=x.device)  # pyright: ignore
    value = _checks.tensor(op, name, value)
    if value.device != x.device or not value.dtype.is_floating_point:
        raise ValueError(
            f"{op}: expected {name} to be floating and on {x.device}, "
            f"got {value.dtype} on {value.device}"
        )
    if value.numel() != 1 and tuple(value.shape) != (x.shape[0],):
        raise ValueError(
            f"{op}: expected {name} of shape () or ({x.shape[0]},), got {tuple(value.shape)}"
        )
    return value.reshape(-1)
