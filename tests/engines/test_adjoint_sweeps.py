"""How often the sweeps evaluate networks, and what the backward pass notices and keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from adjoint_cases import GRID, KEY, Counted, Small, data, parameters
from torch import Tensor

from diffflow_ext import DiffFlowSDE, diffflow_loss, diffflow_mean_loss

N = GRID.num_steps

# --- counts --------------------------------------------------------------------------------------


def calls(fn: Callable[..., Tensor], **options: int) -> tuple[int, int]:
    """How often drift and score are evaluated in a step."""
    f, s = Small(), Small()
    drift, score = Counted(f), Counted(s)
    fn(drift, score, data(), GRID, params=parameters(f, s), key=KEY, **options).sum().backward()
    return drift.calls, score.calls


def test_evaluations_of_a_forward_pass() -> None:
    f, s = Small(), Small()
    drift, score = Counted(f), Counted(s)
    diffflow_loss(drift, score, data(), GRID, params=parameters(f, s), key=KEY)
    assert (drift.calls, score.calls) == (N + 1, N)


@pytest.mark.parametrize("size", [1, 2, 3, N, 100])
def test_states_share_calls_of_the_score(size: int) -> None:
    blocks = -(-N // size)
    assert calls(diffflow_loss, scores_per_call=size) == (2 * (N + 1), 2 * blocks)
    assert calls(diffflow_mean_loss, scores_per_call=size) == (2 * N + 1, blocks)


def test_evaluations_with_checkpoints() -> None:
    # States 1, 2, 4 and 5 are simulated again.
    again = 4
    assert calls(diffflow_loss, checkpoint_every=3) == (2 * (N + 1) + again, 2 * N)
    assert calls(diffflow_loss, checkpoint_every=3, scores_per_call=2) == (2 * (N + 1) + again, 8)


def test_a_call_of_the_score_gets_the_times_of_its_states() -> None:
    seen: list[Tensor] = []

    def score(t: Tensor, x: Tensor) -> Tensor:
        seen.append(t.clone())
        return -x

    with torch.no_grad():
        diffflow_loss(lambda t, x: -x, score, data(2), GRID, key=KEY, scores_per_call=3)
    assert [len(t.reshape(-1)) for t in seen] == [6, 6, 1]
    assert torch.equal(torch.cat([seen[0], seen[1]]), GRID.times[1:7].repeat_interleave(2))
    assert seen[2] == GRID.times[7]


# --- the backward pass ---------------------------------------------------------------------------


def test_a_second_backward_pass_evaluates_again_and_finds_the_same() -> None:
    f, s = Small(dropout=0.3), Small()
    drift = Counted(f)
    loss = diffflow_loss(drift, s, data(), GRID, params=parameters(f, s), key=KEY).sum()
    first = torch.autograd.grad(loss, parameters(f, s), retain_graph=True)
    assert drift.calls == 2 * (N + 1)
    second = torch.autograd.grad(loss, parameters(f, s))
    assert drift.calls == 3 * (N + 1)
    assert all(map(torch.equal, second, first))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_changes_before_the_backward_pass_are_noticed() -> None:
    f, s = Small(), Small()
    loss = diffflow_loss(f, s, data(), GRID, params=parameters(f, s)).sum()
    with torch.no_grad():
        f.one.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = diffflow_loss(f, s, data(), GRID, params=parameters(f, s)).sum()
    f.eval()
    with pytest.raises(RuntimeError, match=r"switched between train\(\) and eval\(\)"):
        loss.backward()
    loss = diffflow_loss(f, s, data(), GRID, params=parameters(f, s)).sum()
    s.one.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="one of its parameters was frozen"):
        loss.backward()


def test_a_network_may_return_the_same_memory_each_time() -> None:
    """Where several scores share a call, drifts wait for them."""
    plain, memory = Small(), torch.empty(5, 3, dtype=torch.float64)
    x0 = torch.randn(5, 3, dtype=torch.float64)

    def reused(t: Tensor, x: Tensor) -> Tensor:
        value = plain(t, x)
        return value if value.requires_grad else memory.copy_(value)

    score = Small()
    options = {"params": parameters(plain, score), "key": KEY, "scores_per_call": 3}
    found, expected = (diffflow_loss(f, score, x0, GRID, **options) for f in (reused, plain))
    assert torch.equal(found, expected)


def test_gradient_hooks_are_refused_where_they_would_run_at_every_step() -> None:
    f, seen = Small(), []
    f.one.weight.register_hook(lambda grad: seen.append(len(grad)))
    sde, x0 = DiffFlowSDE(f, Small()), data()
    with pytest.raises(RuntimeError, match="gradient hook, which the adjoint would call at every"):
        sde.loss(x0, GRID, KEY)
    with torch.no_grad():
        sde.loss(x0, GRID, KEY)
    sde.sample((4, 3), GRID, KEY)
    assert seen == []
    sde.mean_loss(x0, GRID, KEY, checkpoint_every=0).backward()
    assert len(seen) == 1


def test_gradient_hooks_run_once_and_after_the_sweep() -> None:
    f, seen = Small(), []
    f.one.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    mean = diffflow_mean_loss(f, f, data(), GRID, params=parameters(f))
    loss = diffflow_loss(f, f, data(), GRID, params=parameters(f)).sum()
    assert seen == []
    mean.backward()
    loss.backward()
    assert len(seen) == 2


# --- memory --------------------------------------------------------------------------------------

PEAK = """
import resource, sys, torch
from diffflow_ext import NoiseKey, TimeGrid, {fn}
from diffflow_ext.nets import FourierMLP
torch.set_num_threads(1)
f, s, x0 = FourierMLP(2, 64, 2), FourierMLP(2, 64, 2), torch.randn(5000, 2)
params = [*f.parameters(), *s.parameters()]
for n in (10, 10, 30, 100, 300):
    {fn}(f, s, x0, TimeGrid.power(n, 1.0), params=params, key=NoiseKey(1)).sum().backward()
    print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fn", ["diffflow_loss", "diffflow_mean_loss"])
def test_memory_grows_by_the_state_cache_alone(fn: str) -> None:
    # Freed activations go back to the system, and holes in the heap are not counted.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    code = PEAK.format(fn=fn)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    peaks = {int(n): int(size) for n, size in map(str.split, run.stdout.splitlines())}
    state, activations = 5000 * 2 * 4, 5000 * 64 * 4
    for n in (30, 100, 300):
        # The allocator's own slack; one more kept activation a step would be 20 times the bound.
        assert peaks[n] - peaks[10] <= 1.1 * (n - 10) * state + 8 * activations, peaks
