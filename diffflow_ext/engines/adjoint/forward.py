"""The forward sweep over a path, and what it leaves for the backward sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import PathProblem
from .memory import GraphKeeper, KeptGraphs, SavedBytes
from .replay import RandomTape

__all__ = ["Cache", "simulate"]


@dataclass
class Cache:
    """What a forward sweep leaves for the backward sweep."""

    states: dict[int, Tensor]
    tape: RandomTape
    score_blocks: list[range]
    drifts: dict[int, Tensor] = field(default_factory=dict)
    graphs: KeptGraphs = field(default_factory=KeptGraphs)


def simulate(p: PathProblem, x0: Tensor, cache: Cache, *, with_costs: bool) -> Tensor | None:
    """Runs the forward SDE, keeps states, and returns the loss where it is wanted.

    Without costs the score is not evaluated, nor the drift at the last state where nobody needs
    it.
    """
    n, every = p.num_steps, p.checkpoint_every
    last = n if with_costs or p.batches_scores else n - 1
    room = x0.new_empty((n, *x0.shape)) if every == 1 and p.keep else None
    keeper = GraphKeeper(p, cache.graphs, x0.device, scores=with_costs, last_drift=last)
    blocks = _ScoreBlocks(p, cache, keeper) if with_costs else None
    x, f = x0, _drift(keeper, cache, 0, x0)
    cache.states[0] = x0
    for k in range(1, n + 1):
        x_prev, x = x, p.em_step(x, f, k - 1, None if room is None else room[k - 1])
        if (p.keep and k % every == 0) or k == n or keeper.keeps(k):
            cache.states[k] = x
        if k <= last:
            f = _drift(keeper, cache, k, x)
        if p.batches_scores and p.keep:
            cache.drifts[k] = f
        if blocks is not None:
            blocks.add(k, x_prev, x, f)
    total = None if blocks is None else blocks.total()
    cache.tape.record("prior")
    if total is not None:
        total = total + p.prior_cost(x)
    cache.tape.close()
    return total


def _drift(keeper: GraphKeeper, cache: Cache, k: int, x: Tensor) -> Tensor:
    cache.tape.record(("drift", k))
    return keeper.evaluate("drift", k, x)


class _ScoreBlocks:
    """Evaluates the score for one state at a time, or for as many as fit a memory budget.

    The first evaluation is alone and tells how much memory one takes.
    """

    def __init__(self, p: PathProblem, cache: Cache, keeper: GraphKeeper) -> None:
        self.p, self.cache, self.keeper = p, cache, keeper
        self.size = 1
        self.pending: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self.cost: Tensor | None = None

    def add(self, k: int, x_prev: Tensor, x: Tensor, f: Tensor) -> None:
        self.pending.append((k, x_prev, x, f))
        if len(self.pending) >= self.size:
            self.flush()

    def flush(self) -> None:
        ks = range(self.pending[0][0], self.pending[-1][0] + 1)
        self.cache.tape.record(("score", ks))
        self.cache.score_blocks.append(ks)
        for (k, x_prev, x, f), s in zip(self.pending, self._scores(ks), strict=True):
            self.cost = self.p.cost(x_prev, x, f, s, k, self.cost)
        self.pending.clear()

    def _scores(self, ks: range) -> Sequence[Tensor]:
        xs = [x for _, _, x, _ in self.pending]
        if len(xs) > 1:
            return self.keeper.evaluate("score", ks, torch.cat(xs)).chunk(len(xs))
        if not self.p.batches_scores or ks[0] > 1:
            return [self.keeper.evaluate("score", ks, xs[0])]
        saved = self.keeper.meter(xs[0])
        s = self.keeper.evaluate("score", ks, xs[0], saved)
        self.size = _per_budget(self.p, saved)
        return [s]

    def total(self) -> Tensor:
        if self.pending:
            self.flush()
        assert self.cost is not None
        return self.cost


def _per_budget(p: PathProblem, saved: SavedBytes) -> int:
    """Returns how many such evaluations the problem's budget for scores allows at a time."""
    return max(1, (p.score_memory or 0) // max(saved.each, 1))
