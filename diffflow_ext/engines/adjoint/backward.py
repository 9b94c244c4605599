"""The two sweeps over a path: forward to the noise, backward with the adjoint.

Plain functions of tensors with autograd switched off; adjoint.py states the mathematics and makes
autograd functions of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.functional.adjoint import AdjointResult, AdjointState, adjoint_step
from diffflow_ext.functional.residual import launch_backward_residual

from ..problem import PathProblem, normal_cost
from .forward import Cache, _per_budget
from .memory import SavedBytes

__all__ = ["Gradients", "backward_sweep"]


@dataclass
class Gradients:
    """Gradients of a weighted sum of losses."""

    x0: Tensor
    g: Tensor | None
    params: list[Tensor | None]
    cost: Tensor | None = None
    _own: set[int] = field(default_factory=set)

    def add(self, grads: Iterable[Tensor | None]) -> None:
        """Accumulates parameter gradients.

        In place only into sums made here: autograd may hand out one tensor for two parameters, or
        an expanded one.
        """
        old: list[Tensor] = []
        more: list[Tensor] = []
        for i, grad in enumerate(grads):
            known = self.params[i]
            if known is None or grad is None:
                self.params[i] = grad if known is None else known
            elif i in self._own:
                old.append(known)
                more.append(grad)
            else:
                self.params[i] = known + grad
                self._own.add(i)
        if old:
            torch._foreach_add_(old, more)  # pyright: ignore


def backward_sweep(
    p: PathProblem, cache: Cache, weight: Tensor | float, *, with_cost: bool = False
) -> Gradients:
    """Returns the gradients of sum_b weight_b L_b from what :func:`simulate` left.

    Arguments:
        p: The problem.
        cache: States and random states; without score blocks where scores are evaluated here for
            the first time.
        weight: Weights of the samples, shape (B,), or one number for all.
        with_cost: Whether to sum the loss, per sample, on the way.
    """
    with cache.tape.preserved():
        return _Walk(p, cache, weight, with_cost=with_cost).run()


class _Walk:
    """From x_N to x_0 with one evaluation and one product of each network per state."""

    def __init__(
        self, p: PathProblem, cache: Cache, weight: Tensor | float, *, with_cost: bool
    ) -> None:
        self.p, self.cache, self.weight = p, cache, weight
        self.with_cost = with_cost
        self.finished_scores: dict[int, tuple[Tensor, Tensor]] = {}
        self.block_size = 1
        self.checked: set[str] = set()

    def run(self) -> Gradients:
        p, n = self.p, self.p.num_steps
        x0 = self.cache.states[0]
        out = Gradients(x0, x0.new_zeros(n + 1) if p.learned_g else None, [None] * len(p.params))
        after: AdjointState | None = None
        for k in range(n, -1, -1):
            after = self._at(k, after, out)
        assert after is not None
        assert after.vjp_f is not None
        out.x0 = after.local + after.vjp_f
        return out

    def _at(self, k: int, after: AdjointState | None, out: Gradients) -> AdjointState:
        p, x = self.p, self._state(k)
        x_prev = self._state(k - 1) if k > 0 else None
        with torch.enable_grad():
            leaf, f = self._evaluate("drift", k, x)
            s, s_vjp = self._score(k, leaf, out)
        if self.with_cost and x_prev is not None and s is not None:
            out.cost = p.cost(x_prev, x, f.detach(), s.detach(), k, out.cost)
        result = adjoint_step(
            x_prev,
            x,
            f.detach(),
            None if s is None else s.detach(),
            after,
            weight=self.weight,
            dt=p.steps[k - 1] if k > 0 else 1.0,
            dt_next=p.steps[k] if k < p.num_steps else 0.0,
            g=p.g_values[k],
            key=p.key,
            step=min(k, p.num_steps - 1),
            sample_offset=p.sample_offset,
            want_grad_g=p.learned_g,
        )
        if out.g is not None and result.grad_g is not None:
            out.g[k] = result.grad_g.double().sum()
        if k == p.num_steps:
            result = self._with_prior(x, result, out)
        outputs: list[tuple[Tensor, Tensor | None]] = [(f, result.cotangent_f)]
        if s is not None and s_vjp is None:
            outputs.append((s, result.cotangent_s))
        vjp = self._product(outputs, leaf, out)
        return AdjointState(result.local, vjp, s_vjp, result.carry)

    def _with_prior(self, x: Tensor, result: AdjointResult, out: Gradients) -> AdjointResult:
        """Puts the prior's gradient at x_N in the place of that of N(0, I), which is x_N."""
        p = self.p
        if p.prior is None:
            out.cost = out.cost + normal_cost(x) if out.cost is not None else None
            return result
        self.cache.tape.replay("prior")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            cost = p.prior_cost(leaf)
        check_leaves("prior.log_prob", cost, leaf, p.params)
        if not cost.requires_grad:
            raise RuntimeError(
                "DiffFlowSDE: expected prior.log_prob(x) to be differentiable in x, got a tensor "
                "without a graph; it must not detach x or run under no_grad"
            )
        out.cost = out.cost + cost.detach() if out.cost is not None else None
        number, weight = not isinstance(self.weight, Tensor), self.weight
        # A number that became a tensor on the host first would wait for the device.
        each = cost.new_full((), weight) if number else weight.to(cost.dtype)  # pyright: ignore
        slope = self._product([(cost, each.expand_as(cost))], leaf, out)
        weight = each.reshape(-1, *[1] * (x.dim() - 1))
        return result._replace(local=result.local + (slope - weight * x))

    def _product(
        self, outputs: list[tuple[Tensor, Tensor | None]], leaf: Tensor, out: Gradients
    ) -> Tensor:
        """Returns J^T cotangent in x, summed over the networks; adds that in the parameters."""
        alive = [(value, cot.to(value.dtype)) for value, cot in outputs
                 if value.requires_grad and cot is not None]  # fmt: skip
        if not alive:
            return torch.zeros_like(leaf)
        values, cotangents = zip(*alive, strict=True)
        # Autocast is for forward evaluations: what a network kept in float32 stays there.
        with self.p.autocast.off():
            grad_x, *grads = torch.autograd.grad(
                values, (leaf, *self.p.params), cotangents, allow_unused=True
            )
        out.add(grads)
        return torch.zeros_like(leaf) if grad_x is None else grad_x.contiguous()

    def _evaluate(
        self, name: str, k: int | range, x: Tensor, leaf: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns x as a leaf and the network's value there, kept by the forward sweep or new."""
        kept = self.cache.graphs.take(name, k)
        if kept is None:
            self.cache.tape.replay((name, k))
            leaf = x.detach().requires_grad_() if leaf is None else leaf
            kept = leaf, self.p.network(name, k, leaf)
        if name not in self.checked:
            check_leaves(name, kept[1], kept[0], self.p.params)
            self.checked.add(name)
        return kept

    def _state(self, k: int) -> Tensor:
        """Returns x_k, simulating its segment again from the checkpoint before it."""
        states, every = self.cache.states, self.p.checkpoint_every
        if k in states:
            return states[k]
        first = k // every * every
        for old in [j for j in states if j % every and j != self.p.num_steps and j > k + 1]:
            del states[old]
        with torch.no_grad():
            for j in range(first, k):
                self.cache.tape.replay(("drift", j))
                f = self.p.network("drift", j, states[j])
                states[j + 1] = self.p.em_step(states[j], f, j)
        return states[k]

    def _score(self, k: int, leaf: Tensor, out: Gradients) -> tuple[Tensor | None, Tensor | None]:
        """Returns s_k, and its finished product J_s^T w_k where k belongs to a larger block."""
        if k == 0:
            return None, None
        if k in self.finished_scores:
            return self.finished_scores.pop(k)
        ks = self._block_of(k)
        if len(ks) > 1:
            self._finish_block(ks, out)
            return self.finished_scores.pop(k)
        if not self.p.batches_scores:
            return self._evaluate("score", ks, leaf, leaf)[1], None
        saved = SavedBytes()
        with saved:
            s = self._evaluate("score", ks, leaf, leaf)[1]
        self.block_size = _per_budget(self.p, saved)
        return s, None

    def _block_of(self, k: int) -> range:
        """Returns the states whose scores are evaluated together with that of state k."""
        for block in self.cache.score_blocks:
            if k in block:
                return block
        return range(max(1, k + 1 - self.block_size), k + 1)

    def _finish_block(self, ks: range, out: Gradients) -> None:
        """Evaluates the score at several states in one call and takes all products at once."""
        states = self.cache.states
        leaf, values = self._evaluate("score", ks, torch.cat([states[k] for k in ks]))
        each = list(values.detach().chunk(len(ks)))
        with torch.no_grad():
            cotangents = [self._score_cotangent(k, s) for k, s in zip(ks, each, strict=True)]
        vjp = self._product([(values, torch.cat(cotangents))], leaf, out)
        for k, s, part in zip(ks, each, vjp.chunk(len(ks)), strict=True):
            self.finished_scores[k] = (s, part.contiguous())

    def _score_cotangent(self, k: int, s: Tensor) -> Tensor:
        """w_k = -g_k sqrt(dt_k) r_k, weighted."""
        p, states = self.p, self.cache.states
        residual = launch_backward_residual(
            states[k - 1], states[k], self.cache.drifts[k], s, p.steps[k - 1], p.g_values[k]
        )
        weight: Any = self.weight
        if isinstance(weight, Tensor):
            weight = weight.reshape(-1, *[1] * (residual.dim() - 1))
        return residual * weight * (-_sqrt(p.steps[k - 1]) * p.g_values[k])


def _sqrt(x: float | Tensor) -> float | Tensor:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def check_leaves(name: str, value: Tensor, x: Tensor, params: Sequence[Tensor]) -> None:
    """Refuses a network whose graph ends in tensors that would silently get no gradient."""
    known = {id(p) for p in (*params, x)}
    if id(value) in known:
        return
    if value.grad_fn is None and value.requires_grad:
        raise _unnamed(name, value)
    # A parameter need not be a leaf; siblings of one operation are told apart by their number.
    stops = {(p.grad_fn, p.output_nr) for p in params if p.grad_fn is not None}
    queue, seen = [(value.grad_fn, value.output_nr)], set()
    while queue:
        edge = queue.pop()
        node = edge[0]
        if node is None or edge in stops or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise _unnamed(name, variable)
        queue.extend(node.next_functions)


def _unnamed(name: str, leaf: Tensor) -> RuntimeError:
    if name == "prior.log_prob":
        return RuntimeError(
            f"DiffFlowSDE: {name}(x) depends on a tensor of shape {tuple(leaf.shape)} that "
            "requires a gradient but is no parameter of the prior; give the module that owns it "
            "(zuko's `flow`, not the distribution `flow()`)"
        )
    return RuntimeError(
        f"DiffFlowSDE: {name}(t, x) depends on a tensor of shape {tuple(leaf.shape)} that "
        "requires a gradient but is not among the parameters; make the network an nn.Module that "
        "owns it, or name it in `params`"
    )
