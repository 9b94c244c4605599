"""Paths of models that are trained without any: what their processes and samplers pass through."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.figures.paths import Paths
from diffflow_ext.functional.noise import NoiseKey, normal

#: About as many states are kept.
MOST_STATES = 60


def paths_of(
    net: nn.Module,
    sample: Callable[[], Tensor],
    marginal: Callable[[Tensor], tuple[Tensor, Tensor]],
    noise_share: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    key: NoiseKey,
    num_steps: int,
) -> Paths:
    r"""Returns forward and reverse states of a process with Gaussian marginals.

    Reverse states are those at which a sampler evaluates its network, of many steps some, and
    then the sample.
    Forward ones are a path of the process, :math:`x_t = m(t, x_0) + s(t, x_0) \varepsilon_t`: the
    noise at t' > t is :math:`k \varepsilon_t + \sqrt{1 - k^2} z`, a share k of that at t and a
    new one.

    Arguments:
        net: The network, called as ``net(t, x, ...)`` from late to early times.
        sample: Draws the samples.
        marginal: The mean and scale of the process at a time of shape (), given x0.
        noise_share: The share k of the noise from a time t > 0 to a later one.
        x0: Data, shape (B, *event).
        key: Seed and stream of the noise.
        num_steps: The steps of the sampler.
    """
    times, states = list[float](), list[Tensor]()
    every, calls = max(1, num_steps // MOST_STATES), itertools.count()

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if next(calls) % every:
            return
        t, x = arguments[:2]
        time = float(torch.as_tensor(t).flatten()[0])
        if times and times[-1] <= time:  # A corrector comes again to the same time.
            states[-1] = x
            return
        times.append(time)
        states.append(x)

    handle = net.register_forward_pre_hook(note)
    try:
        last = sample()
    finally:
        handle.remove()
    grid = torch.tensor([0.0, *reversed(times)], dtype=torch.float64)
    forward, noise = [x0], torch.zeros_like(x0)
    for i, time in enumerate(grid[1:].to(x0.device)):
        new = normal(
            tuple(x0.shape), key, purpose="forward", step=i, dtype=x0.dtype, device=x0.device
        )
        share = noise_share(grid[i].to(x0.device), time) if i else torch.zeros(())
        noise = (share * noise + (1.0 - share.square()).clamp(min=0.0).sqrt() * new).to(x0.dtype)
        mean, scale = marginal(time)
        forward.append((mean + scale * noise).to(x0.dtype))
    return Paths(torch.stack(forward), torch.stack([last, *reversed(states)]), grid)


def linear_marginal(process: Any, x0: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns the mean and scale of a linear process given data."""
    return lambda t: (process.alpha(t) * x0, process.sigma(t) * torch.ones_like(x0))


def linear_share(process: Any) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Returns the share of the noise that a linear process keeps from t to a later t'.

    .. math:: k = \frac{\alpha(t') \, \sigma(t)}{\alpha(t) \, \sigma(t')}
    """

    def share(t: Tensor, t_next: Tensor) -> Tensor:
        signal = process.alpha(t_next) / process.alpha(t)
        return signal * process.sigma(t) / process.sigma(t_next)

    return share
