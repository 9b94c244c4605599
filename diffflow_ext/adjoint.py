r"""DiffFlow's loss and its exact stochastic adjoint, for any networks.

For a path :math:`x_0 \to x_N` of the forward SDE (see `functional` for its steps and residuals)

.. math:: L = -\log \mathcal N(x_N; 0, I) + \sum_{i=0}^{N-1} \tfrac12 \| \delta^B_i \|^2

Number the steps k = 1 ... N; step k joins :math:`x_{k-1}` to :math:`x_k` and has length
:math:`\Delta_k`, :math:`r_k = \delta^B_{k-1}`, and :math:`A_k = \partial L / \partial x_k`
(total). With :math:`A_{N+1} = r_{N+1} = 0`, and terms in r absent at k = 0:

.. math::
    u_k &= (\sqrt{\Delta_k} / g_k) \, r_k + \Delta_{k+1} A_{k+1} \\
    w_k &= -g_k \sqrt{\Delta_k} \, r_k \\
    A_k &= A_{k+1} - \frac{r_k}{g_k \sqrt{\Delta_k}} + \frac{r_{k+1}}{g_{k+1} \sqrt{\Delta_{k+1}}}
           + J_f^\top u_k + J_s^\top w_k \quad (+ x_N \text{ at } k = N) \\
    \partial L / \partial g_k &= -r_k \cdot (r_k + 2 g_k \sqrt{\Delta_k} s_k) / g_k
           + \sqrt{\Delta_{k+1}} \, A_{k+1} \cdot \delta^F_k

u and w are the cotangents of :math:`f(t_k, x_k)` and :math:`s(t_k, x_k)`: one evaluation and one
vector-Jacobian product of each network per state. Only states are kept; noise is made again and
networks are evaluated again. This is the derivative of the discrete sum itself: checked against
autograd of the unrolled loop in tests/test_adjoint.py.

A gradient that discretises the continuous adjoint equation instead (as SDE libraries do) is wrong
for this loss at any step size, because the residual is as large as the noise.

References:
    | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.2; its Algorithm 2 counts the last
    | residual twice and its equation 13 misses one. https://arxiv.org/abs/2110.07579
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _checks, functional
from ._activations import ActivationMemory
from ._engines import weighted_sum
from ._first_order import first_order
from ._replay import Autocast, RandomTape
from ._sweeps import (
    Cache,
    Gradients,
    Network,
    PathProblem,
    backward_sweep,
    check_leaves,
    simulate,
)
from ._words import shown
from .diffusion import Diffusion, diffusion_values
from .grids import TimeGrid
from .noise import NoiseKey
from .priors import Prior

__all__ = ["Network", "build_problem", "diffflow_loss", "diffflow_mean_loss"]

Key = NoiseKey | Tensor


class _PathLoss(Function):
    """Per-sample loss; gradients by the backward sweep."""

    @staticmethod
    def forward(ctx: Any, p: PathProblem, x0: Tensor, g: Tensor, *params: Tensor) -> Tensor:
        cache = new_cache(x0)
        loss = simulate(p, x0, cache, with_costs=True)
        assert loss is not None
        ctx.p, ctx.cache, ctx.kept = p, cache, list(cache.states)
        ctx.modes = p.modes()
        # Saved where autograd frees them after the backward pass and watches for changes in place.
        ctx.save_for_backward(g, *cache.states.values(), *params)
        cache.states = {}
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        states = ctx.saved_tensors[1 : 1 + len(ctx.kept)]
        if ctx.modes != ctx.p.modes():
            raise RuntimeError(
                "DiffFlowSDE.loss: a network was switched between train() and eval() before the "
                "backward pass, which evaluates it again; switch it afterwards"
            )
        first: Cache = ctx.cache
        cache = Cache(
            dict(zip(ctx.kept, states, strict=True)), first.tape, first.score_blocks, first.drifts,
            first.graphs,
        )  # fmt: skip
        out = backward_sweep(ctx.p, cache, grad.contiguous())
        return None, out.x0, out.g, *out.params


class _MeanLoss(Function):
    """Weighted sum of losses; the forward call finds the gradients too, backward scales them.

    The common factor 1/B waits for the backward pass: inside, small cotangents of 16-bit networks
    would vanish before a loss scale could save them.
    """

    @staticmethod
    def forward(
        ctx: Any, p: PathProblem, weight: Tensor | float, x0: Tensor, g: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.scale = weight if isinstance(weight, float) else 1.0
        value, out = mean_loss_and_gradients(p, weight if ctx.scale == 1.0 else 1.0, x0)
        grads = [out.x0, out.g, *out.params]
        ctx.present = [grad is not None for grad in grads]
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        return value * ctx.scale

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        saved, factor = iter(ctx.saved_tensors), grad * ctx.scale
        grads = [next(saved) * factor if present else None for present in ctx.present]
        return None, None, *grads


def new_cache(x0: Tensor) -> Cache:
    """Returns an empty cache for sweeps over states like x0."""
    return Cache({}, RandomTape(x0.device), [])


def mean_loss_and_gradients(
    p: PathProblem, weight: Tensor | float, x0: Tensor
) -> tuple[Tensor, Gradients]:
    """Returns sum_b weight_b L_b and its gradients, with 7N + 3 forward-equivalents."""
    cache = new_cache(x0)
    simulate(p, x0, cache, with_costs=False)
    out = backward_sweep(p, cache, weight, with_cost=True)
    assert out.cost is not None
    return weighted_sum(out.cost, weight), out


def unrolled_loss(p: PathProblem, x0: Tensor, g: Tensor) -> Tensor:
    """The loss as an ordinary differentiable loop: keeps the graph of every step."""
    x, cost = x0, x0.new_zeros(x0.shape[0])
    f = p.network("drift", 0, x)
    for k in range(1, p.num_steps + 1):
        dt, at = p.steps[k - 1], p.sample_offset
        x_prev = x
        x = functional.em_step(x, f, dt=dt, g=g[k - 1], key=p.key, step=k - 1, sample_offset=at)
        f, s = p.network("drift", k, x), p.network("score", k, x)
        cost = cost + functional.residual_cost(x_prev, x, f, s, dt=dt, g_next=g[k])
    return cost + p.prior_cost(x)


def build_problem(
    op: str,
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
) -> tuple[PathProblem, Tensor, Tensor]:
    """Checks the arguments of a loss; returns the problem, x0 (contiguous) and g at all times."""
    _check_callables(op, drift, score, prior)
    x0 = _checks.state(op, "x0", x0).contiguous()
    if x0.is_inference() and not torch.is_inference_mode_enabled():
        x0 = x0.clone()
    _checks.finite_state(op, "x0", x0)
    if score_memory is not None:
        score_memory = _checks.count(op, "score_memory", score_memory, 0, 2**63)
    if not isinstance(grid, TimeGrid):
        raise TypeError(f"{op}: expected grid to be a TimeGrid, got {type(grid).__name__}")
    g = diffusion_values(diffusion, grid.times_on(x0.device, x0.dtype)).to(x0.device)
    values, lengths = coefficients(g), _checks.steps(op, grid.steps(), x0)
    _checks.noise_floor(op, lengths, values[1:], x0)
    problem = PathProblem(
        drift=drift,
        score=score,
        params=_unique(op, params),
        times=grid.times_on(x0.device, x0.dtype),
        steps=grid.steps_on(x0.device, x0.dtype),
        g=values,
        key=_fixed_key(op, key, x0),
        sample_offset=_checks.sample_offset(op, sample_offset, x0.shape[0]),
        checkpoint_every=_checks.count(op, "checkpoint_every", checkpoint_every, 0, 2**31),
        score_memory=None if torch.is_inference_mode_enabled() else score_memory,
        activation_memory=_activation_memory(op, activation_memory, checkpoint_every),
        learned_g=g.requires_grad and torch.is_grad_enabled(),
        prior=prior,
        autocast=Autocast.current(x0.device.type),
    )
    return problem, x0, g


def _activation_memory(op: str, value: object, checkpoint_every: int) -> ActivationMemory:
    """Returns a budget for kept graphs, None for none."""
    if value is None or (isinstance(value, str) and value == "auto"):
        budget: ActivationMemory = value  # pyright: ignore
    elif isinstance(value, str):
        raise ValueError(
            f"{op}: expected activation_memory in bytes, 'auto' or None, got {shown(value)}"
        )
    else:
        budget = _checks.count(op, "activation_memory", value, 0, 2**63) or None
    if budget is not None and checkpoint_every == 0:
        raise ValueError(
            f"{op}: expected no activation_memory with checkpoint_every=0, which keeps the graph "
            "of every step; leave one of the two out"
        )
    return budget


def _fixed_key(op: str, key: Key | None, x0: Tensor) -> Key:
    """Returns a key that stays as it is until the backward pass, whatever its tensor becomes."""
    if key is None:
        return NoiseKey.from_torch()
    key = _checks.key(op, key, x0.device)
    if isinstance(key, NoiseKey):
        return key
    return key.clone() if key.is_cuda else NoiseKey(*key.tolist())


def coefficients(g: Tensor) -> Sequence[float | Tensor]:
    """Returns g as numbers on the CPU, as one-element views on a device: no waiting for values."""
    return g.detach().unbind() if g.is_cuda else g.tolist()


def _check_callables(op: str, drift: object, score: object, prior: object) -> None:
    for name, net in (("drift", drift), ("score", score)):
        if not callable(net):
            raise TypeError(
                f"{op}: expected {name} to be callable as {name}(t, x), got {type(net).__name__}"
            )
    if prior is not None and not callable(getattr(prior, "log_prob", None)):
        raise TypeError(
            f"{op}: expected prior to have log_prob(x), got {type(prior).__name__}; "
            "diffflow_ext.priors.as_prior makes one of a flow"
        )


def listed(op: str, params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Returns the named tensors of networks as a tuple, checked."""
    if isinstance(params, (str, bytes, Tensor)) or not isinstance(params, Iterable):
        raise TypeError(
            f"{op}: expected params to be a sequence of tensors, got {type(params).__name__}"
        )
    found = tuple(params)
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise TypeError(f"{op}: expected params[{i}] to be a tensor, got {type(p).__name__}")
    return found


def _unique(op: str, params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    found: dict[int, Tensor] = {}
    for p in listed(op, params):
        if p.requires_grad:
            _refuse_hooks(op, p)
            found[id(p)] = p
    return tuple(found.values())


def _refuse_hooks(op: str, p: Tensor) -> None:
    if p._backward_hooks:
        raise RuntimeError(
            f"{op}: a parameter of shape {tuple(p.shape)} has a gradient hook, which the adjoint "
            "would call at every step; use register_post_accumulate_grad_hook instead, or clip in "
            "the optimiser"
        )


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
        prior: The density at the noise end instead of N(0, I), see :mod:`diffflow_ext.priors`.
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


def path_loss(p: PathProblem, x0: Tensor, g: Tensor) -> Tensor:
    """Returns the per-sample loss of a built problem."""
    if p.checkpoint_every == 0:
        return unrolled_loss(p, x0, g)
    p.keep = _wants_gradients(p, x0, g)
    loss: Tensor = _PathLoss.apply(p, x0, g, *p.params)  # pyright: ignore
    if torch.is_grad_enabled() and not p.keep:
        _check_leaves(p, x0)
    return loss


def mean_path_loss(p: PathProblem, x0: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the weighted sum of losses of a built problem (weight None: the mean)."""
    each: Tensor | float = 1.0 / max(x0.shape[0], 1) if weight is None else weight
    inputs = (x0, g, *p.params)
    if p.checkpoint_every == 0:
        return weighted_sum(unrolled_loss(p, x0, g), each)
    if not _wants_gradients(p, x0, g):
        return weighted_sum(path_loss(p, x0, g), each)
    return _MeanLoss.apply(p, each, *inputs)  # pyright: ignore[reportReturnType]


def _wants_gradients(p: PathProblem, x0: Tensor, g: Tensor) -> bool:
    """Says whether a gradient may be asked for."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x0, g, *p.params))


def _check_leaves(p: PathProblem, x0: Tensor) -> None:
    """Makes sure that nobody expects a gradient who would get none.

    After the loss: flows that take their scale from the first batch have seen it by then.
    """
    with torch.random.fork_rng(devices=[]):
        for name in ("drift", "score"):
            probe = x0[:1].detach()
            check_leaves(name, p.network(name, 1, probe), probe, p.params)
        check_leaves("prior.log_prob", p.prior_cost(probe), probe, p.params)


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
        prior: The density at the noise end instead of N(0, I), see :mod:`diffflow_ext.priors`.
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
    return mean_path_loss(p, x0, g, _checks.weights(op, weight, x0))
