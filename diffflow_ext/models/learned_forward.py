r"""A Gaussian forward process with learned means and scales, known in closed form at any time.

.. math::
    x_t = m(t, x_0) + s(t, x_0) \, \varepsilon, \qquad
    m = \alpha(t) \, x_0 + \sum_k b_k(t) \, h_k(x_0), \quad
    \log s = \log \sigma(t) + \sum_k b_k(t) \, \tfrac12 \tanh u_k(x_0)

One network gives all :math:`h_k` and :math:`u_k` in one evaluation, and the functions of time are
fixed, so derivatives with respect to time need no automatic differentiation:

.. math:: b_k(t) = 4 t (1 - t) (2 t - 1)^k, \qquad b_k(0) = b_k(1) = 0

Both ends are those of the linear process, whatever is learned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffflow_ext.engines.autocast import Autocast
from diffflow_ext.engines.conditions import ConditionedOnData
from diffflow_ext.engines.network import call_timeless
from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.contexts import Context
from diffflow_ext.processes.linear import LogSNR

#: The most that a function of time changes the logarithm of a scale.
MAX_LOG_SCALE = 0.5
#: The largest logarithm of signal to noise at the data; float32 can't tell smaller noise from 0.
MAX_START = 24.0
#: h and u, shape (B, K, *event) each; None for the linear process.
Coefficients = tuple[Tensor, Tensor] | None


class Marginal(NamedTuple):
    r"""The Gaussian of x_t given x_0, and how it moves.

    Arguments:
        mean: m, shape (B, *event), in data units.
        scale: s > 0, shape (B, *event), in data units.
        mean_rate: dm/dt, shape (B, *event).
        log_scale_rate: d log s/dt, shape (B, *event).
    """

    mean: Tensor
    scale: Tensor
    mean_rate: Tensor
    log_scale_rate: Tensor

    def drift(self, x: Tensor) -> Tensor:
        r"""Returns :math:`f = \dot m + (\dot s / s)(x - m)`, the velocity at fixed noise."""
        return self.mean_rate + self.log_scale_rate * (x - self.mean)

    def reverse_drift(self, x: Tensor, squared_g: Tensor) -> Tensor:
        r"""Returns :math:`B = f - \tfrac12 g^2 c` with the score :math:`c = -(x - m) / s^2`."""
        return self.drift(x) + 0.5 * squared_g * (x - self.mean) / self.scale.square()


class LearnedForward(nn.Module):
    """The forward process of :class:`diffflow_ext.models.NFDM`.

    Arguments:
        net: Maps x_0 of shape (B, C, ...) to 2 K as many channels, (B, 2 K C, ...): K functions h,
            then K functions u, in the order of a reshape to (B, 2, K, C, ...). None leaves the
            linear process. With a context it is called as ``net(x_0, context)``.
        process: The linear process at both ends.

    Raises:
        TypeError: If `net` is not callable.
        ValueError: If `process` starts above 24, with a network.
    """

    def __init__(self, net: Any, process: LogSNR) -> None:
        super().__init__()
        if net is not None and not callable(net):
            raise TypeError(
                "NFDM: expected forward_net to be callable as forward_net(x0), got "
                f"{in_words(net)}"
            )
        if net is not None and process.start > MAX_START:
            raise ValueError(
                f"NFDM: expected process.start <= {MAX_START:g} with a forward_net, whose bound "
                f"has no digits left beyond, got {process.start}; take a smaller one"
            )
        self.net, self.process = net, process

    def given(self, context: Context) -> LearnedForward:
        """Returns the same process with a context, one row for each sample."""
        net = None if self.net is None else ConditionedOnData(self.net, context)
        return LearnedForward(net, self.process)

    def coefficients(self, x0: Tensor) -> Coefficients:
        """Returns h and u at x_0, if they are learned.

        Autocast is off: their differences between two close states count, near the data.

        Raises:
            ValueError: If x_0 has no channels, or the network returns another shape.
            TypeError: If the network returns no tensor of real numbers.
            RuntimeError: If it modified x_0 in place.
        """
        if self.net is None:
            return None
        if x0.dim() < 2:
            raise ValueError(
                "NFDM: expected x0 of shape (B, C, ...), got "
                f"{tuple(x0.shape)}; give data a dimension of channels, or take no forward_net"
            )
        with Autocast.current(x0.device.type).off():
            value = call_timeless("NFDM", "forward_net(x0)", self.net, x0)
        channels, rest = x0.shape[1], tuple(x0.shape[2:])
        shape = tuple(value.shape)
        whole = len(shape) == x0.dim() and shape[1] > 0 and shape[1] % (2 * channels) == 0
        if not whole or (shape[0], *shape[2:]) != (x0.shape[0], *rest):
            axes = ", ".join(map(str, (x0.shape[0], f"2 K {channels}", *rest)))
            raise ValueError(
                f"NFDM: expected forward_net(x0) of shape ({axes}) for x0 of shape "
                f"{tuple(x0.shape)}, with a whole K >= 1, got {shape}"
            )
        functions = shape[1] // (2 * channels)
        value = value.to(x0.dtype).reshape(x0.shape[0], 2, functions, channels, *rest)
        h, u = (part.contiguous() for part in value.unbind(1))
        return h, MAX_LOG_SCALE * u.tanh()

    def at(self, t: Tensor, x0: Tensor, coefficients: Coefficients) -> Marginal:
        """Returns the Gaussian at times t, shape () or (B,)."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        rate = self.process.drift_rate(t)
        # d log sigma/dt = r + g^2 / (2 sigma^2)
        log_sigma_rate = rate + 0.5 * (self.process.diffusion(t) / sigma).square()
        mean, mean_rate = per_sample(alpha, x0) * x0, per_sample(rate * alpha, x0) * x0
        scale, log_scale_rate = per_sample(sigma, x0), per_sample(log_sigma_rate, x0)
        if coefficients is not None:
            h, u = coefficients
            basis, slopes = time_functions(t.expand(x0.shape[0]), h.shape[1])
            mean, mean_rate = mean + _combined(basis, h), mean_rate + _combined(slopes, h)
            scale = scale * _combined(basis, u).exp()
            log_scale_rate = log_scale_rate + _combined(slopes, u)
        return Marginal(mean, scale.expand_as(mean), mean_rate, log_scale_rate)


def time_functions(t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns b_k at times of shape (B,), and their derivatives, shape (B, K) each."""
    bump, bump_slope, centred = 4 * t * (1 - t), 4 * (1 - 2 * t), 2 * t - 1
    powers = [torch.ones_like(t)]
    for _ in range(count - 1):
        powers.append(powers[-1] * centred)
    slopes = [bump_slope]
    for k in range(1, count):
        slopes.append(bump_slope * powers[k] + bump * 2 * k * powers[k - 1])
    return torch.stack([bump * power for power in powers], 1), torch.stack(slopes, 1)


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Returns one number for all samples, or for each, in a shape and dtype that multiply x."""
    value = value.to(x.dtype)
    return value if value.dim() == 0 else value.reshape(-1, *(1,) * (x.dim() - 1))


def _combined(weights: Tensor, values: Tensor) -> Tensor:
    """Returns the sum over k of weights (B, K) times values (B, K, *event)."""
    total = per_sample(weights[:, 0], values[:, 0]) * values[:, 0]
    for k in range(1, values.shape[1]):
        total = torch.addcmul(total, per_sample(weights[:, k], values[:, k]), values[:, k])
    return total
