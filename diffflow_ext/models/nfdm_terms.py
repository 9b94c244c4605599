"""Times, states and terms of the loss of NFDM, and its step of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffflow_ext.engines.choice import Engine
from diffflow_ext.engines.network import Network
from diffflow_ext.functional.noise import Key, sample_uniforms
from diffflow_ext.functional.perturb import perturb
from diffflow_ext.functional.sums import event_sum
from diffflow_ext.processes.linear import LogSNR

from .denoising import mean_square_error
from .learned_forward import Coefficients, LearnedForward, Marginal, per_sample

#: Multiples of it, modulo 1, are spread evenly however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2
#: Predicts data from times and states.
Predict = Callable[[Tensor, Tensor], Tensor]


def spread_times(x0: Tensor, key: Key, sample_offset: int) -> Tensor:
    """Returns a time in [0, 1) for each sample, which are spread evenly however many there are."""
    first = sample_uniforms(x0[:1], key, 1, 0).reshape(-1)
    index = torch.arange(len(x0), dtype=torch.float64, device=x0.device) + sample_offset
    return (first + index * _GOLDEN).remainder(1.0)


class Evaluation(NamedTuple):
    """A model at one random state of each sample.

    Arguments:
        t: The times, shape (B,).
        x: The states, shape (B, *event).
        predicted: The predicted data, shape (B, *event).
        coefficients: Those of the predicted data.
        rate: |B(x0) - B(x0_hat)|^2 / (2 g^2), shape (B,), in nats per unit of time.
    """

    t: Tensor
    x: Tensor
    predicted: Tensor
    coefficients: Coefficients
    rate: Tensor


def evaluate(
    process: LearnedForward, predict: Predict, squared_g: Tensor, x0: Tensor, t: Tensor, noise: Any
) -> Evaluation:
    """Draws a state of each sample with the arguments `noise` of `perturb`, and evaluates it."""
    own = process.at(t, x0, process.coefficients(x0))
    x, _ = perturb(own.mean, alpha_t=1.0, sigma_t=own.scale, **noise)
    predicted = predict(t, x)
    known = process.coefficients(predicted)
    model, g2 = process.at(t, predicted, known), per_sample(squared_g, x)
    error = own.reverse_drift(x, g2) - model.reverse_drift(x, g2)
    return Evaluation(t, x, predicted, known, event_sum(error.square() / (2 * g2)))


def linear_rate(
    op: str, process: LogSNR, net: Network, x0: Tensor, t: Tensor, noise: Any, engine: Engine
) -> Tensor:
    r"""Returns the rate of the linear process, :math:`\tfrac12 \rho \alpha^2 \| v - \hat v \|^2`.

    There :math:`v = \alpha \varepsilon - \sigma x_0`, and the coefficient is least at the g of the
    process, :math:`g^2 = \rho \sigma^2`.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    x, eps = perturb(x0, alpha_t=alpha, sigma_t=sigma, **noise)
    target = per_sample(alpha, x) * eps - per_sample(sigma, x) * x0
    error = mean_square_error(op, net, t, x, target, engine, "net")
    size = 0.5 * process.rate * math.prod(x0.shape[1:])
    return error * (size * alpha.square()).to(error.dtype)


def step_between(
    x: Tensor, now: Marginal, later: Marginal, log_kept: Tensor, noise: dict[str, Any] | None
) -> Tensor:
    """Returns a state of `later` from one of `now`, of which a share of the noise is kept.

    `log_kept` is the logarithm of that share k, in the shape of x. The share sqrt(1 - k^2) is
    drawn anew, with the arguments `noise` of :func:`diffflow_ext.functional.perturb`; where k = 1
    it is None.
    """
    mean = later.mean + later.scale * log_kept.exp() * (x - now.mean) / now.scale
    if noise is None:
        return mean
    scale = later.scale * (-torch.expm1(2 * log_kept)).sqrt()
    return perturb(mean, alpha_t=1.0, sigma_t=scale, **noise)[0]


def curvature(
    process: LearnedForward, predict: Predict, start: Evaluation, span: Tensor
) -> Tensor:
    r"""Returns how much a prediction changes in a step without noise, for each sample.

    .. math:: \| \hat x_0(t', x_{t'}) - \hat x_0(t, x_t) \|^2, \qquad t' = (1 - \text{span}) \, t

    where the step of :func:`step_between` leads from x_t to x_t'. Where it is 0, a step of any
    length is exact.
    """
    later = (1 - span) * start.t
    now, then = (process.at(t, start.predicted, start.coefficients) for t in (start.t, later))
    x = step_between(start.x, now, then, torch.zeros_like(start.x), None)
    return event_sum((predict(later, x) - start.predicted).square())
