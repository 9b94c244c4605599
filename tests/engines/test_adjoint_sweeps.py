"""How often the sweeps evaluate networks, what they keep, and when they let go of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adjoint_cases import GRID, KEY, Counted, Small, data, gradients, parameters
from torch import Tensor, nn

from diffflow_ext import diffflow_loss, diffflow_mean_loss
from diffflow_ext.nets import UNet

N = GRID.num_steps
LOSSES = (diffflow_loss, diffflow_mean_loss)

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


@pytest.mark.parametrize("kept", [0, 1, 2, N, N + 1, 100])
def test_a_kept_graph_saves_an_evaluation(kept: int) -> None:
    drifts, scores = 2 * (N + 1) - min(kept, N + 1), 2 * N - min(kept, N)
    assert calls(diffflow_loss, kept_graphs=kept) == (drifts, scores)
    assert calls(diffflow_mean_loss, kept_graphs=kept) == (2 * N + 1 - min(kept, N), N)


@pytest.mark.parametrize("size", [1, 2, 3, N, 100])
def test_states_share_calls_of_the_score(size: int) -> None:
    blocks = -(-N // size)
    assert calls(diffflow_loss, scores_per_call=size) == (2 * (N + 1), 2 * blocks)
    assert calls(diffflow_mean_loss, scores_per_call=size) == (2 * N + 1, blocks)


def test_counts_of_both_options_and_of_checkpoints() -> None:
    # Blocks of scores at states 1-3, 4-6 and 7: the last two states hold one whole block.
    assert calls(diffflow_loss, scores_per_call=3, kept_graphs=2) == (2 * N, 5)
    assert calls(diffflow_loss, scores_per_call=3, kept_graphs=N + 1) == (N + 1, 3)
    assert calls(diffflow_loss, checkpoint_every=3, kept_graphs=N + 1) == (N + 1, N)
    assert calls(diffflow_mean_loss, checkpoint_every=3, kept_graphs=N) == (N + 1, N)
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


# --- the same bits -------------------------------------------------------------------------------


def assert_same_bits(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


def outcome(
    fn: Callable[..., Tensor], drift: Any, score: Any, inputs: list[Tensor], **options: Any
) -> list[Tensor | None]:
    """The value, all gradients, and the next random number."""
    torch.manual_seed(3)
    values = fn(drift, score, inputs[0], GRID, key=KEY, **options)
    weight = torch.linspace(0.5, 2, max(values.numel(), 1), dtype=values.dtype)
    grads = gradients((values * weight.reshape(values.shape)).sum(), inputs)
    return [values.detach(), *grads, torch.rand(3)]


def check_bits(drift: Any, score: Any, inputs: list[Tensor], **options: Any) -> None:
    for fn in LOSSES:
        expected = outcome(fn, drift, score, inputs, **options)
        for kept in (1, 3, N, 100):
            actual = outcome(fn, drift, score, inputs, kept_graphs=kept, **options)
            assert_same_bits(actual, expected)


@pytest.mark.parametrize(("every", "scores"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_same_bits_with_dropout(every: int, scores: int) -> None:
    f, s = Small(dropout=0.4), Small(dropout=0.4)
    inputs = [data().requires_grad_(), *parameters(f, s)]
    check_bits(
        f, s, inputs, params=parameters(f, s), checkpoint_every=every, scores_per_call=scores
    )


def test_same_bits_for_images_under_autocast() -> None:
    f, s = (UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(4,)) for _ in range(2))
    for net in (f, s):
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    inputs = [torch.randn(2, 1, 8, 8, requires_grad=True), *parameters(f, s)]
    for fn in LOSSES:
        results = []
        for kept in (0, 3):
            with torch.autocast("cpu", torch.bfloat16):
                results.append(
                    outcome(fn, f, s, inputs, params=parameters(f, s), kept_graphs=kept)
                )
        assert_same_bits(results[1], results[0])


def test_statistics_of_normalisation_do_not_reach_the_result() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            self.double()

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.two(torch.tanh(self.norm(self.one(x))))

    f, s = Normed(), Normed()
    check_bits(f, s, [data().requires_grad_(), *parameters(f, s)], params=parameters(f, s))


# --- what is kept --------------------------------------------------------------------------------


class Token:
    """Lives as long as the graph node that it hangs on."""


class Marked(torch.autograd.Function):
    """The identity, with a token on its node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Token) -> Tensor:
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad, None


class Watched(Small):
    """Knows at which times the graph of an evaluation is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[float, weakref.ref[Token]] = {}

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        token = Token()
        self.alive[float(t.reshape(-1)[0])] = weakref.ref(token)
        # At the beginning: whatever is left of the graph holds on to it.
        return super().forward(t, Marked.apply(x, token))  # pyright: ignore

    def times(self) -> list[float]:
        gc.collect()
        return sorted(t for t, ref in self.alive.items() if ref() is not None)


def test_the_last_states_are_kept_and_freed_by_the_backward_pass() -> None:
    f, s = Watched(), Watched()
    loss = diffflow_loss(f, s, data(), GRID, params=parameters(f, s), key=KEY, kept_graphs=3)
    last = [float(t) for t in GRID.times[-3:]]
    assert f.times() == s.times() == last
    loss.sum().backward()
    assert f.times() == s.times() == []


@pytest.mark.parametrize("scores", [1, 3])
def test_a_loss_that_is_thrown_away_frees_what_was_kept(scores: int) -> None:
    f, s = Watched(), Watched()
    for fn in LOSSES:
        loss = fn(
            f, s, data(), GRID, params=parameters(f, s), kept_graphs=100, scores_per_call=scores
        )
        assert len(f.times()) == (N + 1 if fn is diffflow_loss else 0)
        del loss
        assert f.times() == s.times() == []


def test_nothing_is_kept_where_no_gradient_can_be_asked_for() -> None:
    f, s = Watched(), Watched()
    with torch.no_grad():
        diffflow_loss(f, s, data(), GRID, params=parameters(f, s), kept_graphs=100)
    assert f.times() == s.times() == []


def test_a_second_backward_pass_evaluates_again_and_finds_the_same() -> None:
    f, s = Small(dropout=0.3), Small()
    drift = Counted(f)
    loss = diffflow_loss(
        drift, s, data(), GRID, params=parameters(f, s), key=KEY, kept_graphs=100
    ).sum()
    first = torch.autograd.grad(loss, parameters(f, s), retain_graph=True)
    assert drift.calls == N + 1
    second = torch.autograd.grad(loss, parameters(f, s))
    assert drift.calls == 2 * (N + 1)
    assert_same_bits(list(second), list(first))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("kept", [0, 100])
def test_changes_before_the_backward_pass_are_noticed(kept: int) -> None:
    f, s = Small(), Small()
    options: dict[str, Any] = {"params": parameters(f, s), "kept_graphs": kept}
    loss = diffflow_loss(f, s, data(), GRID, **options).sum()
    with torch.no_grad():
        f.one.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = diffflow_loss(f, s, data(), GRID, **options).sum()
    f.eval()
    with pytest.raises(RuntimeError, match=r"switched between train\(\) and eval\(\)"):
        loss.backward()


def test_gradient_hooks_run_once_and_after_the_sweep() -> None:
    f, seen = Small(), []
    f.one.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    options: dict[str, Any] = {"params": parameters(f), "kept_graphs": 100}
    mean = diffflow_mean_loss(f, f, data(), GRID, **options)
    loss = diffflow_loss(f, f, data(), GRID, **options).sum()
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
    run = subprocess.run(
        [sys.executable, "-c", PEAK.format(fn=fn)], capture_output=True, text=True, check=True
    )
    peaks = {int(n): int(size) for n, size in map(str.split, run.stdout.splitlines())}
    state, activations = 5000 * 2 * 4, 5000 * 64 * 4
    for n in (30, 100, 300):
        # The allocator's own slack; one more kept activation a step would be 20 times the bound.
        assert peaks[n] - peaks[10] <= 1.1 * (n - 10) * state + 8 * activations, peaks
