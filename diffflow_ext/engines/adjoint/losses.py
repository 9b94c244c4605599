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
vector-Jacobian product of each network per state. Only states are stored; noise and networks are
evaluated again. The result is the derivative of the discrete sum; tests/engines/test_adjoint.py
compares it with autograd of the unrolled loop.

A gradient that discretises the continuous adjoint equation instead (as SDE libraries do) is wrong
for this loss at any step size, because the residual is as large as the noise.

References:
    | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.2; its Algorithm 2 counts the last
    | residual twice and its equation 13 misses one. https://arxiv.org/abs/2110.07579
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.autograd import Function

from diffflow_ext.functional.operator import first_order
from diffflow_ext.functional.residual import residual_cost
from diffflow_ext.functional.steps import em_step
from diffflow_ext.functional.sums import scaled, weighted_sum

from ..problem import PathProblem
from .backward import Gradients, backward_sweep
from .forward import forward_sweep


class _PathLoss(Function):
    @staticmethod
    def forward(ctx: Any, p: PathProblem, x0: Tensor, g: Tensor, *params: Tensor) -> Tensor:
        losses, record = forward_sweep(p, x0, with_costs=True, keep=True)
        assert losses is not None
        ctx.p, ctx.modes, ctx.indices = p, p.modes(), list(record.states)
        # autograd frees saved tensors after the backward pass and checks them for changes.
        ctx.save_for_backward(g, *record.states.values(), *params)
        ctx.record = replace(record, states={})
        return losses

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        states = ctx.saved_tensors[1 : 1 + len(ctx.indices)]
        if ctx.modes != ctx.p.modes():
            raise RuntimeError(
                "DiffFlowSDE.loss: a network was switched between train() and eval(), or one of "
                "its parameters was frozen, before the backward pass, which evaluates it again; "
                "switch it afterwards"
            )
        record = replace(ctx.record, states=dict(zip(ctx.indices, states, strict=True)))
        out = backward_sweep(ctx.p, record, grad.contiguous())
        return None, out.x0, out.g, *out.params


class _MeanPathLoss(Function):
    """Weighted sum of losses; the forward call computes the gradients too, backward scales them.

    The factor 1/B is applied in the backward pass: before, cotangents of 16-bit networks could
    underflow in spite of a loss scale.
    """

    @staticmethod
    def forward(
        ctx: Any, p: PathProblem, weight: Tensor | None, x0: Tensor, g: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.scale = 1.0 / max(x0.shape[0], 1) if weight is None else 1.0
        value, out = _value_and_gradients(p, 1.0 if weight is None else weight, x0)
        grads = [out.x0, out.g, *out.params]
        ctx.present = [grad is not None for grad in grads]
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        return value * ctx.scale

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        grads = iter(scaled(ctx.saved_tensors, grad * ctx.scale))
        return None, None, *(next(grads) if present else None for present in ctx.present)


def path_losses(p: PathProblem, x0: Tensor) -> Tensor:
    """Returns the loss of each sample."""
    return _PathLoss.apply(p, x0, p.g, *p.sources)  # pyright: ignore[reportReturnType]


def mean_path_loss(p: PathProblem, x0: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the sum of losses times weights, without weights the mean."""
    return _MeanPathLoss.apply(p, weight, x0, p.g, *p.sources)  # pyright: ignore


def weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the sum of losses times weights, without weights the mean."""
    return weighted_sum(losses, 1.0 / max(losses.shape[0], 1) if weight is None else weight)


def _value_and_gradients(
    p: PathProblem, weight: Tensor | float, x0: Tensor
) -> tuple[Tensor, Gradients]:
    """Returns sum_b weight_b L_b and its gradients."""
    _, record = forward_sweep(p, x0, with_costs=False, keep=True)
    out = backward_sweep(p, record, weight, with_cost=True)
    assert out.cost is not None
    return weighted_sum(out.cost, weight), out


def unrolled_losses(p: PathProblem, x0: Tensor) -> Tensor:
    """Returns the loss of each sample by a differentiable loop, with the graph of every step."""
    x, cost, g = x0, x0.new_zeros(x0.shape[0]), p.g
    f = p.network("drift", 0, x)
    for k in range(1, p.num_steps + 1):
        dt, noise = p.steps[k - 1], {"key": p.key, "sample_offset": p.sample_offset}
        x_prev = x
        x = em_step(x, f, dt=dt, g=g[k - 1], step=k - 1, **noise)
        f, s = p.network("drift", k, x), p.network("score", k, x)
        cost = cost + residual_cost(x_prev, x, f, s, dt=dt, g_next=g[k])
    return cost + p.prior_cost(x)
