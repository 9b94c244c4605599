r"""Lower bounds of log p(x0), p the density of the discrete reverse process, from forward paths.

With :math:`w_k` the bound's estimate on path k,

.. math::
    w_k &= \sum_i \tfrac12 \| \delta^F_i \|^2 - L - d \log \frac{g_N}{g_0} \\
    \log p(x_0) &\ge \mathbb E \Big[ \log \frac1K \sum_{k=1}^K e^{w_k} \Big]
                 \ge \mathbb E [w_1]

The bound rises to log p(x0) as K grows. The last term of :math:`w_k` comes from the normalisers of
the Gaussian steps. It vanishes only if :math:`g_N = g_0`.

References:
    | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 16
    | https://arxiv.org/abs/2110.07579
    | Importance Weighted Autoencoders (Burda et al., 2016), equation 8
    | https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffflow_ext.engines.paths import path_engine
from diffflow_ext.engines.problem import PathProblem
from diffflow_ext.functional.checks import checked_count, checked_state
from diffflow_ext.functional.contexts import Context, checked_context, repeated
from diffflow_ext.functional.noise import MAX_SAMPLE, checked_sample_offset, noise_energy

#: Paths that a bound without gradient evaluates in one call.
PATHS_PER_CALL = 2**15


def path_bound(op: str, problem: PathProblem, x0: Tensor) -> Tensor:
    """Returns the estimate w_1 of each sample from one path, shape (B,), in nats."""
    losses = path_engine(op, "auto", problem, x0).losses(x0)
    return _path_noise_energy(problem, x0) - losses - _log_volume(problem, x0)


def bound_minus_loss(problem: PathProblem, x0: Tensor) -> Tensor:
    """Returns -w_1 - L of each sample, which depends only on the noise."""
    return _log_volume(problem, x0) - _path_noise_energy(problem, x0)


def bound_of_paths(
    op: str,
    bound: Callable[[Tensor, int, Context | None], Tensor],
    x0: Tensor,
    num_paths: int,
    sample_offset: int,
    context: Context | None = None,
) -> Tensor:
    """Returns the bound from K paths of each sample, shape (B,), in nats.

    Path k of sample i has the noise of sample i K + k, however the batch is split.

    Arguments:
        op: The name of the calling function, for error messages.
        bound: Maps data, the global index of their first sample and their context to the bound of
            one path.
        x0: The data.
        num_paths: The number of paths K.
        sample_offset: The global index of the first sample.
        context: The context of the data.
    """
    paths = checked_count(op, "num_paths", num_paths, 1, 2**20)
    offset = checked_sample_offset(op, sample_offset, 0)
    if paths == 1:
        return bound(x0, offset, context)
    x0 = checked_state(op, "x0", x0)
    context = checked_context(op, context, x0)
    if (offset + x0.shape[0]) * paths > MAX_SAMPLE:
        raise ValueError(
            f"{op}: expected (sample_offset + batch) * num_paths <= 2^32, got ({offset} + "
            f"{x0.shape[0]}) * {paths}; use another stream for more samples"
        )
    rows = x0.shape[0] if torch.is_grad_enabled() else PATHS_PER_CALL // paths
    rows = max(rows, 1)
    estimates = [
        bound(
            part.repeat_interleave(paths, 0),
            (offset + i * rows) * paths,
            repeated(context, slice(i * rows, (i + 1) * rows), paths),
        )
        for i, part in enumerate(x0.split(rows))
    ]
    return torch.cat(estimates).unflatten(0, (-1, paths)).logsumexp(1) - math.log(paths)


def _log_volume(p: PathProblem, x0: Tensor) -> Tensor:
    """Returns d log(g_N / g_0)."""
    return math.prod(x0.shape[1:]) * torch.log(p.g[-1] / p.g[0])


def _path_noise_energy(p: PathProblem, x0: Tensor) -> Tensor:
    """Returns the sum of 1/2 |delta_f|^2 over all steps of each sample's path."""
    energy = x0.new_zeros(x0.shape[0])
    for i in range(p.num_steps):
        energy = noise_energy(x0, p.key, i, p.sample_offset, energy)
    return energy
