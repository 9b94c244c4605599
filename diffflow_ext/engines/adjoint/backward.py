"""The backward sweep over a path: the adjoint, state by state.

The mathematics and the autograd functions are in losses.py.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.functional.adjoint import AdjointResult, AdjointState, adjoint_step
from diffflow_ext.functional.residual import launch_backward_residual

from ..conditions import network_of
from ..network import edges_of
from ..problem import PathProblem, normal_cost
from .calls import NetworkCalls
from .forward import PathRecord, states_per_call


@dataclass
class Evaluation:
    """A network's value, the leaf of its graph, and later the product J^T cotangent.

    `embedding`, another leaf, is that of state k and the states after it in the same call.
    """

    leaf: Tensor
    value: Tensor
    product: Tensor | None = None
    name: str = ""
    k: int = 0
    embedding: Tensor | None = None


@dataclass
class Gradients:
    """Gradients of a weighted sum of losses, and optionally the losses."""

    x0: Tensor
    g: Tensor | None
    params: list[Tensor | None]
    cost: Tensor | None = None
    _own: set[int] = field(default_factory=set)

    def add(self, grads: Iterable[Tensor | None]) -> None:
        """Accumulates parameter gradients.

        Only sums made here are changed in place: autograd may return one tensor for two
        parameters, or an expanded one.
        """
        terms = {i: grad for i, grad in enumerate(grads) if grad is not None}
        present = {i: self.params[i] for i in terms}
        own = [i for i in terms if i in self._own]
        second = [i for i in terms if i not in self._own and present[i] is not None]
        if own:
            torch._foreach_add_([present[i] for i in own], [terms[i] for i in own])  # pyright: ignore
        if second:
            sums = torch._foreach_add([present[i] for i in second], [terms[i] for i in second])  # pyright: ignore
            present.update(zip(second, sums, strict=True))
            self._own.update(second)
        for i, grad in terms.items():
            self.params[i] = grad if present[i] is None else present[i]


def backward_sweep(
    p: PathProblem, record: PathRecord, weight: Tensor | float, *, with_cost: bool = False
) -> Gradients:
    """Returns the gradients of sum_b weight_b L_b, and with `with_cost` the losses.

    Weights have shape (B,), or are one number. States are removed from the record of the forward
    sweep when they are no longer needed.
    """
    record.sketches.restart()
    with p.autocast.sweep(), record.tape.preserved():
        out = _BackwardSweep(p, record, weight, with_cost=with_cost).run()
        record.sketches.check()
    _warn_of_missing(p, out.params)
    return out


def _warn_of_missing(problem: PathProblem, grads: Sequence[Tensor | None]) -> None:
    """Warns of parameters without a gradient, but for those of g and of a context.

    What a network keeps of an evaluation without a graph has no graph in later ones. The values
    agree, so that nothing else shows it.
    """
    missing = [p for p, grad in zip(problem.params, grads, strict=True) if grad is None]
    pairs = zip(problem.params, problem.sources, strict=True)
    outside = [problem.g, *(source for p, source in pairs if p is not source)]
    computed = [t for t in outside if t.grad_fn is not None] if missing else []
    edges = {edge for t in computed for edge in ((t.grad_fn, t.output_nr), *edges_of(t))}
    leaves = {id(t) for t in outside} | {id(getattr(node, "variable", None)) for node, _ in edges}
    shapes = [
        tuple(p.shape)
        for p in missing
        if id(p) not in leaves and (p.grad_fn, p.output_nr) not in edges
    ]
    if shapes:
        warnings.warn(
            f"DiffFlowSDE: {len(shapes)} of {len(grads)} parameters got no gradient, the first "
            f"of shape {shapes[0]}. If the networks do not use them (or only a "
            "context outside of them does), freeze them with requires_grad_(False); if a network "
            "keeps tensors computed from them between its calls, compute those in each call, or "
            "pass checkpoint_every=0",
            stacklevel=2,
        )


class _BackwardSweep:
    """From x_N to x_0 with one evaluation and one product of each network at each state."""

    def __init__(
        self, p: PathProblem, record: PathRecord, weight: Tensor | float, *, with_cost: bool
    ) -> None:
        self.p, self.record, self.weight, self.with_cost = p, record, weight, with_cost
        x0 = record.states[0]
        grad_g = x0.new_zeros(p.num_steps + 1) if p.learned_g else None
        self.out = Gradients(x0, grad_g, [None] * len(p.params))
        self.drifts: dict[int, Evaluation] = {}
        self.scores: dict[int, Evaluation] = {}
        self.searches = {name: _Search(p, name) for name in ("drift", "score")}
        self.calls = NetworkCalls(p, graph=True)

    def run(self) -> Gradients:
        p, after = self.p, None
        for k in range(p.num_steps, -1, -1):
            f, s = self.drift(k), self.score(k) if k > 0 else None
            result = self.step(k, f.value.detach(), None if s is None else s.value.detach(), after)
            self.multiply((f, result.cotangent_f), (s, result.cotangent_s))
            vjp_s = None if s is None else s.product
            after = AdjointState(result.local, f.product, vjp_s, result.carry)
            for used in (self.record.states, self.drifts, self.scores):
                used.pop(k, None)
        assert after is not None
        assert after.vjp_f is not None
        self.out.x0 = after.local + after.vjp_f
        with explained_graphs("DiffFlowSDE"):
            self.out.add(self.calls.gradients())
        for search in self.searches.values():
            search.end()
        return self.out

    def step(
        self, k: int, f: Tensor, s: Tensor | None, after: AdjointState | None
    ) -> AdjointResult:
        """Returns the cotangents of both networks at x_k, and dL/dx_k without their products."""
        p, x, x_prev = self.p, self.state(k), self.state(k - 1) if k > 0 else None
        if self.with_cost and x_prev is not None and s is not None:
            self.out.cost = p.cost(x_prev, x, f, s, k, self.out.cost)
        result = adjoint_step(
            x_prev,
            x,
            f,
            s,
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
        if self.out.g is not None and result.grad_g is not None:
            self.out.g[k] = result.grad_g.double().sum()
        return self.with_prior(x, result) if k == p.num_steps else result

    def with_prior(self, x: Tensor, result: AdjointResult) -> AdjointResult:
        """Replaces x_N, the gradient of N(0, I) at x_N, by the gradient of the prior."""
        p, out = self.p, self.out
        if p.prior is None:
            out.cost = out.cost + normal_cost(x) if out.cost is not None else None
            return result
        self.record.tape.replay("prior")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            cost = p.prior_cost(leaf)
        self.record.sketches.compare("prior", p.num_steps, cost)
        check_leaves("prior.log_prob", cost, leaf, p.params)
        if not cost.requires_grad:
            raise RuntimeError(
                "DiffFlowSDE: expected prior.log_prob(x) to be differentiable in x, got a tensor "
                "without a graph; it must not detach x or run under no_grad"
            )
        out.cost = out.cost + cost.detach() if out.cost is not None else None
        weights = self.weights()
        prior = Evaluation(leaf, cost)
        self.multiply((prior, weights.reshape(cost.shape)))
        assert prior.product is not None
        return result._replace(local=result.local + (prior.product - weights * x))

    def multiply(self, *pairs: tuple[Evaluation | None, Tensor | None]) -> None:
        """Sets the products J^T cotangent of evaluations; accumulates parameter gradients."""
        new = [(e, c) for e, c in pairs if e is not None and e.product is None]
        live = [(e, c) for e, c in new if c is not None and e.value.requires_grad]
        if live:
            values, cotangents = [e.value for e, _ in live], [c.to(e.value) for e, c in live]
            embedded = [e for e, _ in live if e.embedding is not None]
            rows = [e.embedding for e in embedded]
            inputs = [*(e.leaf for e, _ in live), *rows, *self.p.params]
            with explained_graphs("DiffFlowSDE"):
                found = torch.autograd.grad(values, inputs, cotangents, allow_unused=True)  # pyright: ignore
            first, second = len(live), len(live) + len(embedded)
            for (e, _), grad in zip(live, found[:first], strict=True):
                e.product = None if grad is None else grad.contiguous()
            for e, grad in zip(embedded, found[first:second], strict=True):
                self.calls.add(e.name, e.k, grad)
            self.out.add(found[second:])
        for e, _ in new:
            e.product = torch.zeros_like(e.leaf) if e.product is None else e.product

    def weights(self) -> Tensor:
        """Returns the weights of the samples, shape (B, 1, ..., 1), with the axes of a state."""
        x0, weight = self.out.x0, self.weight
        if not isinstance(weight, Tensor):
            weight = x0.new_full(x0.shape[:1], weight)
        return weight.to(x0.dtype).reshape(-1, *[1] * (x0.dim() - 1))

    def state(self, k: int) -> Tensor:
        """Returns x_k, simulated again from the last stored state before it."""
        states = self.record.states
        if k not in states:
            with torch.no_grad():
                for j in range(max(j for j in states if j < k), k):
                    self.record.tape.replay(("drift", j))
                    # Weights converted without gradients must not serve the calls with them.
                    f = self.calls.call("drift", j, states[j], cached=False).value
                    self.record.sketches.compare("drift", j, f)
                    states[j + 1] = self.p.em_step(states[j], f, j)
        return states[k]

    def drift(self, k: int) -> Evaluation:
        if k not in self.drifts:
            self.drifts[k] = self.evaluate("drift", k, self.state(k))
        return self.drifts[k]

    def score(self, k: int) -> Evaluation:
        """Returns the score at x_k, with its product if several states share a call."""
        if k not in self.scores:
            self.evaluate_scores(states_per_call(self.p, k))
        return self.scores[k]

    def evaluate_scores(self, ks: range) -> None:
        """Evaluates the scores of several states, and their products, in one call.

        This is possible because their cotangents w_k do not depend on the adjoint.
        """
        if len(ks) == 1:
            self.scores[ks[0]] = self.evaluate("score", ks[0], self.state(ks[0]))
            return
        together = self.evaluate("score", ks[0], torch.cat([self.state(k) for k in ks]), len(ks))
        values = together.value.detach().chunk(len(ks))
        cotangents = [self.score_cotangent(k, s) for k, s in zip(ks, values, strict=True)]
        self.multiply((together, torch.cat(cotangents)))
        assert together.product is not None
        products = together.product.chunk(len(ks))
        for k, s, product in zip(ks, values, products, strict=True):
            self.scores[k] = Evaluation(self.state(k), s, product)

    def score_cotangent(self, k: int, s: Tensor) -> Tensor:
        """Returns w_k = -g_k sqrt(dt_k) r_k, weighted."""
        dt, g = self.p.steps[k - 1], self.p.g_values[k]
        f = self.drift(k).value.detach()
        residual = launch_backward_residual(self.state(k - 1), self.state(k), f, s, dt, g)
        root = dt.sqrt() if isinstance(dt, Tensor) else math.sqrt(dt)
        return residual * self.weights() * (-g * root)

    def evaluate(self, name: str, k: int, x: Tensor, states: int = 1) -> Evaluation:
        """Returns a network's value with its graph."""
        self.record.tape.replay((name, k))
        leaf, search = x.detach().requires_grad_(), self.searches[name]
        call = self.calls.checked_call if search.is_first() else self.calls.call
        with torch.enable_grad():
            value, embedding = call(name, k, leaf, states)
        self.record.sketches.compare(name, k, value)
        if search.due():
            known = self.p.params
            own = self.calls.embedding(name)
            if own is not None and embedding is not None:
                check_leaves(name, own, leaf, known)
                known = (*known, embedding)
            check_leaves(name, value, leaf, known)
        return Evaluation(leaf, value, name=name, k=k, embedding=embedding)


#: Networks that were searched at all states of a sweep, with the parameters that were named.
_searched: weakref.WeakKeyDictionary[Any, frozenset[int | bool]] = weakref.WeakKeyDictionary()


class _Search:
    """Says at which states a network's graph is searched for tensors that nobody named.

    In the first sweep at all of them, because a network may use others at other times; then at the
    first one, because a search takes longer than a small network.
    """

    def __init__(self, p: PathProblem, name: str) -> None:
        net = p.net(name)
        self.net, self.everywhere, self.begun = network_of(net), True, False
        # A context is another tensor in each sweep.
        own = [id(q) for q, source in zip(p.params, p.sources, strict=True) if q is source]
        self.named = frozenset((*own, net is self.net))
        with contextlib.suppress(TypeError):  # It cannot be a key.
            self.everywhere = _searched.get(self.net) != self.named

    def is_first(self) -> bool:
        """Whether the network's first sweep begins."""
        return self.everywhere and not self.begun

    def due(self) -> bool:
        """Whether to search at the next state."""
        due, self.begun = self.everywhere or not self.begun, True
        return due

    def end(self) -> None:
        """Notes that a sweep is done."""
        with contextlib.suppress(TypeError):
            _searched[self.net] = self.named


@contextlib.contextmanager
def explained_graphs(op: str) -> Iterator[None]:
    """Explains torch's errors for graphs that it cannot use again or differentiate twice."""
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error) for word in ("aot_autograd", "donated buffers")):
            raise RuntimeError(
                f"{op}: expected networks whose graph can be used twice, got one of torch.compile "
                f"({error}); call this with the network itself, not with the compiled one"
            ) from error
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(
            f"{op}: expected networks that compute all they need from their weights in each call, "
            "got one that takes a tensor with a graph from before it; compute that tensor inside "
            "of the network, or give it without a graph (.detach()) and name it in `params` after "
            ".requires_grad_(); losses also take checkpoint_every=0"
        ) from error


def check_leaves(name: str, value: Tensor, x: Tensor, params: Sequence[Tensor]) -> None:
    """Refuses a network that depends on tensors that would silently get no gradient."""
    known = {id(p) for p in (*params, x)}
    if id(value) in known:
        return
    if value.grad_fn is None and value.requires_grad:
        raise _not_a_parameter(name, value, x)
    # Parameters need not be leaves: what they were computed from gets its gradient from autograd.
    stops = {(p.grad_fn, p.output_nr) for p in params if p.grad_fn is not None}
    edges = {(value.grad_fn, value.output_nr)} - stops
    for node, _ in edges | (edges_of(value, stops) if edges else set()):
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise _not_a_parameter(name, variable, x)


def _not_a_parameter(name: str, leaf: Tensor, x: Tensor) -> RuntimeError:
    if name == "prior.log_prob":
        return RuntimeError(
            f"DiffFlowSDE: {name}(x) depends on a tensor of shape {tuple(leaf.shape)} that "
            "requires a gradient but is no parameter of the prior; give the module that owns it "
            "(zuko's `flow`, not the distribution `flow()`)"
        )
    mend = "make the network an nn.Module that owns it, or name it in `params`"
    if leaf.shape == x.shape:
        mend += "; if it is a copy of x, take x itself: x.detach() loses the gradient of x"
    return RuntimeError(
        f"DiffFlowSDE: {name}(t, x) depends on a tensor of shape {tuple(leaf.shape)} that "
        f"requires a gradient but is not among the parameters; {mend}"
    )
