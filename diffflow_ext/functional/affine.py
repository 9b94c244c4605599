r"""The affine step, the building block of solvers of linear SDEs and of their ODEs.

.. math:: y = c_x x + c_a a + c_b b + s z

It is linear in tensors and in coefficients: the gradient of a tensor needs only its coefficient,
and the gradient of a coefficient only its tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .checks import (
    are_usual_states,
    checked_coefficient,
    checked_network_output,
    checked_noise_scale,
    checked_state,
)
from .core import NO_NOISE, Scalar, address, core, network_values, number, scalar_like, target
from .noise import (
    Key,
    checked_key,
    checked_sample_offset,
    checked_step,
    noise_dot,
    noise_source,
    purpose_code,
    traceable_key,
)
from .operator import Operator, call, first_order, like, save, saved, scalar_grad, traceable_scalar
from .sums import row_dot


def launch_affine_step(
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
    """Returns c_x x + c_a a + c_b b + noise_scale z; without a key there is no noise."""
    x = x.contiguous()
    if b is None:
        (a,) = network_values(x, a)
    else:
        a, b = network_values(x, a, b)
    noise = NO_NOISE
    if key is None:
        noise_scale = 0.0  # In a traced graph it is a tensor, whatever its value.
    else:
        noise = noise_source(key, purpose, step, sample_offset)
    # The list keeps converted tensors alive until the call returns.
    factors = [scalar_like(c, x) for c in (c_x, c_a, c_b, noise_scale)]
    out = torch.empty_like(x)
    core.affine_step(
        target(x, a.dtype),
        noise,
        *map(number, factors),
        x.data_ptr(),
        a.data_ptr(),
        address(b),
        out.data_ptr(),
    )
    return out


_affine_step = Operator(
    "affine_step(Tensor x, Tensor a, Tensor? b, Tensor c_x, Tensor c_a, Tensor c_b, "
    "Tensor noise_scale, Tensor? key, int purpose, SymInt step, SymInt sample_offset) -> Tensor",
    launch_affine_step,
    like,
)


class _AffineStep(Function):
    @staticmethod
    def forward(
        ctx: Any,
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
        terms = {"x": (x, c_x), "a": (a, c_a), "b": (b, c_b)}
        save(
            ctx, c_x=c_x, c_a=c_a, c_b=c_b, noise_scale=noise_scale, key=key, purpose=purpose,
            step=step, sample_offset=sample_offset,
            dtypes={n: t.dtype for n, (t, _) in terms.items() if t is not None},
            **{n: t for n, (t, c) in terms.items() if isinstance(c, Tensor) and c.requires_grad},
        )  # fmt: skip
        return _affine_step(x, a, b, c_x, c_a, c_b, noise_scale, key, purpose, step, sample_offset)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        values, needs = saved(ctx), ctx.needs_input_grad
        terms = [
            _scaled(grad, values[f"c_{name}"]).to(values["dtypes"][name]) if need else None
            for name, need in zip("xab", needs[:3], strict=True)
        ]
        factors = [
            scalar_grad(row_dot(grad, values[name]), values[f"c_{name}"]) if need else None
            for name, need in zip("xab", needs[3:6], strict=True)
        ]
        grad_noise = None
        if needs[6]:
            dot = noise_dot(
                grad, values["key"], values["purpose"], values["step"], values["sample_offset"]
            )
            grad_noise = scalar_grad(dot, values["noise_scale"])
        return *terms, *factors, grad_noise, None, None, None, None


def _scaled(grad: Tensor, factor: Scalar) -> Tensor:
    """Multiplies by a factor rounded to the dtype of the state, as in the kernel."""
    if isinstance(factor, Tensor):
        return grad * factor.to(grad.dtype).reshape(())
    return grad if factor == 1 else grad * factor


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
) -> Tensor:
    r"""Returns a state and up to two network outputs, each times a number, plus noise.

    .. math:: y = c_x x + c_a a + c_b b + s z, \qquad z \sim N(0, I)

    One pass over memory for a step of a solver whose coefficients are known: Euler and Heun steps
    of a probability-flow ODE, ancestral and implicit (DDIM) steps of a discrete chain, predictors
    and Langevin correctors. If `noise_scale` is the number 0, its default, no noise is drawn.

    Arguments:
        x: The state, shape (B, *event), in data units.
        a: A network output, same shape, also bfloat16 or float16.
        b: Another one, or None.
        c_x: The factor of the state, dimensionless: a number or a tensor of one element.
        c_a: The factor of `a`, which brings it to data units: a number or a tensor of one element.
        c_b: The factor of `b`, likewise.
        noise_scale: The standard deviation :math:`s \ge 0` of the noise, in data units: a number
            or a tensor of one element. A tensor draws noise whatever its value.
        key: Seed and stream of the noise. Needed unless `noise_scale` is the number 0.
        purpose: What the noise is for, a name in :data:`diffflow_ext.functional.PURPOSES`.
        step: Which draw of the stream, in [0, 2^24).
        sample_offset: The global index of the first sample.

    Returns:
        The state y, shape and dtype of `x`. Differentiable in all tensors, coefficients included.
        The noise is ``normal(x.shape, key, purpose=purpose, step=step)``.

    Raises:
        ValueError: If shapes differ, a coefficient is not finite or `noise_scale` is negative, or
            if `key` or `b` is missing although its coefficient is not 0.
        TypeError: If an argument has the wrong type.
        RuntimeError: If `x` lies on a device that this build has no kernels for.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), appendices D to G
        | https://arxiv.org/abs/2011.13456
        | Denoising Diffusion Implicit Models (Song et al., 2021), equation 12
        | https://arxiv.org/abs/2010.02502
    """
    op = "affine_step"
    tensors = (x, a) if b is None else (x, a, b)
    if not are_usual_states(*tensors):
        x = checked_state(op, "x", x)
        a = checked_network_output(op, "a", a, x)
        b = None if b is None else checked_network_output(op, "b", b, x)
    factors = [
        traceable_scalar(checked_coefficient(op, name, value, x), x)
        for name, value in (("c_x", c_x), ("c_a", c_a), ("c_b", c_b))
    ]
    if b is None and _present(c_b):
        raise ValueError(f"{op}: expected b, because c_b is not 0; give both or neither")
    noise_scale = checked_noise_scale(op, noise_scale, x)
    key = _noise_key(op, key, noise_scale, x.device)
    scale, code = traceable_scalar(noise_scale, x), purpose_code(op, purpose)
    step = checked_step(op, step)
    sample_offset = checked_sample_offset(op, sample_offset, x.shape[0])
    arguments = (x, a, b, *factors, scale, key, code, step, sample_offset)
    return call(_AffineStep, _affine_step, *arguments)


def _present(coefficient: Scalar) -> bool:
    """Says whether a term may be non-zero: the value of a tensor is not read."""
    return isinstance(coefficient, Tensor) or coefficient != 0


def _noise_key(op: str, key: object, noise_scale: Scalar, device: torch.device) -> Key | None:
    """Returns the key if noise is drawn, else None."""
    if not _present(noise_scale):
        return None
    if key is None:
        raise ValueError(
            f"{op}: expected a key, because noise_scale is not 0; pass key=NoiseKey(seed, stream)"
        )
    return traceable_key(checked_key(op, key, device), device)
