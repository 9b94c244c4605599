"""Times and terms of the bound of NFDM that need no learned forward process."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines.choice import Engine
from diffflow_ext.engines.network import Network
from diffflow_ext.functional.noise import Key, sample_uniforms
from diffflow_ext.functional.perturb import perturb
from diffflow_ext.functional.sums import event_sum
from diffflow_ext.processes.linear import LogSNR

from .denoising import mean_square_error
from .learned_forward import rows

#: Multiples of it, modulo 1, are spread evenly however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2


def spread_times(x0: Tensor, key: Key, sample_offset: int) -> Tensor:
    """Returns a time in [0, 1) for each sample of a batch, float64; see `NFDM.loss`."""
    first = sample_uniforms(x0[:1], key, 1, 0).reshape(-1)
    index = torch.arange(len(x0), dtype=torch.float64, device=x0.device) + sample_offset
    return (first + index * _GOLDEN).remainder(1.0)


def rate_of_linear(
    op: str, process: LogSNR, net: Network, x0: Tensor, t: Tensor, noise: Any, engine: Engine
) -> Tensor:
    r"""Returns :math:`\tfrac12 \rho \alpha^2 |v - \hat v|^2` at times (B,), for each sample.

    It is :math:`\| B(x_0) - B(\hat x_0) \|^2 / (2 g^2)` of the linear process, with
    :math:`v = \alpha \varepsilon - \sigma x_0`, and the coefficient is least at the g of the
    process, :math:`g^2 = \rho \sigma^2`.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    x, eps = perturb(x0, alpha_t=alpha, sigma_t=sigma, **noise)
    target = rows(alpha, x) * eps - rows(sigma, x) * x0
    error = mean_square_error(op, net, t, x, target, engine, "net")
    size = 0.5 * process.rate * math.prod(x0.shape[1:])
    return error * (size * alpha.square()).to(error.dtype)


def end_terms(process: LogSNR, x0: Tensor) -> Tensor:
    r"""Returns the last two terms of the bound, of the noise and of the data.

    With :math:`p(x_0 | x_{t=0}) = \mathcal N(x_{t=0} / \alpha_0, (\sigma_0 / \alpha_0)^2 I)`,
    the posterior under a flat density. In nats, shape (B,), float64.
    """
    d = math.prod(x0.shape[1:])
    alpha_squared, variance = _sigmoid(process.end), _sigmoid(-process.end)
    prior = alpha_squared * event_sum(x0.square(), torch.float64)
    prior = 0.5 * (prior + d * (variance - 1 - math.log(variance)))
    return prior + d * (0.5 * math.log(2 * math.pi) + 0.5 - 0.5 * process.start)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))
