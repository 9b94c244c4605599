"""Training steps for CUDA graphs: everything but the capture itself, on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_graphs import CapturedOnCpu, stand_in
from graph_steps import CPU, KEY, Emulated, batch, grid_of, model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffflow_ext import DiffFlowSDE, TimeGrid
from diffflow_ext.engines import CapturedStep, GridBuffer
from diffflow_ext.engines.fused import paths_cuda
from diffflow_ext.engines.problem import PathModel, build_problem


def decay(i: int) -> float:
    return min(0.9, (1 + i) / (10 + i))


# --- the same bits as a plain loop ---------------------------------------------------------------

Trained = tuple[list[Tensor], list[Tensor]]


def tensors(sde: DiffFlowSDE, ema: AveragedModel, adam: torch.optim.Adam) -> list[Tensor]:
    moments = [v for state in adam.state.values() for v in state.values()]
    values = [*sde.state_dict().values(), *ema.state_dict().values(), *moments]
    return [value.clone() for value in values]


def plain_loop(steps: int, grid: Callable[[int], TimeGrid], engine: str) -> Trained:
    sde = model()
    ema, adam = AveragedModel(sde), torch.optim.Adam(sde.parameters())
    found = []
    for i in range(steps):
        adam.zero_grad()
        loss = sde.mean_loss(batch(i), grid(i), KEY.at(10 + i), engine=engine)  # pyright: ignore
        loss.backward()
        norm = nn.utils.clip_grad_norm_(sde.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = 1e-2 / (1 + i)
        adam.step()
        ema.multi_avg_fn = get_ema_multi_avg_fn(decay(i))
        ema.update_parameters(sde)
        found.append(torch.stack([loss.detach(), norm]).double())
    return found, tensors(sde, ema, adam)


def run_steps(
    kind: type[CapturedStep], steps: int, grid: Callable[[int], TimeGrid], engine: str
) -> tuple[Trained, CapturedStep]:
    sde = model()
    ema, adam = AveragedModel(sde), torch.optim.Adam(sde.parameters())

    def loss(x0: Tensor, times: TimeGrid, key: Tensor) -> Tensor:
        return sde.mean_loss(x0, times, key, engine=engine)  # pyright: ignore

    step = kind(loss, sde, adam, KEY, ema=ema, clip=0.5, warm_up=2)
    results = []
    for i in range(steps):
        step.set_learning_rates([1e-2 / (1 + i)])
        results.append(step.step(batch(i), grid(i), decay=decay(i)))
    # Only now: a result must not be overwritten by the next.
    found = [torch.stack(result) for result in results]
    return (found, tensors(sde, ema, adam)), step


def assert_same(actual: Trained, expected: Trained) -> None:
    for a, b in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_steps_on_the_cpu_are_those_of_a_plain_loop(engine: str) -> None:
    trained, step = run_steps(CapturedStep, 6, grid_of, engine)
    assert_same(trained, plain_loop(6, grid_of, engine))
    assert step.num_captures == 0
    assert step.stream == 16


def test_one_capture_for_each_number_of_steps() -> None:
    counts = [4, 4, 4, 4, 7, 7, 7, 7, 4, 7]

    def grid(i: int) -> TimeGrid:
        return grid_of(i, counts[i])

    trained, step = run_steps(Emulated, len(counts), grid, "autograd")
    assert_same(trained, plain_loop(len(counts), grid, "autograd"))
    assert step.num_captures == 2
    assert step.eager == 4  # pyright: ignore
    step.step(batch(0)[:3], grid_of(0))
    assert step.eager == 5  # pyright: ignore


def test_each_step_has_fresh_noise_and_a_stream_can_be_named() -> None:
    seen: list[list[int]] = []

    def loss(x0: Tensor, times: TimeGrid, key: Tensor) -> Tensor:
        seen.append(key.tolist())
        return sde.mean_loss(x0, times, key)

    sde = model()
    step = Emulated(loss, sde, torch.optim.SGD(sde.parameters(), lr=0.0), KEY)
    x0, grid = batch(0), grid_of(0)
    losses = [float(step.step(x0, grid).loss) for _ in range(5)]
    losses += [float(step.step(x0, grid, stream=12).loss), float(step.step(x0, grid).loss)]
    assert seen == [[3, stream] for stream in (10, 11, 12, 13, 14, 12, 13)]
    assert len(set(losses)) == 5
    assert losses[5:] == losses[2:4]
    assert losses[0] == pytest.approx(float(sde.mean_loss(x0, grid, KEY).detach()), rel=1e-6)


def test_unclipped_gradients_are_measured_too() -> None:
    sde = model()
    step = CapturedStep(sde, sde, torch.optim.SGD(sde.parameters(), lr=0.0), KEY)
    norm = step.step(batch(0), grid_of(0)).grad_norm
    grads = [p.grad.flatten() for p in sde.parameters() if p.grad is not None]
    assert float(norm) == pytest.approx(float(torch.cat(grads).norm()), rel=1e-6)


def test_bad_arguments() -> None:
    sde = model()
    adam, averaging = torch.optim.Adam(sde.parameters()), get_ema_multi_avg_fn(0.9)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "expected 1 <= warm_up", {"warm_up": 0}),
        (TypeError, "expected clip to be a number", {"clip": "1"}),
        (ValueError, "without use_buffers", {"ema": AveragedModel(sde, use_buffers=True)}),
        (ValueError, "functions", {"ema": AveragedModel(sde, multi_avg_fn=averaging)}),
        (ValueError, "clip > 0", {"clip": -1.0}),
    ]
    for error, text, options in cases:
        with pytest.raises(error, match=text):
            CapturedStep(sde, sde, adam, KEY, **options)
    for rate in (-1e-3, float("nan")):
        with pytest.raises(ValueError, match="learning rate"):
            CapturedStep(sde, sde, adam, KEY).set_learning_rates([rate])
    with pytest.raises(ValueError, match=r"0 <= stream < 2\^32"):
        CapturedStep(sde, sde, adam, KEY).step(batch(0), grid_of(0), stream=-1)


# --- grids in memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("every", [1, 3])
def test_a_grid_in_memory_gives_the_bits_of_a_grid(dtype: torch.dtype, every: int) -> None:
    sde = model().to(dtype)
    buffer = GridBuffer(grid_of(0), CPU, dtype)
    for i in range(3):
        buffer.write(grid_of(i))
        results = []
        for grid in (buffer, grid_of(i)):
            for fn in (sde.loss, sde.mean_loss):
                x0 = batch(i).to(dtype).requires_grad_()
                loss = fn(x0, grid, KEY, engine="autograd", checkpoint_every=every).sum()
                results.append((loss, *torch.autograd.grad(loss, [x0, *sde.parameters()])))
        for a, b in zip((*results[0], *results[1]), (*results[2], *results[3]), strict=True):
            assert torch.equal(a, b)


def test_a_grid_in_memory_may_change_before_the_backward_pass() -> None:
    sde, buffer, grads = model(), GridBuffer(grid_of(0), CPU), []
    for other in (0, 1):
        buffer.write(grid_of(0))
        loss = sde.loss(batch(0), buffer, KEY, engine="autograd").sum()
        buffer.write(grid_of(other))
        grads.append(torch.autograd.grad(loss, list(sde.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_batched_scores_of_a_grid_in_memory() -> None:
    sde = model()
    sde.scores_per_call = 3
    buffer, losses = GridBuffer(grid_of(5), CPU), []
    for grid in (buffer, grid_of(5)):
        loss = sde.mean_loss(batch(0), grid, KEY, engine="autograd")
        losses.append((loss, *torch.autograd.grad(loss, list(sde.parameters()))))
    for a, b in zip(*losses, strict=True):
        # The root of a step length is taken in float32 in memory, in float64 otherwise.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_kernels_for_whole_paths_get_the_lengths_of_either_grid() -> None:
    sde, grid = model(), grid_of(5)
    expected = torch.tensor(grid.steps(), dtype=torch.float32)
    for given in (grid, GridBuffer(grid, CPU)):
        p, _ = build_problem("test", PathModel(sde.drift, sde.score), batch(0), given)
        assert torch.equal(paths_cuda._step_lengths(p, CPU), expected)


def test_refusals_of_a_grid_in_memory() -> None:
    buffer = GridBuffer(grid_of(0), CPU)
    assert buffer == buffer
    assert buffer != GridBuffer(grid_of(0), CPU)
    assert len({buffer: 1, GridBuffer(grid_of(0), CPU): 2}) == 2
    with pytest.raises(ValueError, match="expected a grid of 4 steps, got 5"):
        buffer.write(grid_of(0, 5))
    with pytest.raises(ValueError, match="the shortest step"):
        GridBuffer(TimeGrid.from_times([0.0, 1e-42, 1.0]), CPU)
    with pytest.raises(ValueError, match=r"states of torch.float32 on cpu, got torch.float64"):
        model().double().mean_loss(batch(0).double(), buffer, KEY)


# --- graphs that are stood in for ----------------------------------------------------------------


@pytest.fixture
def graphs_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("every", [1, 3])
def test_a_literal_replay_takes_the_steps_of_a_plain_loop(every: int) -> None:
    """New data, times, learning rates, decay and noise in each step, and two numbers of steps."""

    def grid(i: int) -> TimeGrid:
        return grid_of(i, 3 + i % 2)

    def trained(warm_up: int) -> tuple[Trained, CapturedStep]:
        sde = model()
        ema, adam = AveragedModel(sde), torch.optim.Adam(sde.parameters())

        def loss(x0: Tensor, times: TimeGrid, key: Tensor) -> Tensor:
            return sde.mean_loss(x0, times, key, engine="autograd", checkpoint_every=every)

        step = CapturedOnCpu(loss, sde, adam, KEY, ema=ema, clip=0.5, warm_up=warm_up)
        results = []
        for i in range(9):
            step.set_learning_rates([1e-2 / (1 + i)])
            results.append(torch.stack(step.step(batch(i), grid(i), decay=decay(i))))
        return (results, tensors(sde, ema, adam)), step

    replayed, step = trained(warm_up=1)
    eager, other = trained(warm_up=100)
    assert (step.num_captures, other.num_captures) == (2, 0)
    assert_same(replayed, eager)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_loss_that_cannot_be_captured_goes_on_without_a_graph() -> None:
    net = nn.Linear(2, 2)

    def reading(x0: Tensor, grid: TimeGrid | None, key: Tensor) -> Tensor:
        return net(x0).square().mean() * float(x0.square().sum())

    def drawing(x0: Tensor, grid: TimeGrid | None, key: Tensor) -> Tensor:
        return nn.functional.dropout(net(x0)).square().mean()

    causes = {"the step cannot be captured: .*_local_scalar_dense": reading,
              "draws from torch's generators": drawing}  # fmt: skip
    for cause, loss in causes.items():
        step = CapturedOnCpu(loss, net, torch.optim.Adam(net.parameters()), KEY, warm_up=1)
        with pytest.warns(UserWarning, match=f"goes on without a CUDA graph: .*{cause}"):
            losses = [float(step.step(batch(0)).loss) for _ in range(2)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses += [float(step.step(batch(0)).loss) for _ in range(2)]
        assert step.num_captures == 0
        if loss is reading:
            assert losses == sorted(losses, reverse=True)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_literal_replay_finds_numbers_of_the_host() -> None:
    """The stand-in itself: step lengths that Python gave are those of the capture."""
    net = nn.Linear(2, 2)

    def loss(x0: Tensor, grid: TimeGrid, key: Tensor) -> Tensor:
        return net(x0).square().mean() * grid.steps()[0]

    step = CapturedOnCpu(loss, net, torch.optim.Adam(net.parameters(), lr=0.0), KEY, warm_up=1)
    losses = [float(step.step(batch(0), grid_of(i)).loss) for i in (0, 1, 2)]
    assert losses[0] != losses[1]
    assert losses[1] == losses[2]
    assert step.num_captures == 1
