"""NFDM written out by its formulas, and models whose prediction is exact."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from denoisers import WavyNet
from model_cases import F64, WavyForward
from torch import Tensor, nn

from diffflow_ext import NFDM
from diffflow_ext.processes import LogSNR

MEAN, SPREAD = torch.tensor([0.7, -0.3], dtype=F64), torch.tensor([0.5, 1.3], dtype=F64)


def linear(process: LogSNR, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma from the ratio of signal to noise."""
    snr = (process.start + (process.end - process.start) * t).exp()
    return (snr / (1 + snr)).sqrt(), (1 + snr).rsqrt()


def gaussian(model: NFDM, t: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """m and s of elementwise networks at a time of shape ()."""
    alpha, sigma = linear(model.process, t)
    mean, log_scale = alpha * x0, sigma.log() + 0 * x0
    net: Any = model.forward_process.net
    if net is not None:
        for k in range(net.count):
            b = 4 * t * (1 - t) * (2 * t - 1) ** k
            mean = mean + b * net.shift(k, x0)
            log_scale = log_scale + b * 0.5 * net.logit(k, x0).tanh()
    return mean, log_scale.exp()


def predicted(model: NFDM, t: Tensor, x: Tensor) -> Tensor:
    alpha, sigma = linear(model.process, t)
    return alpha * x - sigma * model.net(t, x)


def squared_g(model: NFDM, t: Tensor) -> Tensor:
    _, sigma = linear(model.process, t)
    learned = getattr(model, "volatility", torch.zeros(4, dtype=F64))
    power = sum(a * t**k for k, a in enumerate(learned))
    return (model.process.start - model.process.end) * sigma**2 * torch.exp(power)


def drift(model: NFDM, t: Tensor, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """f and the score of x given x_0, by autograd of F(t, eps, x_0) and of log q."""
    leaf, state = t.clone().requires_grad_(), x.clone().requires_grad_()
    mean, scale = gaussian(model, leaf, x0)
    moved = mean + scale * ((x - mean) / scale).detach()
    velocity = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in moved.flatten()]
    log_q = torch.distributions.Normal(mean, scale).log_prob(state)
    (score,) = torch.autograd.grad(log_q.sum(), state)
    return torch.stack(velocity).reshape(x.shape), score


def wavy(learned: bool, process: LogSNR | None = None) -> NFDM:
    model = NFDM(WavyNet(), WavyForward() if learned else None, process or LogSNR(6.0, -4.0))
    if learned:
        model.volatility.data.copy_(torch.tensor([0.3, -0.5, 0.2, 0.4]))
    return model.double()


# --- Gaussian data with the exact prediction -----------------------------------------------------


class AffineForward(nn.Module):
    """h and u such that x_t stays Gaussian: h = w x_0 + c, u constant."""

    def __init__(self, w: Any, c: Any, u: Any) -> None:
        super().__init__()
        self.w, self.c, self.u = (torch.tensor(v, dtype=F64) for v in (w, c, u))
        self.count = len(self.w)

    def shift(self, k: int, x0: Tensor) -> Tensor:
        return self.w[k] * x0 + self.c[k]

    def logit(self, k: int, x0: Tensor) -> Tensor:
        return self.u[k] + 0 * x0

    forward = WavyForward.forward


ZERO = [[0.0, 0.0], [0.0, 0.0]]
FORWARDS: dict[str, Any] = {
    "linear": None,
    # Means that move make no other g the best one.
    "moving": partial(AffineForward, ZERO, [[0.4, -0.9], [0.5, 0.2]], ZERO),
    "affine": partial(
        AffineForward, [[0.2, -0.1], [0.1, 0.25]], [[0.4, -0.9], [0.5, 0.2]],
        [[0.3, -0.2], [-0.4, 0.5]],
    ),
}  # fmt: skip


def exact(forward: str, volatility: float = 0.0) -> NFDM:
    """A model of N(MEAN, SPREAD^2) whose prediction is the mean of x_0 given x_t."""

    def v(t: Tensor, x: Tensor) -> Tensor:
        t = t.reshape(-1, 1) if t.dim() else t
        shift, scale = gaussian(model, t, torch.zeros(2, dtype=F64))
        factor = gaussian(model, t, torch.ones(2, dtype=F64))[0] - shift
        gain = factor * SPREAD**2 / (factor**2 * SPREAD**2 + scale**2)
        alpha, sigma = linear(model.process, t)
        return (alpha * x - MEAN - gain * (x - factor * MEAN - shift)) / sigma

    make = FORWARDS[forward]
    model = NFDM(v, make() if make else None, LogSNR(12.0, -12.0)).double()
    if volatility:
        model.volatility.data[0] = volatility
    return model
