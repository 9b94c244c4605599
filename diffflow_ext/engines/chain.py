r"""A chain of steps as one node of autograd's graph, which keeps states and no activations.

.. math:: (x_{k+1}, c_k) = \text{step}_k(x_k, \theta), \qquad c = \sum_k c_k

The forward pass is any code that computes the states, the fused engine too. The backward pass
takes each step again, from the last to the first, with a graph of that step alone: the gradient is
that of the discrete steps, at the states of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from diffflow_ext.functional.operator import first_order

from .adjoint.backward import check_leaves, explained_graphs
from .adjoint.replay import coarsest_eps, random_states, refuse_cached_weights
from .autocast import Autocast


class ChainPath(NamedTuple):
    """What a chain has computed: N + 1 states in the order of its steps, and the sum of c_k."""

    states: Tensor
    total: Tensor | None


class Chain(Protocol):
    """Steps that can be taken again."""

    @property
    def op(self) -> str:
        """The name of the function in errors."""
        ...

    @property
    def params(self) -> Sequence[Tensor]:
        """The tensors, leaves or not, that get gradients."""
        ...

    @property
    def inner(self) -> Sequence[Tensor]:
        """The same tensors as the steps use them, with no graph that leads to another one."""
        ...

    @property
    def autocast(self) -> Autocast:
        """The autocast mode of the networks."""
        ...

    def modes(self) -> list[bool]:
        """Returns the training flags of all modules that steps evaluate, and what is learned."""
        ...

    def path(self, x: Tensor) -> ChainPath:
        """Returns all states from the first; called without gradients."""
        ...

    def step(self, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the next state and the term c_k, (B,), both with a graph."""
        ...


def wants_gradients(x: Tensor, params: Sequence[Tensor]) -> bool:
    """Says whether gradients are on and something requires one."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *params))


def differentiable_path(chain: Chain, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns all states, the last one, and the sum of the terms; all are differentiable."""
    return _ChainFunction.apply(chain, x, *chain.params)  # pyright: ignore[reportReturnType]


class _ChainFunction(Function):
    @staticmethod
    def forward(ctx: Any, chain: Chain, x: Tensor, *params: Tensor) -> tuple[Tensor | None, ...]:
        refuse_cached_weights(chain.op)
        before = random_states(x.device)
        states, total = chain.path(x)
        pairs = zip(before, random_states(x.device), strict=True)
        ctx.drew = any(not torch.equal(a, b) for a, b in pairs)
        ctx.chain, ctx.modes = chain, chain.modes()
        ctx.set_materialize_grads(False)
        # autograd checks saved tensors for changes. An output itself, saved under hooks for saved
        # tensors, would keep its own node alive for ever.
        ctx.save_for_backward(states.detach(), *params)
        return states, states[-1].clone(), total

    @staticmethod
    @first_order
    def backward(  # pyright: ignore
        ctx: Any, grad_states: Tensor | None, grad_last: Tensor | None, grad_total: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        states, chain = ctx.saved_tensors[0], ctx.chain
        _check_networks(chain, ctx.drew, ctx.modes)
        grad = torch.zeros_like(states[-1]) if grad_last is None else grad_last
        sums: list[Tensor | None] = [None] * len(chain.params)
        last, repeated = len(states) - 1, _Repeated(chain)
        for k in range(last, 0, -1):
            grad = grad if grad_states is None else grad + grad_states[k]
            cotangents = grad, grad_total
            value, grad, found = _step_back(chain, k - 1, states[k - 1], cotangents)
            repeated.compare(states[k - 1], states[k], value)
            sums = [_plus(a, b) for a, b in zip(sums, found, strict=True)]
        repeated.check()
        grad = grad if grad_states is None else grad + grad_states[0]
        return None, grad, *sums


def _step_back(
    chain: Chain, k: int, x: Tensor, cotangents: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Returns x_{k+1}, and the gradients of x_k and of the parameters through step k."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = chain.step(k, leaf)
    pairs = [
        (value, cotangent)
        for value, cotangent in zip(values, cotangents, strict=True)
        if value is not None and cotangent is not None and value.requires_grad
    ]
    for value, _ in pairs:
        _check_leaves(chain, value, leaf)
    learned = [p for p in chain.inner if p.requires_grad]
    with explained_graphs(chain.op):
        first, *others = torch.autograd.grad(
            [v for v, _ in pairs], [leaf, *learned], [c for _, c in pairs], allow_unused=True
        )
    rest = iter(others)
    found = [next(rest) if p.requires_grad else None for p in chain.inner]
    return values[0].detach(), torch.zeros_like(x) if first is None else first, found


class _Repeated:
    """Compares the states of steps that are taken again with those of the forward pass.

    The change of a state may differ by rounding, to sqrt(eps) of the coarsest precision in use.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain, self.excess = chain, list[Tensor]()

    def compare(self, x: Tensor, x_next: Tensor, again: Tensor) -> None:
        """Compares one step."""
        dtypes = {x.dtype, *(p.dtype for p in self.chain.params)}
        share = coarsest_eps(dtypes, self.chain.autocast, x.device) ** 0.5
        # Of a step's few additions: two engines add them in another order.
        rounding = 32 * torch.finfo(x.dtype).eps * x_next.norm()
        self.excess.append((again - x_next).norm() - share * (x_next - x).norm() - rounding)

    def check(self) -> None:
        """Raises an error if a step was another one; waits for a GPU once."""
        wrong = torch.stack(self.excess) > 0 if self.excess else None
        if wrong is not None and wrong.any():
            # The last step comes first.
            step = len(self.excess) - 1 - int(wrong.nonzero()[0])
            raise RuntimeError(
                f"{self.chain.op}: expected networks that give the same values each time, because "
                f"the gradient needs a second evaluation, got others in step {step}; draw no "
                "random numbers, and call .eval() on networks that change their buffers"
            )


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _check_networks(chain: Chain, drew: bool, modes: list[bool]) -> None:
    """Refuses what would give a wrong gradient when steps are taken again."""
    if modes != chain.modes():
        raise RuntimeError(
            f"{chain.op}: expected networks in the mode of the forward pass, got one that was "
            "switched between train() and eval(), or whose parameters were frozen, before the "
            "backward pass; switch it afterwards"
        )
    if drew:
        raise RuntimeError(
            f"{chain.op}: expected networks without random numbers for gradients, got one that "
            "draws them; switch dropout off with eval()"
        )
    for p in chain.params:
        if p.is_leaf and p._backward_hooks:
            raise RuntimeError(
                f"{chain.op}: expected parameters without gradient hooks, got one on a parameter "
                f"of shape {tuple(p.shape)}, which every step would call; use "
                "register_post_accumulate_grad_hook instead"
            )


def _check_leaves(chain: Chain, value: Tensor, x: Tensor) -> None:
    """Refuses a step that depends on tensors that would silently get no gradient."""
    try:
        check_leaves("net", value, x, chain.inner)
    except RuntimeError as error:
        raise RuntimeError(
            f"{chain.op}: expected all trainable tensors in nn.Modules for gradients, got a "
            "network or a diffusion that depends on another one; make it an nn.Module that owns "
            "the tensor"
        ) from error
