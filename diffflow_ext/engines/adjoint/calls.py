"""Calls of the networks in one sweep over a path, and what all of them share.

Weights are converted once under autocast. Time embeddings do not depend on the states, so a
network that has them (:func:`diffflow_ext.engines.network.embeds_time`) embeds all times of the
path at once.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..network import embeds_time
from ..problem import PathProblem
from .replay import coarsest_eps, differ, random_states, set_states


class Value(NamedTuple):
    """A network's value, and the leaf of its time embeddings if they need a gradient."""

    value: Tensor
    embedding: Tensor | None


class NetworkCalls:
    """Calls of drift and score; `graph` says whether they need gradients."""

    def __init__(self, p: PathProblem, *, graph: bool) -> None:
        self.p, self.graph = p, graph
        self.embeddings: dict[str, Tensor | None] = {}
        self.grads: dict[str, Tensor] = {}

    def embedding(self, name: str) -> Tensor | None:
        """Returns a network's embedding of all times, None if it has none."""
        if name not in self.embeddings:
            net = self.p.net(name)
            self.embeddings[name] = self._embedded(net) if embeds_time(net) else None
        return self.embeddings[name]

    def _embedded(self, net: Any) -> Tensor | None:
        """Returns one row for each time, None where single calls must embed their times."""
        times, before = self.p.times, random_states(self.p.times.device)
        # An error is explained where the whole network is called.
        with contextlib.suppress(TypeError, ValueError, RuntimeError, AttributeError):
            with torch.set_grad_enabled(self.graph), self.p.autocast.again(cached=True):
                rows = net.embed(times)
            drew = any(map(differ, before, random_states(times.device)))
            if drew:  # Each call has draws of its own.
                set_states(times.device, before)
            elif isinstance(rows, Tensor) and rows.shape[:1] == times.shape:
                return rows
        return None

    def call(self, name: str, k: int, x: Tensor, states: int = 1, *, cached: bool = True) -> Value:
        """Evaluates "drift" or "score"; for the arguments see :meth:`PathProblem.network`."""
        own, net = self.embedding(name), self.p.net(name)
        if own is None:
            return Value(self.p.network(name, k, x, states, cached=cached), None)
        # A leaf, so that its gradient is that of this evaluation alone.
        leaf = own.detach()[k : k + states].requires_grad_(self.graph and own.requires_grad)
        rows = leaf if states == 1 else leaf.repeat_interleave(len(x) // states, 0)
        value = self.p.network(
            name, k, x, states, cached=cached,
            call=lambda t, x: net.trunk(x, rows),  # pyright: ignore
        )  # fmt: skip
        return Value(value, leaf if leaf.requires_grad else None)

    def checked_call(self, name: str, k: int, x: Tensor, states: int = 1) -> Value:
        """Returns `call`, and refuses a network that is not trunk(x, embed(t)) as its class says.

        A trunk that draws random numbers is believed.
        """
        before = random_states(x.device)
        made = self.call(name, k, x, states)
        own, after = self.embedding(name), random_states(x.device)
        if own is None or not after or any(map(differ, before, after)):
            return made
        with torch.no_grad():
            whole = self.p.network(name, k, x.detach(), states)
        change = float((made.value.detach() - whole).norm())
        dtypes = {whole.dtype, own.dtype, *(p.dtype for p in self.p.params)}
        most = coarsest_eps(dtypes, self.p.autocast, x.device) ** 0.5
        if change > most * float(whole.norm()):
            raise RuntimeError(
                f"DiffFlowSDE: expected {name}(t, x) to be trunk(x, embed(t)), as its class says "
                f"by time_enters_by_embedding = True; at state {k} of the path they differ. Leave "
                "that attribute out, or let embed treat each time by itself"
            )
        return made

    def add(self, name: str, k: int, grad: Tensor | None) -> None:
        """Takes the gradient of the embedding of a call."""
        own = self.embedding(name)
        if grad is None or own is None:
            return
        # Small tensors kept between large ones would leave holes in memory.
        if name not in self.grads:
            self.grads[name] = torch.zeros_like(own)
        self.grads[name][k : k + len(grad)] = grad

    def gradients(self) -> list[Tensor | None]:
        """Returns the gradients of the problem's parameters through all embeddings."""
        params = self.p.params
        values = [own for name in self.grads if (own := self.embedding(name)) is not None]
        if not values or not params:
            return [None] * len(params)
        cotangents = list(self.grads.values())
        return list(torch.autograd.grad(values, params, cotangents, allow_unused=True))
