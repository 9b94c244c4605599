r"""The terms of variational bounds: of DDPM, and at the ends of a bound in continuous time.

Those of DDPM come from the error of the predicted noise. With
:math:`e = \varepsilon - \varepsilon(t_i, x_i)` and :math:`a_i^2 = 1 - \beta_i`:

.. math::
    -\log p(x_0) &\le L_T + \sum_{i=2}^T L_{i-1} + L_0 \\
    L_T &= \mathrm{KL}(\mathcal N(\alpha_T x_0, \sigma_T^2 I) \, \| \, \mathcal N(0, I)) \\
    L_{i-1} &= \frac{\beta_i^2}{2 v_i a_i^2 \sigma_i^2} \| e \|^2
               + \frac d2 \Bigl( \frac{\tilde\beta_i}{v_i} - 1
               - \log \frac{\tilde\beta_i}{v_i} \Bigr), \quad
    \tilde\beta_i = \beta_i \frac{\sigma_{i-1}^2}{\sigma_i^2} \\
    L_0 &= -\log p(x_0 | x_1), \quad \text{mean } x_0 + \tfrac{\sigma_1}{\alpha_1} e

The variance of the model's step is :math:`v_i = \tilde\beta_i` ("small") or :math:`\beta_i`
("large").

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), equations 5 to 8 and 13
    | https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffflow_ext.functional.sums import event_sum
from diffflow_ext.processes.chain import DiscreteVP
from diffflow_ext.processes.linear import LogSNR

#: The likelihood of data given x_1: a density, or the mass of 8-bit levels.
Decoder = Literal["gaussian", "discretised"]
#: The variance of a reverse step: that of the posterior given x_0, or beta.
Variance = Literal["small", "large"]
#: Replaces infinity at the outermost levels, so that gradients stay finite.
_FAR = 1e8


def prior_kl(process: DiscreteVP, x0: Tensor) -> Tensor:
    """Returns L_T for each sample, float64."""
    log_alpha = float(process.log_alphas[-1])
    alpha_squared, variance = math.exp(2 * log_alpha), -math.expm1(2 * log_alpha)
    constant = math.prod(x0.shape[1:]) * (variance - 1 - math.log(variance))
    return 0.5 * (alpha_squared * event_sum(x0.square(), torch.float64) + constant)


def kl_weights(process: DiscreteVP, variance: Variance) -> tuple[Tensor, Tensor]:
    """Returns the factors of |e|^2 and of d in L_{i-1}, shape (T+1,), zero for i < 2."""
    beta, log_alphas = process.betas[1:], process.log_alphas
    before, now = -torch.expm1(2 * log_alphas[1:-1]), -torch.expm1(2 * log_alphas[2:])
    ratio = before / now if variance == "large" else torch.ones_like(now)
    scale, constant = (torch.zeros_like(log_alphas) for _ in range(2))
    scale[2:] = 0.5 * beta / (1 - beta) / (now if variance == "large" else before)
    constant[2:] = 0.5 * (ratio - 1 - ratio.log())
    return scale, constant


def decoder_cost(process: DiscreteVP, decoder: Decoder, x0: Tensor, error: Tensor) -> Tensor:
    r"""Returns L_0 for each sample, float64.

    The Gaussian's variance is :math:`\sigma_1^2 / \alpha_1^2`, that of the posterior of x_0 under
    a flat density; the discretised decoder's is :math:`\tilde\beta_2`, as published.
    """
    log_alpha = float(process.log_alphas[1])
    ratio = math.sqrt(math.expm1(-2 * log_alpha))  # sigma_1 / alpha_1
    if decoder == "gaussian":
        square = event_sum(error.square(), torch.float64)
        dimensions = math.prod(x0.shape[1:])
        return 0.5 * square + dimensions * (0.5 * math.log(2 * math.pi) + math.log(ratio))
    levels = ((x0.double() + 1) * 127.5).round()
    mean = x0.double() + ratio * error.double()
    return -event_sum(discretised_log_prob(levels, mean, _published_deviation(process)))


def continuous_ends(process: LogSNR, x0: Tensor) -> Tensor:
    r"""Returns what a bound in continuous time has besides its integral, for each sample, float64.

    .. math:: \mathrm{KL}(\mathcal N(\alpha_1 x_0, \sigma_1^2 I) \, \| \, \mathcal N(0, I))
              - \mathbb E \log \mathcal N(x_0; x_{t=0} / \alpha_0, (\sigma_0 / \alpha_0)^2 I)

    The decoder is the posterior of x_0 under a flat density, so its term is a constant.
    """
    d, log_ratio = math.prod(x0.shape[1:]), -0.5 * process.start  # log(sigma_0 / alpha_0)
    variance = 1.0 / (1.0 + math.exp(process.end))
    constant = d * (variance - 1 - math.log(variance))
    prior = 0.5 * ((1 - variance) * event_sum(x0.square(), torch.float64) + constant)
    return prior + d * (0.5 * math.log(2 * math.pi) + 0.5 + log_ratio)


def _published_deviation(process: DiscreteVP) -> float:
    if process.num_timesteps == 1:
        return math.sqrt(float(process.betas[0]))
    first, second = (-torch.expm1(2 * process.log_alphas[1:3])).tolist()
    return math.sqrt(float(process.betas[1]) * first / second)


def discretised_log_prob(levels: Tensor, mean: Tensor, deviation: float) -> Tensor:
    r"""Returns log-masses of 8-bit levels k under a Gaussian over x = 2 k / 255 - 1.

    .. math:: \log \int_{x - 1/255}^{x + 1/255} \mathcal N(u; \mu, s^2) \, du

    where the lowest and the highest level also hold the tails. Float64; differentiable in `mean`.
    """
    centred, half = 2 * levels / 255 - 1 - mean, 1 / 255
    upper = ((centred + half) / deviation).masked_fill(levels == 255, _FAR)
    lower = ((centred - half) / deviation).masked_fill(levels == 0, -_FAR)
    # Intervals are mirrored into the lower tail, where log_ndtr is accurate.
    mirrored = centred > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log(-torch.expm1(log_lower - log_upper))


def check_images(op: str, x0: Tensor) -> None:
    """Refuses data that are not 8-bit levels scaled to [-1, 1]."""
    levels = (x0.detach().double() + 1) * 127.5
    bad = ((levels - levels.round()).abs() > 1e-2) | (levels.round() < 0) | (levels.round() > 255)
    if bool(bad.any()):
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{op}: expected x0 = 2 k / 255 - 1 with k = 0 ... 255 for decoder='discretised', got "
            f"{float(x0[index])} at index {index}; scale the images so, or take decoder='gaussian'"
        )
