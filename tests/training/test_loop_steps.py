"""What each step of training is given and does, and what the log says of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_cases import STEPS, small_config
from torch import Tensor

from diffflow_ext import DiffFlowSDE
from diffflow_ext.training import (
    Config,
    load_run,
    train,
)
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.config.schedules import (
    learning_rate_at,
    sampling_grid,
    training_grid,
    work_done,
)
from diffflow_ext.training.loop.state import TrainState
from diffflow_ext.training.recipes.base import Objective
from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.directory import read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_config(tmp_path_factory.mktemp("data"))


def test_each_step_has_its_own_noise_grid_and_rows(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DiffFlowSDE.mean_loss, []

    def mean_loss(sde: DiffFlowSDE, x0: Tensor, grid: Any, key: Any, **kwargs: Any) -> Tensor:
        calls.append((x0, grid.times, key, kwargs, torch.is_autocast_enabled("cpu")))
        return real(sde, x0, grid, key, **kwargs)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    first = config.replaced(checkpoint_every=2, autocast="bf16", steps=4)
    train(first, tmp_path / "a")
    train(config.replaced(grid="power", steps=4), tmp_path / "b")
    drawn, fixed = calls[:4], calls[4:]
    assert [(key.seed, key.stream) for _, _, key, _, _ in calls] == [(5, i) for i in range(4)] * 2
    assert len({tuple(times.tolist()) for _, times, _, _, _ in drawn}) == 4
    assert len({tuple(times.tolist()) for _, times, _, _, _ in fixed}) == 1
    assert len({tuple(x0[:, 0].tolist()) for x0, _, _, _, _ in drawn}) == 4
    memory = [(k["checkpoint_every"], bf16) for *_, k, bf16 in calls]
    assert memory == [(2, True)] * 4 + [(1, False)] * 4


def test_gradient_is_clipped_and_logged_before(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []

    def update(state: TrainState, learning_rates: Sequence[float]) -> None:
        gradients = [p.grad.flatten() for p in state.module.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        state.step += 1

    monkeypatch.setattr(TrainState, "update", update)
    train(config.replaced(clip_norm=1e-3, log_every=1), tmp_path)
    assert norms == pytest.approx([1e-3] * STEPS, rel=1e-3)
    logged = [line["grad_norm"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert min(logged) > 1e-2


def test_progressive_grid_and_learned_diffusion(config: Config, tmp_path: Path) -> None:
    growing = config.replaced(
        progressive="0:2,4:3", learn_diffusion=True, diffusion_end=0.5, log_every=1
    )
    train(growing, tmp_path)
    counts = [line["num_steps"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert counts == [2] * 4 + [3] * 6
    sde: Any = load_run(tmp_path).model
    ends = sde.diffusion(torch.tensor([0.0, growing.model.t_end]))
    assert not torch.allclose(ends.detach(), torch.tensor([1.0, 0.5], dtype=ends.dtype), rtol=1e-6)


def test_loaded_run_has_the_averaged_weights(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path)
    run = load_run(tmp_path)
    checkpoint = load_latest(tmp_path / "checkpoints")
    assert run.config == resolve(config, is_image=False)
    assert run.record.columns == ("c0", "c1")
    assert run.step == STEPS
    assert not run.model.training
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, checkpoint.ema[name])
    changed = [name for name in checkpoint.ema if name.endswith("weight")]
    assert all(not torch.equal(checkpoint.model[name], checkpoint.ema[name]) for name in changed)


def test_average_forgets_the_initial_weights_early(config: Config) -> None:
    module = DiffFlowSDE(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2)))
    part = Objective("model", list(module.parameters()), lambda x0, step: x0.sum(), 1.0, 1.0)
    state: Any = TrainState(config.replaced(ema_decay=0.999), module, [part])
    weight = state.module.drift.weight
    for value in (1.0, 2.0, 3.0):
        weight.data.fill_(value)
        state.update([0.0])
    average = 1.0
    for n, value in ((1, 2.0), (2, 3.0)):
        decay = (1 + n) / (10 + n)
        average = decay * average + (1 - decay) * value
    assert state.ema.module.drift.weight.item() == pytest.approx(average, rel=1e-6)


def test_training_lowers_the_loss(config: Config, tmp_path: Path) -> None:
    points = torch.randn(400, 2)
    points[:, 1] = points[:, 0] + 0.1 * points[:, 1]
    np.save(tmp_path / "line.npy", points.numpy())
    longer = config.replaced(steps=150, learning_rate=5e-3, save_every=150, batch_size=64)
    train(longer.replaced(data=str(tmp_path / "line.npy")), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0


def test_unknown_device_is_refused(config: Config, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(ValueError, match="device='cuda:7': no GPU here"):
        train(config.replaced(device="cuda:7"), tmp_path / "run")


QUARTER = 0.5 * (1 + math.cos(math.pi / 4))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1 / 3, 1: 2 / 3, 2: 1, 7: 1}),
        ("step", {0: 1 / 3, 2: 1, 3: 1, 4: 0.5, 6: 0.25, 7: 0.125}),
        ("cosine", {0: 1 / 3, 2: QUARTER, 4: 0.5, 6: 1 - QUARTER, 8: 0.0}),
    ],
)
def test_learning_rate(config: Config, schedule: str, expected: dict[int, float]) -> None:
    made = config.replaced(schedule=schedule, steps=8, warmup=3)
    for step, factor in expected.items():
        assert learning_rate_at(made, step, 2.0) == pytest.approx(2.0 * factor, abs=1e-12)


def test_bar_is_silent_without_a_terminal(
    config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, tmp_path / "quiet")
    said = capfd.readouterr()
    assert said.out == ""
    # What was read, and no bar.
    assert [line.split(":")[0] for line in said.err.splitlines()[1:]] == ["split", "kinds"]
    train(config, tmp_path / "silent", progress=False)
    assert capfd.readouterr() == ("", "")
    train(config, tmp_path / "shown", progress=True)
    assert "10/10" in capfd.readouterr().err


def test_auto_progressive_takes_few_steps_first(config: Config) -> None:
    made = config.replaced(progressive="auto", steps=100, num_steps=30, power=0.9)
    counts = [training_grid(made, step).num_steps for step in range(100)]
    assert counts == [5] * 46 + [10] * 35 + [30] * 19
    assert training_grid(made.replaced(num_steps=1), 0).num_steps == 1
    assert sampling_grid(made).num_steps == 30
    total = sum(counts)
    for step in (0, 1, 46, 60, 81, 99, 100):
        assert work_done(made, step) == pytest.approx(sum(counts[:step]) / total)


def test_logged_bound_does_not_jump_with_the_number_of_steps(
    config: Config, tmp_path: Path
) -> None:
    """A drift and a score of nearly zero make the loss N d / 2 larger, and the bound not."""
    made = config.replaced(
        progressive="0:2,8:40", steps=16, batch_size=512, log_every=1,
        learning_rate=1e-9, t_end=1e-3, diffusion_start=0.2, diffusion_end=0.3,
        drift_scale=1.0, score_scale=1.0,
    )  # fmt: skip
    train(made, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    few, many = lines[:8], lines[8:]
    mean = [[sum(line[key] for line in part) / 8 for part in (few, many)] for key in
            ("loss", "bound")]  # fmt: skip
    assert mean[0][1] - mean[0][0] > 30
    # g differs by 1.5 at the ends, so the pair does not match exactly: a little per dimension.
    assert abs(mean[1][1] - mean[1][0]) < 1.0


def test_a_warm_up_that_does_not_end_is_said(config: Config, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="warmup=30: expected at most half of steps=20"):
        train(config.replaced(steps=20, warmup=30), tmp_path / "run", progress=False)
