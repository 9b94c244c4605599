r"""Steps of a discrete chain from time i to any earlier time k, with the data predicted.

.. math::
    \hat x_0 &= \frac{x_i - \sigma_i \varepsilon(t_i, x_i)}{\alpha_i}, \qquad
    s^2 = \eta^2 \, \Bigl( 1 - \frac{\alpha_i^2}{\alpha_k^2} \Bigr)
          \frac{\sigma_k^2}{\sigma_i^2} \\
    x_k &= \alpha_k \hat x_0 + \sqrt{\sigma_k^2 - s^2} \,
           \frac{x_i - \alpha_i \hat x_0}{\sigma_i} + s z

If :math:`\hat x_0` were the data, x_k would have its true distribution for every s. With
:math:`\eta = 1`, ancestral sampling, s is the deviation of the posterior of x_k given x_i and x_0.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), Algorithm 2
    | https://arxiv.org/abs/2006.11239
    | Denoising Diffusion Implicit Models (Song et al., 2021), equations 12 and 16
    | https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from diffflow_ext.functional.affine import affine_step
from diffflow_ext.functional.checks import check_choice, checked_count, checked_finite
from diffflow_ext.functional.noise import Key
from diffflow_ext.likelihood.variational import Variance
from diffflow_ext.processes.chain import DiscreteVP

Sampler = Literal["ancestral", "ddim"]
LastStep = Literal["mean", "noisy"]


def sampled_times(op: str, T: int, num_steps: int | None) -> list[int]:
    """Returns the time indices of a sampler: spread evenly from T to 1, then 0."""
    n = T if num_steps is None else checked_count(op, "num_steps", num_steps, 1, T + 1)
    if n == 1:
        return [T, 0]
    return [*torch.linspace(T, 1, n, dtype=torch.float64).round().int().tolist(), 0]


@dataclass(frozen=True)
class Step:
    r"""One step from time i to k: :math:`x_k = p \, x_i + q \, \hat x_0 + \text{noise} \, z`."""

    i: int
    k: int
    p: float
    q: float
    noise: float
    #: The deviation of the forward step from k to i.
    forward: float
    #: sigma_i / alpha_i and 1 / alpha_i: x_0 = inverse * x_i - ratio * eps.
    ratio: float
    inverse: float


def sampler_steps(
    op: str,
    process: DiscreteVP,
    indices: list[int],
    *,
    sampler: str,
    eta: float,
    variance: str,
    last_step: str,
) -> list[Step]:
    """Returns the steps between times; refuses options of the other sampler."""
    check_choice(op, "sampler", sampler, Sampler)
    check_choice(op, "variance", variance, Variance)
    check_choice(op, "last_step", last_step, LastStep)
    eta = checked_finite(op, "eta", eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"{op}: expected 0 <= eta <= 1, got {eta}")
    if sampler == "ancestral" and eta:
        raise ValueError(f"{op}: expected eta only with sampler='ddim', got eta={eta}")
    if sampler == "ddim" and (variance, last_step) != ("small", "mean"):
        raise ValueError(
            f"{op}: expected variance and last_step only with sampler='ancestral', "
            f"got variance={variance!r}, last_step={last_step!r}"
        )
    log_alphas = process.log_alphas.tolist()
    strength = 1.0 if sampler == "ancestral" else eta
    steps = [_step(i, log_alphas[i], k, log_alphas[k], strength) for i, k in pairwise(indices)]
    if variance == "large":
        steps = [replace(step, noise=step.forward) for step in steps]
    last = steps[-1].ratio if last_step == "noisy" else 0.0
    return [*steps[:-1], replace(steps[-1], noise=last)]


def _step(i: int, log_alpha: float, k: int, log_alpha_k: float, eta: float) -> Step:
    """Returns one step; expm1 keeps 1 - alpha^2 accurate for alpha near 1."""
    alpha, alpha_k = math.exp(log_alpha), math.exp(log_alpha_k)
    variance, variance_k = -math.expm1(2 * log_alpha), -math.expm1(2 * log_alpha_k)
    forward = -math.expm1(2 * (log_alpha - log_alpha_k))
    posterior = eta * eta * forward * variance_k / variance
    p = math.sqrt(max(variance_k - posterior, 0.0) / variance)
    return Step(
        i=i,
        k=k,
        p=p,
        q=alpha_k - alpha * p,
        noise=math.sqrt(posterior),
        forward=math.sqrt(forward),
        ratio=math.sqrt(variance) / alpha,
        inverse=1 / alpha,
    )


def take_step(
    x: Tensor, eps: Tensor, step: Step, key: Key, clip: bool, sample_offset: int
) -> Tensor:
    """Returns x_k; the noise of the step to time k is draw k of purpose "reverse"."""
    noise: dict[str, Any] = {"noise_scale": step.noise}
    if step.noise:
        noise.update(key=key, step=step.k, sample_offset=sample_offset)
    if not clip:
        c_x = step.p + step.q * step.inverse
        return affine_step(x, eps, c_x=c_x, c_a=-step.q * step.ratio, **noise)
    x0 = affine_step(x, eps, c_x=step.inverse, c_a=-step.ratio).clamp(-1, 1)
    return affine_step(x, x0, c_x=step.p, c_a=step.q, **noise)
