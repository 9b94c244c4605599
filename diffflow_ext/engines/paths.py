"""Losses and paths of a problem, by the engine that was asked for or the fastest that fits."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from diffflow_ext.flows.prior import Prior, StandardNormal
from diffflow_ext.functional.checks import checked_weights
from diffflow_ext.functional.core import device_and_stream
from diffflow_ext.functional.noise import Key, NoiseKey
from diffflow_ext.processes.diffusion import Diffusion
from diffflow_ext.processes.grids import TimeGrid

from .adjoint.losses import mean_path_loss, path_loss
from .choice import Engine, refuse
from .fused import paths_cuda, perceptrons, workspace
from .fused.paths import FusedPaths
from .fused.workspace import Parts
from .network import Network
from .problem import ActivationMemory, PathProblem, build_problem

__all__ = ["diffflow_loss", "diffflow_mean_loss", "prepare"]


def diffflow_loss(
    drift: Network,
    score: Network,
    x0: Tensor,
    grid: TimeGrid,
    *,
    diffusion: Diffusion = 1.0,
    params: Iterable[Tensor] = (),
    prior: Prior | None = None,
    key: Key | None = None,
    sample_offset: int = 0,
    checkpoint_every: int = 1,
    score_memory: int | None = None,
    activation_memory: ActivationMemory = None,
) -> Tensor:
    r"""Returns DiffFlow's loss for each sample, with the exact gradient of the discrete sum.

    .. math:: L = -\log \mathcal N(x_N; 0, I) + \sum_{i=0}^{N-1} \tfrac12 \| \delta^B_i \|^2

    along one path of the forward SDE from each `x0`. Costs 2N+1 network evaluations, and as many
    again with their vector-Jacobian products in the backward pass.

    Arguments:
        drift: The drift f(t, x), any callable.
        score: The score s(t, x), any callable.
        x0: The data, shape (B, *event), float32 or float64.
        grid: The times, from data to noise.
        diffusion: The coefficient g(t) > 0: a number, a function of t, or a module.
        params: All tensors that drift, score and prior depend on and that should get gradients.
        prior: The density at the noise end instead of N(0, I), see :mod:`diffflow_ext.flows.prior`.
        key: Seed and stream of the noise. Default: drawn from torch's generator.
        sample_offset: The global index of the first sample.
        checkpoint_every: Keep every k-th state and simulate the others again; 0 keeps the graph of
            every step (fastest, most memory). Neither values nor gradients depend on it.
        score_memory: Evaluate the score at several states in one call, as many as keep their
            activations within this many bytes. Networks are then called with t of shape (n B,).
            Needs `checkpoint_every` = 1, else it is ignored. Default: one state a call.
        activation_memory: Bytes of activations that the forward sweep keeps for the backward
            sweep, which then evaluates networks again only at the states whose activations do not
            fit: the first ones. Measured at the first evaluations. "auto" takes half of the
            memory that is free now (on a GPU including what torch's allocator holds idle, on the
            CPU what Linux calls available within the limit of the process's group). Neither
            values nor gradients depend on it. Default: none.

    Returns:
        The losses, shape (B,), in nats. Differentiable in `x0`, `params` and what `diffusion`
        depends on.

    Raises:
        ValueError: If an argument is out of its range, or data are not finite.
        TypeError: If an argument has the wrong type.
        RuntimeError: If a network depends on a tensor that requires a gradient and is not named.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 15 and 16, section 3.2
        | https://arxiv.org/abs/2110.07579
    """
    p, x0, g = build_problem(
        "diffflow_loss", drift, score, x0, grid, diffusion=diffusion, params=params, prior=prior,
        key=key, sample_offset=sample_offset, checkpoint_every=checkpoint_every,
        score_memory=score_memory, activation_memory=activation_memory,
    )  # fmt: skip
    return path_loss(p, x0, g)


def diffflow_mean_loss(
    drift: Network,
    score: Network,
    x0: Tensor,
    grid: TimeGrid,
    *,
    weight: Tensor | None = None,
    diffusion: Diffusion = 1.0,
    params: Iterable[Tensor] = (),
    prior: Prior | None = None,
    key: Key | None = None,
    sample_offset: int = 0,
    checkpoint_every: int = 1,
    score_memory: int | None = None,
    activation_memory: ActivationMemory = None,
) -> Tensor:
    r"""Returns the mean loss of a batch; value and gradient come from one sweep.

    .. math:: \bar L = \sum_b w_b L_b, \qquad w_b = 1/B \text{ by default}

    Because the weights are known, networks are evaluated N+1 times fewer than by the mean of
    :func:`diffflow_loss`; the backward pass only scales what the forward pass has found. All
    arguments but `weight` are those of :func:`diffflow_loss`.

    Arguments:
        drift: The drift f(t, x).
        score: The score s(t, x).
        x0: The data, shape (B, *event).
        grid: The times, from data to noise.
        weight: The weights :math:`w_b`, shape (B,). No gradient flows into them.
        diffusion: The coefficient g(t) > 0.
        params: All tensors that drift, score and prior depend on and that should get gradients.
        prior: The density at the noise end instead of N(0, I), see :mod:`diffflow_ext.flows.prior`.
        key: Seed and stream of the noise.
        sample_offset: The global index of the first sample.
        checkpoint_every: Keep every k-th state; 0 keeps the graph of every step.
        score_memory: Bytes for scores evaluated in one call.
        activation_memory: Bytes of activations that are kept, or "auto". Only drifts' are: the
            score is evaluated once anyway.

    Returns:
        The mean, shape (), in nats.

    Raises:
        ValueError: If an argument is out of its range, or data are not finite.
        TypeError: If an argument has the wrong type.
        RuntimeError: If a network depends on a tensor that requires a gradient and is not named.
    """
    op = "diffflow_mean_loss"
    p, x0, g = build_problem(
        op, drift, score, x0, grid, diffusion=diffusion, params=params, prior=prior, key=key,
        sample_offset=sample_offset, checkpoint_every=checkpoint_every, score_memory=score_memory,
        activation_memory=activation_memory,
    )  # fmt: skip
    return mean_path_loss(p, x0, g, checked_weights(op, weight, x0))


#: Kernels for CUDA are taken where they are asked for by name.
_UNMEASURED = "the kernel for CUDA is new and has not been measured; engine='fused' takes it"


def prepare(op: str, engine: Engine, p: PathProblem, x: Tensor) -> FusedPaths | None:
    """Returns a call of the fused engine, None where another one computes.

    Raises:
        ValueError: If "fused" is asked for and cannot be had.
    """
    if engine == "autograd":
        return None
    found = call_or_reason(p, x, by_name=engine == "fused")
    if isinstance(found, FusedPaths):
        return found
    refuse(op, engine, found)
    return None


def call_or_reason(p: PathProblem, x: Tensor, *, by_name: bool = False) -> FusedPaths | str:
    """Returns a call of the fused engine, or why it cannot be had."""
    device = "cuda" if x.is_cuda else "cpu"
    reason = _problem_obstacle(p, device) or (x.is_cuda and not by_name and _UNMEASURED)
    if reason:
        return reason
    drift = perceptrons.parts_or_reason(p.drift, p.times, x, device)
    score = perceptrons.parts_or_reason(p.score, p.times, x, device)
    if isinstance(drift, str):
        return f"drift: {drift}"
    if isinstance(score, str):
        return f"score: {score}"
    if device == "cuda":
        return _call_on_gpu(p, drift, score, x)
    instructions = workspace.instructions_name()
    assert instructions is not None
    call = FusedPaths(p, drift, score, instructions)
    return workspace.memory_obstacle(call.scratch_bytes(x)) or call


def _call_on_gpu(p: PathProblem, drift: Parts, score: Parts, x: Tensor) -> FusedPaths | str:
    rounding = workspace.rounding_name()
    assert rounding is not None
    reason = paths_cuda.obstacle(drift, score, x.shape[1], rounding, device_and_stream(x)[0])
    return reason or FusedPaths(p, drift, score, f"cuda, {rounding}", rounding)


def _problem_obstacle(p: PathProblem, device: str) -> str:
    normal = type(p.prior) is StandardNormal and isinstance(p.prior.scale, float | int)
    if p.prior is not None and not (normal and p.prior.scale == 1):  # pyright: ignore
        return "its density at the noise end is N(0, I), and there is another prior"
    if p.checkpoint_every == 0:
        return "checkpoint_every=0 asks for the graph of every step"
    if device == "cpu" and not isinstance(p.key, NoiseKey):
        return "the key is a tensor of another device"
    return ""


def forward_path(p: PathProblem, x0: Tensor, states: Tensor | None) -> Tensor:
    """Returns x_N from x_0. Writes all states into `states` (N+1, B, *event) where given."""
    x = x0
    for k in range(p.num_steps):
        out = None if states is None else states[k + 1]
        x = p.em_step(x, p.network("drift", k, x), k, out)
    return x
