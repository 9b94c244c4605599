"""Runs with --cuda-graph: on the CPU the same code without a graph, and the same bits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_steps import Emulated
from torch import Tensor
from training_runs import Kill, outcome, write_images, write_table

from diffflow_ext import DiffFlowSDE
from diffflow_ext.engines import CapturedStep
from diffflow_ext.engines.cuda_graph import StepResult
from diffflow_ext.training import TrainConfig, TrainingError, train
from diffflow_ext.training.loop import captured
from diffflow_ext.training.store.checkpoint import step_directories


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(write_table(tmp_path / "points.csv")), steps=9, batch_size=16, num_steps=6,
        progressive="0:2,3:4,6:6", width=8, depth=1, warmup=3, save_every=4, log_every=2,
        threads=1, seed=5,
    )  # fmt: skip


def both(config: TrainConfig, folder: Path) -> None:
    """Trains with and without; what they leave must be the same."""
    train(config, folder / "plain")
    train(replace(config, cuda_graph=True), folder / "graph")
    assert outcome(folder / "graph") == outcome(folder / "plain")


@pytest.mark.parametrize(
    "change",
    [{}, {"learn_diffusion": True, "grid": "power"}, {"autocast": "bf16", "clip_norm": 0.1}],
)
def test_the_run_is_that_of_the_plain_loop(
    config: TrainConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    both(replace(config, **change), tmp_path)


def test_the_run_of_unets_is_that_of_the_plain_loop(config: TrainConfig, tmp_path: Path) -> None:
    images = TrainConfig(
        data=str(write_images(tmp_path / "images", size=8)), steps=2, batch_size=4, num_steps=3,
        progressive="off", unet_base=8, unet_mults="1,2", unet_blocks=1, unet_attention="off",
        threads=1, autocast="bf16", activation_memory="1", log_every=1,
    )  # fmt: skip
    both(images, tmp_path)


def test_a_run_resumes_bit_equal(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CapturedStep.step

    def step(self: CapturedStep, *args: Any, stream: int, **options: Any) -> StepResult:
        if stream == 6:
            raise Kill
        return real(self, *args, stream=stream, **options)

    train(config, tmp_path / "plain")
    captured = replace(config, cuda_graph=True)
    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "step", step)
        with pytest.raises(Kill):
            train(captured, tmp_path / "run")
    train(captured, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")


def test_a_step_that_is_not_finite_ends_the_run_and_is_not_saved(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DiffFlowSDE.mean_loss, []

    def mean_loss(sde: DiffFlowSDE, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return real(sde, *args, **options) * (math.nan if len(calls) == 6 else 1.0)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    with pytest.raises(TrainingError, match="the loss is nan at step 6"):
        train(replace(config, cuda_graph=True), tmp_path / "run")
    kept = step_directories(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step-00000004"]


def test_replays_see_what_changes_from_step_to_step(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_only_diffflow_has_it(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="cuda_graph=True: only for diffflow"):
        TrainConfig(data=config.data, model="ddpm", cuda_graph=True)


def test_graphs_follow_the_number_of_steps(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed over, step by step."""
    real, seen = CapturedStep.step, []

    def step(self: CapturedStep, x0: Tensor, grid: Any, **options: Any) -> StepResult:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        seen.append((grid.num_steps, options["stream"], round(options["decay"], 6), *rates))
        return real(self, x0, grid, **options)

    monkeypatch.setattr(CapturedStep, "step", step)
    train(replace(config, cuda_graph=True, schedule="constant", learning_rate=3.0), tmp_path / "r")
    assert [line[0] for line in seen] == [2] * 3 + [4] * 3 + [6] * 3
    assert [line[1] for line in seen] == list(range(9))
    assert [line[2] for line in seen] == [round((1 + n) / (10 + n), 6) for n in range(9)]
    assert [line[3] for line in seen[:4]] == pytest.approx([1.0, 2.0, 3.0, 3.0])
