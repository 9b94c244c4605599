"""Runs with --cuda-graph on: on the CPU the same code without a graph, and the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph_steps import Emulated
from torch import Tensor
from training_runs import Kill, outcome, write_table

from diffflow_ext import DiffFlowSDE
from diffflow_ext.engines import CapturedStep
from diffflow_ext.engines.cuda_graph import StepResult
from diffflow_ext.training import Config, TrainingError, configure, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.loop import captured
from diffflow_ext.training.store.checkpoint import step_directories


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configure(
        data=str(write_table(tmp_path / "points.csv")), steps=9, batch_size=16, num_steps=6,
        progressive="0:2,3:4,6:6", width=8, depth=1, warmup=3, save_every=4, log_every=2,
        threads=1, seed=5,
    )  # fmt: skip


def both(config: Config, folder: Path) -> None:
    """Trains with and without; what they leave must be the same."""
    train(config, folder / "plain")
    train(config.replaced(cuda_graph="on"), folder / "graph")
    assert outcome(folder / "graph") == outcome(folder / "plain")


@pytest.mark.parametrize(
    "change",
    [{}, {"learn_diffusion": True, "grid": "power"}, {"autocast": "bf16", "clip_norm": 0.1}],
)
def test_the_run_is_that_of_the_plain_loop(
    config: Config, tmp_path: Path, change: dict[str, Any]
) -> None:
    both(config.replaced(**change), tmp_path)


def test_a_run_resumes_bit_equal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CapturedStep.step

    def step(self: CapturedStep, *args: Any, stream: int, **options: Any) -> StepResult:
        if stream == 6:
            raise Kill
        return real(self, *args, stream=stream, **options)

    train(config, tmp_path / "plain")
    graphed = config.replaced(cuda_graph="on")
    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "step", step)
        with pytest.raises(Kill):
            train(graphed, tmp_path / "run")
    train(graphed, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")


def test_a_step_that_is_not_finite_ends_the_run_and_is_not_saved(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DiffFlowSDE.mean_loss, []

    def mean_loss(sde: DiffFlowSDE, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return real(sde, *args, **options) * (math.nan if len(calls) == 6 else 1.0)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    with pytest.raises(TrainingError, match="the loss is nan at step 6"):
        train(config.replaced(cuda_graph="on"), tmp_path / "run")
    kept = step_directories(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step-00000004"]


def test_a_step_nobody_logs_is_read_one_step_late(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DiffFlowSDE.mean_loss, []

    def mean_loss(sde: DiffFlowSDE, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return real(sde, *args, **options) * (math.nan if len(calls) == 5 else 1.0)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    with pytest.raises(TrainingError, match="the loss is nan at step 5"):
        train(config.replaced(cuda_graph="on", log_every=8), tmp_path / "run")
    assert len(calls) == 6
    kept = step_directories(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step-00000004"]


def test_a_first_step_that_is_not_finite_leaves_the_run_that_it_would_replace(
    config: Config, tmp_path: Path
) -> None:
    train(config, tmp_path / "run")
    before = outcome(tmp_path / "run")
    wild = config.replaced(cuda_graph="on", log_every=8, diffusion_start=1e19, diffusion_end=1e19)
    with pytest.raises(TrainingError, match="at step 1"):
        train(wild, tmp_path / "run", overwrite=True)
    assert outcome(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "device", "processes", "expected"),
    [
        ({}, "cuda", 1, True),
        ({}, "cpu", 1, False),
        ({}, "cuda", 2, False),
        ({"cuda_graph": "off"}, "cuda", 1, False),
        ({"cuda_graph": "on"}, "cpu", 1, True),
        ({"on_nonfinite": "skip"}, "cuda", 1, False),
        ({"net": "unet", "dropout": 0.1}, "cuda", 1, False),
        ({"model": "ddpm"}, "cuda", 1, False),
    ],
)
def test_steps_are_captured_on_a_gpu_where_that_is_possible(
    change: dict[str, Any], device: str, processes: int, expected: bool
) -> None:
    assert captured.takes_graphs(configure(**change), torch.device(device), processes) is expected


def test_replays_see_what_changes_from_step_to_step(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With replays stood in for: data, times and the rest come out of fixed memory."""
    made: list[Emulated] = []

    def emulated(*args: Any, **options: Any) -> Emulated:
        made.append(Emulated(*args, warm_up=1, **options))
        return made[0]

    monkeypatch.setattr(captured, "CapturedStep", emulated)
    both(config, tmp_path)
    assert made[0].num_captures == 3
    assert made[0].eager == 3


def test_numbers_of_a_gpu_are_read_after_their_event(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    event = SimpleNamespace(
        record=lambda stream: events.append(f"recorded in {stream}"),
        synchronize=lambda: events.append("waited"),
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True), raising=False)
    reading = captured.Reading(3, torch.tensor([1.5, 2.5]))
    assert events == ["recorded in the stream of cpu"]
    assert (reading.step, reading.numbers()) == (3, [1.5, 2.5])
    assert events[1:] == ["waited"]


def test_conditions_exclude_graphs() -> None:
    for condition, expected in ((None, True), ("cut", False)):
        config = configure("diffflow", data="x", condition=condition)
        resolved = resolve(config, is_image=False)
        assert captured.takes_graphs(resolved, torch.device("cuda"), 1) == expected
