"""Noisy data of a linear diffusion, for denoising losses."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import are_usual_states, checked_coefficient, checked_state
from .core import Scalar, core, target
from .noise import (
    PURPOSES,
    Key,
    checked_key,
    checked_sample_offset,
    checked_step,
    noise_like,
    noise_source,
    traceable_key,
)
from .operator import Operator, like
from .tensors import are_usual, checked_tensor, hides_values, refuse_tangent


def launch_perturb(
    x0: Tensor, alpha_t: Tensor, sigma_t: Tensor, key: Key, step: int, sample_offset: int
) -> tuple[Tensor, Tensor]:
    """Returns alpha_t x0 + sigma_t eps, and eps. The scalars have shape (1,) or (B,)."""
    x0, alpha_t, sigma_t = x0.contiguous(), alpha_t.contiguous(), sigma_t.contiguous()
    x_t, eps = torch.empty_like(x0), torch.empty_like(x0)
    core.perturb(
        target(x0),
        noise_source(key, PURPOSES["dsm"], step, sample_offset),
        x0.data_ptr(),
        alpha_t.data_ptr(),
        sigma_t.data_ptr(),
        int(alpha_t.numel() > 1),
        sigma_t.dim() > 1,
        x_t.data_ptr(),
        eps.data_ptr(),
    )
    return x_t, eps


_perturb = Operator(
    "perturb(Tensor x0, Tensor alpha_t, Tensor sigma_t, Tensor key, SymInt step, "
    "SymInt sample_offset) -> (Tensor, Tensor)",
    launch_perturb,
    lambda x0, *_: (like(x0), like(x0)),
)


def _differentiable(
    x0: Tensor, alpha_t: Tensor, sigma_t: Tensor, key: Key, step: int, sample_offset: int
) -> tuple[Tensor, Tensor]:
    """Returns the values of `launch_perturb` by operations of torch, which know their gradients.

    These are two products and a sum: an autograd function in Python would cost more.
    """
    x0, eps = x0.contiguous(), noise_like(x0, key, PURPOSES["dsm"], step, sample_offset)
    rows = (-1,) + (1,) * (x0.dim() - 1)
    sigma = sigma_t if sigma_t.dim() > 1 else sigma_t.view(rows)
    return alpha_t.view(rows) * x0 + sigma * eps, eps


def perturb(
    x0: Tensor,
    *,
    alpha_t: Scalar,
    sigma_t: Scalar,
    key: Key,
    step: int = 0,
    sample_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Returns noisy data of a linear diffusion, and the noise; without gradients in one pass.

    .. math:: x_t = \alpha_t x_0 + \sigma_t \varepsilon

    Arguments:
        x0: The data, shape (B, *event).
        alpha_t: The mean factor, a number or a tensor of shape () or (B,).
        sigma_t: The standard deviation >= 0 in data units, a number or a tensor of shape (), (B,)
            or (B, *event). With the last and `alpha_t` 1, `x0` is the mean of a Gaussian with a
            scale of its own for each element.
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
    x0 = x0 if are_usual_states(x0) else checked_state(op, "x0", x0)
    alpha, sigma = _sample_scalars(op, alpha_t, sigma_t, x0)
    if not (sigma.is_cuda or hides_values()) and _smallest(sigma) < 0:
        raise ValueError(f"{op}: expected sigma_t >= 0, got {_smallest(sigma)}")
    if alpha.numel() != sigma.numel() and sigma.dim() == 1:
        alpha, sigma = alpha.expand(x0.shape[0]), sigma.expand(x0.shape[0])
    key = traceable_key(checked_key(op, key, x0.device), x0.device)
    step = checked_step(op, step)
    sample_offset = checked_sample_offset(op, sample_offset, x0.shape[0])
    needs_graph = x0.requires_grad or alpha.requires_grad or sigma.requires_grad
    compute = _differentiable if needs_graph and torch.is_grad_enabled() else _perturb
    return compute(x0, alpha, sigma, key, step, sample_offset)


def _smallest(values: Tensor) -> float:
    return values.detach().min().item() if values.numel() else 0.0


def _sample_scalars(op: str, alpha: Scalar, sigma: Scalar, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both factors as tensors of shape (1,) or (B,), or sigma in that of x."""
    if isinstance(alpha, Tensor) and isinstance(sigma, Tensor) and are_usual((alpha, sigma)):
        if x.is_cpu and alpha.dtype is sigma.dtype is x.dtype:
            if alpha.shape == sigma.shape == x.shape[:1]:
                return alpha, sigma
    return (
        _sample_scalar(op, "alpha_t", alpha, x),
        _sample_scalar(op, "sigma_t", sigma, x, elements=True),
    )


def _sample_scalar(
    op: str, name: str, value: Scalar, x: Tensor, *, elements: bool = False
) -> Tensor:
    """Returns a factor in shape (1,) or (B,); with `elements` also in that of x."""
    if not isinstance(value, Tensor):
        number = checked_coefficient(op, name, value, x)
        return torch.full((1,), number, dtype=x.dtype, device=x.device)  # pyright: ignore
    value = checked_tensor(op, name, value)
    refuse_tangent(op, name, value)
    if value.device != x.device or not value.dtype.is_floating_point:
        raise ValueError(
            f"{op}: expected {name} to be floating and on {x.device}, "
            f"got {value.dtype} on {value.device}"
        )
    if elements and value.dim() > 1 and value.shape == x.shape:
        return value.to(x.dtype)
    if value.numel() != 1 and tuple(value.shape) != (x.shape[0],):
        also = f" or {tuple(x.shape)}" if elements and x.dim() > 1 else ""
        raise ValueError(
            f"{op}: expected {name} of shape () or ({x.shape[0]},){also}, got {tuple(value.shape)}"
        )
    return value.reshape(-1).to(x.dtype)
