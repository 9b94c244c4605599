"""The forward sweep over a path, and its record for the backward sweep."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import PathProblem
from .replay import RandomTape, Sketches, refuse_cached_weights


@dataclass
class PathRecord:
    """Random states and sketches of evaluations, and the stored states x_k by k."""

    tape: RandomTape
    sketches: Sketches
    states: dict[int, Tensor] = field(default_factory=dict)


def states_per_call(p: PathProblem, k: int) -> range:
    """Returns the states whose scores are evaluated in one call with that of state k >= 1."""
    size = p.scores_per_call
    first = (k - 1) // size * size + 1
    return range(first, min(first + size, p.num_steps + 1))


def forward_sweep(
    p: PathProblem, x0: Tensor, *, with_costs: bool, keep: bool
) -> tuple[Tensor | None, PathRecord]:
    """Runs the forward SDE; returns the loss (None without `with_costs`) and the record.

    Without costs the score is not evaluated, nor the drift at the last state. `keep` says that a
    backward sweep follows.
    """
    if keep:
        refuse_cached_weights("DiffFlowSDE")
    with p.autocast.sweep():
        sweep = _ForwardSweep(p, x0, with_costs=with_costs, keep=keep)
        return sweep.run(), sweep.record


class _ForwardSweep:
    def __init__(self, p: PathProblem, x0: Tensor, *, with_costs: bool, keep: bool) -> None:
        self.p, self.x0, self.with_costs, self.keep = p, x0, with_costs, keep
        self.record = PathRecord(RandomTape(x0.device), Sketches(p, x0, active=keep))
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.total: Tensor | None = None

    def run(self) -> Tensor | None:
        p, n = self.p, self.p.num_steps
        one_block = self.keep and p.checkpoint_every == 1
        block = self.x0.new_empty((n, *self.x0.shape)) if one_block else None
        x, f = self.x0, self.evaluate("drift", 0, self.x0)
        self.keep_state(0, x)
        for k in range(1, n + 1):
            x_prev, x = x, p.em_step(x, f, k - 1, None if block is None else block[k - 1])
            self.keep_state(k, x)
            if k < n or self.with_costs:
                f = self.evaluate("drift", k, x)
            if self.with_costs:
                # A network may return the same memory each time.
                waits = p.scores_per_call > 1
                self.pending.append((x_prev, x, f.clone() if waits else f))
                self.add_costs(k)
        self.record.tape.record("prior")
        if self.total is not None:
            cost = p.prior_cost(x)
            self.record.sketches.keep("prior", n, cost)
            self.total = self.total + cost
        self.record.tape.close()
        return self.total

    def keep_state(self, k: int, x: Tensor) -> None:
        every = self.p.checkpoint_every
        if self.keep and (k % every == 0 or k == self.p.num_steps):
            self.record.states[k] = x

    def add_costs(self, k: int) -> None:
        """Adds the costs of the steps up to k if k is the last state of a call of the score."""
        ks = states_per_call(self.p, k)
        if k < ks[-1]:
            return
        x = torch.cat([x for _, x, _ in self.pending]) if len(ks) > 1 else self.pending[0][1]
        scores = self.evaluate("score", ks[0], x, len(ks)).chunk(len(ks))
        for j, (x_prev, x, f), s in zip(ks, self.pending, scores, strict=True):
            self.total = self.p.cost(x_prev, x, f, s, j, self.total)
        self.pending.clear()

    def evaluate(self, name: str, k: int, x: Tensor, states: int = 1) -> Tensor:
        self.record.tape.record((name, k))
        value = self.p.network(name, k, x, states, cached=True)
        self.record.sketches.keep(name, k, value)
        return value
