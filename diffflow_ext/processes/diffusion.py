"""Scalar diffusion coefficients g(t) > 0, common to the forward and the reverse SDE.

A coefficient is a float, a function from a tensor of times to a tensor of the same shape, or a
module that is such a function and may have parameters.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.functional.checks import checked_flag, checked_positive_number, in_words

Diffusion = float | Callable[[Tensor], Tensor]


class ConstantDiffusion(nn.Module):
    r"""The same coefficient at all times, :math:`g(t) = g`.

    Arguments:
        g: The coefficient, > 0, in data units per square root of time.
        learnable: Whether :math:`\log g` is a parameter.

    Raises:
        ValueError: If `g` is not positive.
    """

    log_g: Tensor

    def __init__(self, g: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        value = torch.tensor(math.log(checked_positive_number("ConstantDiffusion", "g", g)))
        _store_log_g(self, "ConstantDiffusion", value, learnable)

    def forward(self, times: Tensor) -> Tensor:
        """Returns g at `times`, same shape."""
        return self.log_g.to(times.dtype).exp().expand(times.shape)


class GeometricDiffusion(nn.Module):
    r"""A coefficient that grows geometrically from the data to the noise.

    .. math:: g(t) = g_{start}^{1 - t/T} \, g_{end}^{t/T}

    A small start lets the model draw sharp data: the last reverse step adds noise of standard
    deviation :math:`g_1 \sqrt{\Delta t_0}`. It has a price: forward and reverse steps have other
    variances, so the bound is looser by :math:`\tfrac N2 (r - 1 - \log r)` nats a dimension, with
    :math:`r = g_i^2 / g_{i+1}^2` of neighbouring times.

    Arguments:
        g_start: The coefficient at t = 0, > 0.
        g_end: The coefficient at t = `t_end`, > 0.
        t_end: The time :math:`T` > 0.
        learnable: Whether the logarithms of both ends are parameters.

    Raises:
        ValueError: If an argument is not positive.
    """

    log_g: Tensor

    def __init__(
        self, g_start: float, g_end: float, t_end: float = 1.0, *, learnable: bool = False
    ) -> None:
        super().__init__()
        op = "GeometricDiffusion"
        ends = [
            math.log(checked_positive_number(op, "g_start", g_start)),
            math.log(checked_positive_number(op, "g_end", g_end)),
        ]
        self.t_end = checked_positive_number(op, "t_end", t_end)
        _store_log_g(self, op, torch.tensor(ends), learnable)

    def forward(self, times: Tensor) -> Tensor:
        """Returns g at `times`, same shape."""
        log_g = self.log_g.to(times.dtype)
        return torch.lerp(log_g[0], log_g[1], times / self.t_end).exp()


def _store_log_g(module: nn.Module, op: str, log_g: Tensor, learnable: bool) -> None:
    if checked_flag(op, "learnable", learnable):
        module.register_parameter("log_g", nn.Parameter(log_g))
    else:
        module.register_buffer("log_g", log_g)


def diffusion_values(diffusion: Diffusion, times: Tensor) -> Tensor:
    """Returns g at all times of a grid.

    Arguments:
        diffusion: A float, a function of time, or a module.
        times: The times, shape (N+1,).

    Returns:
        The values, shape (N+1,), dtype and device of `times`, differentiable in the parameters of
        `diffusion`.

    Raises:
        TypeError: If `diffusion` is neither a number nor callable, or returns no tensor.
        ValueError: If a value is not positive and finite, or the shape is wrong. On a GPU only
            the first values of each `diffusion` are read.
    """
    if isinstance(diffusion, numbers.Real) and not isinstance(diffusion, bool):
        value, limits = (
            checked_positive_number("diffusion", "g", diffusion),
            torch.finfo(times.dtype),
        )
        if not limits.tiny <= value <= limits.max:
            raise ValueError(f"diffusion: expected a g that {times.dtype} can hold, got g={value}")
        return torch.full_like(times, value)
    if not callable(diffusion):
        raise TypeError(
            f"diffusion: expected a number or a function of t, got {in_words(diffusion)}"
        )
    g = diffusion(times)
    if not isinstance(g, Tensor):
        raise TypeError(f"diffusion: expected a tensor from g(t), got {type(g).__name__}")
    if g.dim() == 0 or g.shape != times.shape:
        if g.numel() != 1:
            raise ValueError(
                f"diffusion: expected g(t) to have the shape of t {tuple(times.shape)}, "
                f"got {tuple(g.shape)}"
            )
        g = g.reshape(()).expand(times.shape)
    g = g.to(times.dtype)
    if not g.is_cuda:
        _check_positive(g, times)
    elif not torch.cuda.is_current_stream_capturing():
        _check_once(diffusion, g, times)
    return g


#: Functions and modules whose values on a GPU were read and are positive.
_checked: weakref.WeakSet[Any] = weakref.WeakSet()


def _check_once(diffusion: object, g: Tensor, times: Tensor) -> None:
    """Checks the first values of a function or module: each reading waits for the GPU."""
    with contextlib.suppress(TypeError):  # What a set cannot hold is read each time.
        if diffusion in _checked:
            return
    _check_positive(g, times)
    with contextlib.suppress(TypeError):
        _checked.add(diffusion)


def _check_positive(g: Tensor, times: Tensor) -> None:
    bad = (~(torch.isfinite(g) & (g > 0))).nonzero()
    if bad.numel():
        i = int(bad[0])
        raise ValueError(
            f"diffusion: expected g(t) > 0, got g({float(times[i])}) = {float(g.detach()[i])}"
        )
