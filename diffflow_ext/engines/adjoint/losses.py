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
autograd of the unrolled loop in tests/engines/test_adjoint.py.

A gradient that discretises the continuous adjoint equation instead (as SDE libraries do) is wrong
for this loss at any step size, because the residual is as large as the noise.

References:
    | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.2; its Algorithm 2 counts the last
    | residual twice and its equation 13 misses one. https://arxiv.org/abs/2110.07579
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from diffflow_ext.functional.operator import first_order
from diffflow_ext.functional.residual import residual_cost
from diffflow_ext.functional.steps import em_step
from diffflow_ext.functional.sums import weighted_sum

from ..problem import PathProblem
from .backward import Gradients, backward_sweep, check_leaves
from .forward import Cache, simulate
from .replay import RandomTape


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
        x = em_step(x, f, dt=dt, g=g[k - 1], key=p.key, step=k - 1, sample_offset=at)
        f, s = p.network("drift", k, x), p.network("score", k, x)
        cost = cost + residual_cost(x_prev, x, f, s, dt=dt, g_next=g[k])
    return cost + p.prior_cost(x)


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
