"""Keeping activations within a budget changes time and memory, and no bit of the result."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adjoint import Bent, Small, gradients, parameters
from torch import Tensor, nn
from training_runs import outcome as outcome_of_run
from training_runs import write_images

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid, diffflow_loss, diffflow_mean_loss
from diffflow_ext.engines.adjoint import memory
from diffflow_ext.nets import FourierMLP, UNet
from diffflow_ext.training import TrainConfig, train

KEY = NoiseKey(5, 6)
GRID = TimeGrid.power(7, 1.3, t_start=0.1, power=0.7)
N = GRID.num_steps
#: What one evaluation of a `Small` saves at 5 samples: x and t beside each other, tanh's value
#: (which dropout hands on unchanged) for its own derivative and for the last layer.
SMALL = 8 * 5 * (4 + 8)
#: Budgets in evaluations of a `Small`; None keeps nothing.
BUDGETS = (2, 3, 5, 8, 2 * N, 2 * N + 1, 10**6)


class Counted:
    """A network that counts its evaluations, and those that happen with autograd on."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(t, x)


def outcome(
    fn: Callable[..., Tensor], drift: Any, score: Any, inputs: list[Tensor], **options: Any
) -> list[Tensor | None]:
    """The value, all gradients, and the next random number."""
    torch.manual_seed(3)
    values = fn(drift, score, inputs[0], GRID, key=KEY, **options)
    weight = torch.linspace(0.5, 2, max(values.numel(), 1), dtype=values.dtype)
    grads = gradients((values * weight.reshape(values.shape)).sum(), inputs)
    return [values.detach(), *grads, torch.rand(3)]


def assert_same_bits(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


def check(drift: Any, score: Any, inputs: list[Tensor], unit: int = SMALL, **options: Any) -> None:
    for fn in (diffflow_loss, diffflow_mean_loss):
        expected = outcome(fn, drift, score, inputs, **options)
        for budget in (*(unit * n for n in BUDGETS), "auto"):
            actual = outcome(fn, drift, score, inputs, activation_memory=budget, **options)
            assert_same_bits(actual, expected)


def data(dim: int = 3) -> Tensor:
    return torch.randn(5, dim, dtype=torch.float64, requires_grad=True)


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("memory", [None, 1, 4 * 8 * 5 * 12, 10**9])
def test_same_bits_for_every_way_of_keeping_states(every: int, memory: int | None) -> None:
    f, s = Small(), Small()
    options = {"checkpoint_every": every, "score_memory": memory, "diffusion": 0.7}
    check(f, s, [data(), *parameters(f, s)], params=parameters(f, s), **options)


@pytest.mark.parametrize("every", [1, 3])
def test_same_bits_with_dropout(every: int) -> None:
    f, s = Small(dropout=0.4), Small(dropout=0.4)
    inputs = [data(), *parameters(f, s)]
    check(f, s, inputs, 4 * SMALL, params=parameters(f, s), checkpoint_every=every)


def test_same_bits_with_a_learned_g_a_prior_and_shared_parameters() -> None:
    f, prior = Small(), Bent()
    level = torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
    inputs = [data(), level, *parameters(f, prior)]
    check(
        f, f, inputs, params=parameters(f, prior), prior=prior,
        diffusion=lambda t: level.exp() * (1 + t),
    )  # fmt: skip


def test_same_bits_for_images_under_autocast() -> None:
    f, s = (UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(4,)) for _ in range(2))
    for net in (f, s):
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    x0 = torch.randn(2, 1, 8, 8, requires_grad=True)
    for fn in (diffflow_loss, diffflow_mean_loss):
        results = []
        for budget in (None, 3 * 2**20, 10**9):
            with torch.autocast("cpu", torch.bfloat16):
                results.append(
                    outcome(
                        fn, f, s, [x0, *parameters(f, s)], params=parameters(f, s),
                        activation_memory=budget,
                    )
                )  # fmt: skip
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])


def test_same_bits_of_a_model_and_its_gradients_in_grad() -> None:
    results = []
    for budget in (None, 10**4, "auto"):
        torch.manual_seed(0)
        sde = DiffFlowSDE(FourierMLP(2, 16, 1), FourierMLP(2, 16, 1), diffusion=0.5)
        x0 = torch.randn(6, 2)
        options: dict[str, Any] = {"engine": "autograd", "activation_memory": budget}
        first = sde.loss(x0, GRID, KEY, **options)
        assert all(p.grad is None for p in sde.parameters())
        first.sum().backward()
        second = sde(x0, GRID, KEY, **options)
        second.backward()
        grads = [p.grad for p in sde.parameters()]
        results.append([first.detach(), second.detach(), *grads])
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_statistics_of_normalisation_do_not_reach_the_result() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            self.double()

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.two(torch.tanh(self.norm(self.one(x))))

    f, s = Normed(), Normed()
    check(f, s, [data(), *parameters(f, s)], 10**4, params=parameters(f, s))


def test_networks_without_a_graph() -> None:
    f = Small()
    inputs = [data(), *parameters(f)]
    check(lambda t, x: torch.zeros_like(x), f, inputs, params=parameters(f))
    check(f, lambda t, x: -x.detach(), inputs, params=parameters(f))
    check(lambda t, x: x, lambda t, x: x, [data()], params=[])


# --- what is kept --------------------------------------------------------------------------------


def calls(fn: Callable[..., Tensor], budget: int | None, **options: Any) -> tuple[int, int]:
    """How often drift and score are evaluated in a step."""
    f, s = Small(), Small()
    drift, score = Counted(f), Counted(s)
    fn(
        drift, score, data(), GRID, params=parameters(f, s), key=KEY, activation_memory=budget,
        **options,
    ).sum().backward()  # fmt: skip
    return drift.calls, score.calls


@pytest.mark.parametrize("states", range(N + 2))
def test_every_state_that_fits_is_evaluated_once(states: int) -> None:
    """A budget is in bytes that are counted by hand, and one byte less is one state less."""
    for budget, kept in ((2 * SMALL * states, states), (2 * SMALL * (states + 1) - 1, states)):
        if not 2 * SMALL <= budget < 2 * SMALL * N + SMALL:
            continue
        assert calls(diffflow_loss, budget) == (2 * (N + 1) - kept, 2 * N - kept)
    for budget, kept in ((SMALL * states, states), (SMALL * (states + 1) - 1, states)):
        if budget < SMALL:
            continue
        assert calls(diffflow_mean_loss, budget) == (2 * N + 1 - min(kept, N), N)


def test_everything_fits() -> None:
    assert calls(diffflow_loss, 2 * SMALL * N + SMALL) == (N + 1, N)
    assert calls(diffflow_loss, 10**9, score_memory=10**9) == (N + 1, 2)
    assert calls(diffflow_loss, 10**9, checkpoint_every=3) == (N + 1, N)
    assert calls(diffflow_mean_loss, SMALL * N) == (N + 1, N)
    assert calls(diffflow_mean_loss, 10**9, checkpoint_every=3) == (N + 1, N)


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
    loss = diffflow_loss(
        f, s, data(), GRID, params=parameters(f, s), key=KEY, activation_memory=6 * SMALL + 7
    )
    last = [float(t) for t in GRID.times[-3:]]
    assert f.times() == s.times() == last
    loss.sum().backward()
    assert f.times() == s.times() == []


@pytest.mark.parametrize("memory", [None, 10**9])
def test_the_graphs_that_were_measured_are_freed(memory: int | None) -> None:
    f, s = Watched(), Watched()
    for fn in (diffflow_loss, diffflow_mean_loss):
        loss = fn(
            f, s, data(), GRID, params=parameters(f, s), activation_memory=4 * SMALL,
            score_memory=memory,
        )  # fmt: skip
        del loss
        assert f.times() == s.times() == []


def test_a_loss_that_is_thrown_away_frees_what_was_kept() -> None:
    f, s = Watched(), Watched()
    loss = diffflow_loss(f, s, data(), GRID, params=parameters(f, s), activation_memory=10**9)
    assert len(f.times()) == N + 1
    del loss
    assert f.times() == []


def test_nothing_is_kept_where_no_gradient_can_be_asked_for() -> None:
    f, s = Watched(), Watched()
    with torch.no_grad():
        diffflow_loss(f, s, data(), GRID, params=parameters(f, s), activation_memory=10**9)
    assert f.times() == []


def test_parameters_and_other_lasting_tensors_do_not_count() -> None:
    net = FourierMLP(2, 64, 1)
    x = torch.randn(1, 2)
    saved = memory.SavedBytes(x, *net.parameters(), *net.buffers())
    with saved:
        net(torch.tensor(0.3), x.requires_grad_())
    weights = sum(4 * p.numel() for p in net.parameters())
    assert saved.each > weights - 4 * 64 * 5
    assert 0 < saved.new < weights / 4


def test_views_of_one_storage_count_once_and_whole() -> None:
    base = torch.randn(100, 10, requires_grad=True)
    saved = memory.SavedBytes(base)
    with saved:
        both = base.sin()
        (both[:50] * both[50:]).sum()
    assert saved.each == 4 * (1000 + 500 + 500)
    assert saved.new == 4 * 1000


# --- twice, modes, refusals ----------------------------------------------------------------------


def test_a_second_backward_pass_evaluates_again_and_finds_the_same() -> None:
    f, s = Small(dropout=0.3), Small()
    drift = Counted(f)
    loss = diffflow_loss(
        drift, s, data(), GRID, params=parameters(f, s), key=KEY, activation_memory=10**9
    ).sum()
    first = torch.autograd.grad(loss, parameters(f, s), retain_graph=True)
    assert drift.calls == N + 1
    second = torch.autograd.grad(loss, parameters(f, s))
    assert drift.calls == 2 * (N + 1)
    assert_same_bits(list(second), list(first))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_changes_before_the_backward_pass_are_noticed() -> None:
    f, s = Small(), Small()
    options: dict[str, Any] = {"params": parameters(f, s), "activation_memory": 10**9}
    loss = diffflow_loss(f, s, data(), GRID, **options).sum()
    with torch.no_grad():
        f.one.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = diffflow_loss(f, s, data(), GRID, **options).sum()
    f.eval()
    with pytest.raises(RuntimeError, match=r"switched between train\(\) and eval\(\)"):
        loss.backward()


def test_a_tensor_nobody_named_is_refused() -> None:
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    f = Small()
    for fn in (diffflow_loss, diffflow_mean_loss):
        with pytest.raises(RuntimeError, match=r"shape \(3, 3\) that requires a gradient"):
            fn(
                lambda t, x: x @ w, f, data(), GRID, params=f.parameters(), activation_memory=10**9
            ).sum().backward()
    assert w.grad is None


def test_gradient_hooks_run_once_and_after_the_sweep() -> None:
    f, seen = Small(), []
    f.one.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    options: dict[str, Any] = {"params": parameters(f), "activation_memory": 10**9}
    mean = diffflow_mean_loss(f, f, data(), GRID, **options)
    loss = diffflow_loss(f, f, data(), GRID, **options).sum()
    assert seen == []
    mean.backward()
    loss.backward()
    assert len(seen) == 2


def test_too_small_a_budget_says_what_one_state_needs() -> None:
    f, s = Small(), Small()
    options: dict[str, Any] = {"params": parameters(f, s)}
    for fn, need in ((diffflow_loss, 2 * SMALL), (diffflow_mean_loss, SMALL)):
        with pytest.raises(ValueError, match=f"activation_memory of at least {need} bytes"):
            fn(f, s, data(), GRID, activation_memory=need - 1, **options)
        fn(f, s, data(), GRID, activation_memory=need, **options)
        fn(f, s, data(), GRID, activation_memory=0, **options)


def test_bad_budgets() -> None:
    f = Small()
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "expected 0 <= activation_memory", {"activation_memory": -1}),
        (TypeError, "expected activation_memory to be an integer", {"activation_memory": 1.5}),
        (ValueError, "in bytes, 'auto' or None, got '1GiB'", {"activation_memory": "1GiB"}),
        (
            ValueError,
            "expected no activation_memory with checkpoint_every=0",
            {"activation_memory": "auto", "checkpoint_every": 0},
        ),
    ]
    for error, text, options in cases:
        with pytest.raises(error, match=text):
            diffflow_loss(f, f, data(), GRID, params=parameters(f), **options)


# --- how much there is ---------------------------------------------------------------------------


def test_free_memory_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 99 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(memory, "_MEMORY_INFO", info)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    cpu = torch.device("cpu")
    assert memory.free_memory(cpu) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000\n")
    assert memory.free_memory(cpu) == 1000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.free_memory(cpu) == 300_000
    (tmp_path / "memory.current").write_text("1000001\n")
    assert memory.free_memory(cpu) == 0
    info.write_text("nothing\n")
    with pytest.raises(ValueError, match="give a number of bytes"):
        memory.free_memory(cpu)


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule; its inputs are stood in for."""
    cuda, capturing = torch.device("cuda", 0), False
    monkeypatch.setattr(memory, "_last_seen", {})
    for name, value in (
        ("mem_get_info", (5000, 9000)), ("memory_reserved", 3000), ("memory_allocated", 1000),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    capturing = True
    with pytest.raises(ValueError, match="while a CUDA graph is captured"):
        memory.free_memory(cuda)
    capturing = False
    assert memory.free_memory(cuda) == 7000
    capturing = True
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert memory.free_memory(cuda) == 7000


def test_auto_keeps_its_share_and_never_complains(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for free, share in itertools.product((0, 8 * SMALL), (0.5, 1.0)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        monkeypatch.setattr(memory, "AUTO_SHARE", share)
        counts[free, share] = calls(diffflow_loss, "auto")  # pyright: ignore
    assert counts[0, 0.5] == counts[0, 1.0] == (2 * N + 2, 2 * N)
    assert counts[8 * SMALL, 0.5] == (2 * N, 2 * N - 2)
    assert counts[8 * SMALL, 1.0] == (2 * N - 2, 2 * N - 4)


def test_a_training_run_does_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, real = [], DiffFlowSDE.mean_loss

    def mean_loss(sde: DiffFlowSDE, *args: Any, **options: Any) -> Tensor:
        given.append(options["activation_memory"])
        return real(sde, *args, **options)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    images = write_images(tmp_path / "images", size=8)
    config = TrainConfig(
        data=str(images), steps=2, batch_size=4, num_steps=4, progressive="off", unet_base=8,
        unet_mults="1,2", unet_blocks=1, unet_attention="off", threads=1, warmup=1,
    )  # fmt: skip
    for memory in ("off", "1", "auto"):
        train(replace(config, activation_memory=memory), tmp_path / memory)
    assert given == [None, None, 2**20, 2**20, "auto", "auto"]
    expected = outcome_of_run(tmp_path / "off")
    assert outcome_of_run(tmp_path / "1") == outcome_of_run(tmp_path / "auto") == expected
