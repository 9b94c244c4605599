r"""Plain-torch twins of the fused operations: the oracle of tests and benchmarks.

Nothing here touches the compiled core, and nothing in the package imports this module. Formulas
are written as in the paper, gradients come from autograd, and noise from a second implementation
of Philox4x32-10 and of the Box-Muller transform, in NumPy and float64.

Ops that draw noise take `eps` in place of their own draws, so that tests can compare arithmetic
and noise separately.

References:
    | Diffusion Normalizing Flow (Zhang & Chen, 2021)
    | https://arxiv.org/abs/2110.07579
    | Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., SC 2011)
    | https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .core import Scalar
from .noise import PURPOSES, Key, NoiseKey

Words = NDArray[np.uint64]
_MASK = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


def philox_words(counter: Tensor, key: Tensor, *, rounds: int = 10) -> Tensor:
    """Returns the words of Philox4x32 for int64 counters (*, 4) and keys (2,) or (*, 2)."""
    lanes = counter.numpy().astype(np.uint64)
    keys = np.broadcast_to(key.numpy().astype(np.uint64), (*lanes.shape[:-1], 2))
    return torch.from_numpy(_philox(lanes, keys, rounds).astype(np.int64))


def _philox(counter: Words, key: Words, rounds: int) -> Words:
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    low, high = key[..., 0], key[..., 1]
    for _ in range(rounds):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ low,
            second & _MASK,
            (first >> _HALF) ^ c3 ^ high,
            first & _MASK,
        )
        low = (low + np.uint64(0x9E3779B9)) & _MASK
        high = (high + np.uint64(0xBB67AE85)) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1)


def noise_counters(
    samples: int, elements: int, *, code: int, step: int, stream: int, sample_offset: int
) -> Words:
    """Returns the counters of a batch, shape (samples, ceil(elements / 4), 4).

    Words: element // 4, global sample, step | purpose << 24, stream.
    """
    quads = (elements + 3) // 4
    counters = np.empty((samples, quads, 4), dtype=np.uint64)
    counters[..., 0] = np.arange(quads, dtype=np.uint64)
    counters[..., 1] = (np.arange(samples, dtype=np.uint64) + np.uint64(sample_offset))[:, None]
    counters[..., 2] = step | code << 24
    counters[..., 3] = stream
    return counters


def uniform(words: Words) -> NDArray[np.float64]:
    """Returns the centres of 2^23 equal cells of (0, 1): (2 (word >> 9) + 1) / 2^24."""
    return ((words >> np.uint64(9)).astype(np.float64) * 2.0 + 1.0) * 2.0**-24


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
    r"""Returns :math:`\sqrt{-2 \log u} (\cos 2 \pi v, \sin 2 \pi v)`, computed in float64."""
    samples, elements = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    seed, stream = _seed_and_stream(key)
    counters = noise_counters(
        samples,
        elements,
        code=PURPOSES[purpose],
        step=step,
        stream=stream,
        sample_offset=sample_offset,
    )
    halves = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint64)
    u = uniform(_philox(counters, np.broadcast_to(halves, (*counters.shape[:-1], 2)), 10))
    radius, angle = np.sqrt(-2.0 * np.log(u[..., ::2])), 2.0 * np.pi * u[..., 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    rows = pairs.reshape(samples, 4 * counters.shape[1])[:, :elements]
    return torch.from_numpy(rows.copy()).reshape(shape).to(device, dtype)


def _seed_and_stream(key: Key) -> tuple[int, int]:
    seed, stream = (key.seed, key.stream) if isinstance(key, NoiseKey) else key.tolist()
    return seed % 2**64, stream


def _noise(
    x: Tensor, eps: Tensor | None, key: Key, purpose: str, step: int, sample_offset: int
) -> Tensor:
    if eps is None:
        eps = normal(
            x.shape, key, purpose=purpose, step=step, sample_offset=sample_offset, dtype=x.dtype
        )
    return eps.to(x)


def _number(value: Scalar, x: Tensor) -> Tensor:
    """Returns a scalar as a tensor of shape (), attached to its gradient."""
    if isinstance(value, Tensor):
        return value.reshape(()).to(x.dtype)
    return torch.tensor(value, dtype=x.dtype, device=x.device)


def em_step(
    x: Tensor,
    f: Tensor,
    *,
    dt: Scalar,
    g: Scalar,
    key: Key,
    step: int,
    sample_offset: int = 0,
    eps: Tensor | None = None,
) -> Tensor:
    r"""Returns :math:`x + f \Delta t + g \sqrt{\Delta t} \, \delta^F`."""
    delta_f = _noise(x, eps, key, "forward", step, sample_offset)
    dt, g = _number(dt, x), _number(g, x)
    return x + f.to(x.dtype) * dt + g * dt.sqrt() * delta_f


def backward_residual(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *, dt: Scalar, g_next: Scalar
) -> Tensor:
    r"""Returns :math:`[x - x' + (f' - g'^2 s') \Delta t] / (g' \sqrt{\Delta t})`."""
    dt, g = _number(dt, x), _number(g_next, x)
    f, s = f_next.to(x.dtype), s_next.to(x.dtype)
    return (x - x_next + (f - g**2 * s) * dt) / (g * dt.sqrt())


def residual_cost(
    x: Tensor, x_next: Tensor, f_next: Tensor, s_next: Tensor, *, dt: Scalar, g_next: Scalar
) -> Tensor:
    r"""Returns :math:`\tfrac12 \| \delta^B \|^2` for each sample, shape (B,)."""
    delta_b = backward_residual(x, x_next, f_next, s_next, dt=dt, g_next=g_next)
    return _row_sum(delta_b.square()) / 2


def _row_sum(x: Tensor) -> Tensor:
    return x.sum(tuple(range(1, x.dim()))) if x.dim() > 1 else x


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
    eps: Tensor | None = None,
) -> Tensor:
    r"""Returns :math:`x' - [f' - w g'^2 s'] \Delta t + \lambda g' \sqrt{\Delta t} \varepsilon`.

    The weight of the score is :math:`w = (1 + \lambda^2) / 2`.
    """
    draw = _noise(x_next, eps, key, "reverse", step, sample_offset)
    dt, g = _number(dt, x_next), _number(g_next, x_next)
    f, s = f_next.to(x_next.dtype), s_next.to(x_next.dtype)
    drift = f - (1 + stochasticity**2) / 2 * g**2 * s
    return x_next - drift * dt + stochasticity * g * dt.sqrt() * draw


def affine_step(
    x: Tensor,
    a: Tensor,
    b: Tensor | None = None,
    *,
    c_x: Scalar = 1.0,
    c_a: Scalar,
    c_b: Scalar = 0.0,
    noise_scale: Scalar = 0.0,
    key: Key | None = None,
    purpose: str = "reverse",
    step: int = 0,
    sample_offset: int = 0,
    eps: Tensor | None = None,
) -> Tensor:
    r"""Returns :math:`c_x x + c_a a + c_b b + s z`; no b and no noise where there is none."""
    y = _number(c_x, x) * x + _number(c_a, x) * a.to(x.dtype)
    if b is not None:
        y = y + _number(c_b, x) * b.to(x.dtype)
    if key is None:
        return y
    return y + _number(noise_scale, x) * _noise(x, eps, key, purpose, step, sample_offset)


def perturb(
    x0: Tensor,
    *,
    alpha_t: Scalar,
    sigma_t: Scalar,
    key: Key,
    step: int = 0,
    sample_offset: int = 0,
    eps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Returns :math:`\alpha_t x_0 + \sigma_t \varepsilon` and :math:`\varepsilon`."""
    draw = _noise(x0, eps, key, "dsm", step, sample_offset)
    return _per_sample(alpha_t, x0) * x0 + _per_sample(sigma_t, x0) * draw, draw


def _per_sample(value: Scalar, x: Tensor) -> Tensor:
    """Returns one scalar for all samples, for each or for each element, to multiply x with."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return _number(value, x)
    rows = value.to(x.dtype)
    return rows if value.shape == x.shape else rows.reshape(-1, *(1,) * (x.dim() - 1))


def adjoint_step(
    x_prev: Tensor | None,
    x: Tensor,
    f: Tensor,
    s: Tensor | None,
    after: tuple[Tensor | None, ...] | None,
    *,
    weight: Tensor | float,
    dt: float,
    dt_next: float,
    g: Scalar,
    key: Key,
    step: int,
    sample_offset: int = 0,
    want_grad_g: bool = False,
    eps: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    r"""Returns the adjoint at one state, by differentiating the terms of the loss with autograd.

    With :math:`A' = \partial L / \partial x_{k+1}` (the sum of `after`'s first three parts) and
    :math:`q' = c \, \delta^B_{k+1} / (g_{k+1} \sqrt{\Delta_{k+1}})` (its fourth), the loss depends
    on state k, its networks' outputs and g_k as

    .. math:: \ell = \tfrac{c}{2} \|\delta^B_k\|^2 + q' \cdot x_k
                     + A' \cdot (x_k + f_k \Delta_{k+1} + g_k \sqrt{\Delta_{k+1}} \, \delta^F_k)

    or, at the last state, with :math:`\tfrac{c}{2} \|x_N\|^2` in place of the terms with a prime.

    Returns:
        Gradients of f, s and x, then q at this state and the gradient of g for each sample; None
        where `functional.adjoint.adjoint_step` returns None.
    """
    with torch.enable_grad():
        state, net_f = x.detach().requires_grad_(), f.detach().to(x.dtype).requires_grad_()
        net_s = None if s is None else s.detach().to(x.dtype).requires_grad_()
        sample_g = _number(g, x).detach().expand(x.shape[0]).clone().requires_grad_()
        rows = sample_g.reshape(-1, *(1,) * (x.dim() - 1))
        c = weight if isinstance(weight, Tensor) else x.new_full((x.shape[0],), weight)
        loss, delta_b = 0.0 * (state.sum() + net_f.sum() + sample_g.sum()), None
        if x_prev is not None and net_s is not None:
            delta_b = (x_prev - state + (net_f - rows**2 * net_s) * dt) / (rows * dt**0.5)
            loss = loss + (c * _row_sum(delta_b.square()) / 2).sum()
        if after is None:
            loss = loss + (c * _row_sum(state.square()) / 2).sum()
        else:
            total = sum(part for part in after[:3] if part is not None)
            delta_f = _noise(x, eps, key, "forward", step, sample_offset)
            x_next = state + net_f * dt_next + rows * dt_next**0.5 * delta_f
            loss = loss + (total * x_next).sum()
            loss = loss + (0.0 if after[3] is None else (after[3] * state).sum())
        leaves = [net_f, state, sample_g, *([] if net_s is None else [net_s])]
        grad_f, grad_x, grad_g, *rest = torch.autograd.grad(loss, leaves, allow_unused=True)
    grad_s = None if net_s is None else rest[0]
    carry = None
    if delta_b is not None:
        carry = c.reshape(rows.shape) * delta_b.detach() / (rows.detach() * dt**0.5)
    return grad_f, grad_s, grad_x, carry, grad_g if want_grad_g else None
