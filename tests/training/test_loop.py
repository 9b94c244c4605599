"""Training: the same bits after any interruption, clear refusals, and a log one can trust."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import Kill, before_update, kill, outcome

from diffflow_ext import DiffFlowSDE
from diffflow_ext.training import (
    CheckpointError,
    Config,
    Interrupted,
    TrainingError,
    configure,
    load_config,
    load_run,
    train,
)
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.config.files import from_record
from diffflow_ext.training.config.schedules import (
    learning_rate_at,
    sampling_grid,
    training_grid,
    work_done,
)
from diffflow_ext.training.loop import trainer
from diffflow_ext.training.loop.state import TrainState
from diffflow_ext.training.recipes.base import Objective
from diffflow_ext.training.store.checkpoint import load_latest, step_directories
from diffflow_ext.training.store.directory import RunDirectory, read_metrics

STEPS = 10


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "points.csv"
    write_points(path, seed=0)
    return path


def write_points(path: Path, seed: int) -> None:
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(seed)).tolist()
    path.write_text("a,b\n" + "".join(f"{x},{x + 0.1 * y}\n" for x, y in points))


@pytest.fixture
def usual_interrupt() -> Iterator[None]:
    """Python's own SIGINT handler, which a background job starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(csv_file: Path) -> Config:
    return configure(
        progressive="off",
        data=str(csv_file),
        seed=5,
        steps=STEPS,
        batch_size=16,
        num_steps=4,
        width=8,
        depth=1,
        warmup=3,
        save_every=4,
        log_every=2,
        threads=1,
    )


@pytest.fixture
def uninterrupted(config: Config, tmp_path: Path) -> tuple[dict[str, bytes], list[Any]]:
    train(config, tmp_path / "whole")
    return outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "step", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in range(STEPS) if n != 5)]
)
def test_resumes_bit_equal_after_a_kill_at_any_step(
    config: Config,
    tmp_path: Path,
    uninterrupted: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        before_update(patch, step, kill)
        with pytest.raises(Kill):
            train(config, tmp_path / "run")
    result = train(config, tmp_path / "run", resume=True)
    assert result.step == STEPS
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resumes_bit_equal(
    config: Config,
    tmp_path: Path,
    uninterrupted: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        before_update(patch, 5, lambda: os.kill(os.getpid(), signum))
        with pytest.raises(Interrupted, match="step-00000006") as caught:
            train(config, tmp_path / "run")
    assert caught.value.signum == signum
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.usefixtures("usual_interrupt")
def test_second_signal_is_not_held_back(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before_update(monkeypatch, 5, interrupt_twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config, tmp_path)
    assert not isinstance(caught.value, Interrupted)
    assert load_latest(tmp_path / "checkpoints").step == 4


def test_damaged_newest_checkpoint_costs_one_interval(
    config: Config, tmp_path: Path, uninterrupted: tuple[Any, Any]
) -> None:
    train(config, tmp_path / "run")
    newest = step_directories(tmp_path / "run" / "checkpoints")[0]
    (newest / "optim.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="falling back to step-00000008"):
        train(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == uninterrupted


def test_only_damaged_checkpoints_are_refused(config: Config, tmp_path: Path) -> None:
    train(config.replaced(keep_checkpoints=1), tmp_path)
    next((tmp_path / "checkpoints").glob("step-*/model.safetensors")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected"):
        train(config, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="expected"):
        load_run(tmp_path)


def test_same_seed_same_bits_and_another_seed_others(
    config: Config, tmp_path: Path, uninterrupted: tuple[Any, Any]
) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    train(config, tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())
    train(config.replaced(seed=6), tmp_path / "b")
    assert outcome(tmp_path / "a") == uninterrupted
    assert outcome(tmp_path / "b")[0]["model.safetensors"] != uninterrupted[0]["model.safetensors"]


def test_resuming_a_finished_run_changes_nothing(
    config: Config, tmp_path: Path, uninterrupted: tuple[Any, Any]
) -> None:
    assert train(config, tmp_path / "whole", resume=True).step == STEPS
    assert outcome(tmp_path / "whole") == uninterrupted


def test_finished_run_can_be_lengthened(config: Config, tmp_path: Path) -> None:
    constant = config.replaced(schedule="constant")
    train(constant.replaced(steps=4), tmp_path / "run")
    train(constant, tmp_path / "run", resume=True)
    train(constant, tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    with pytest.raises(ValueError, match="steps=4: the run is at step 10 already"):
        train(constant.replaced(steps=4), tmp_path / "run", resume=True)


def test_log_has_one_line_for_each_interval(config: Config, tmp_path: Path) -> None:
    train(config.replaced(log_every=4), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 10]
    for line in lines:
        assert line["num_steps"] == 4
        assert line["samples_per_second"] > 0
        assert all(math.isfinite(value) for value in line.values())
    elapsed = [line["elapsed"] for line in lines]
    assert elapsed == sorted(elapsed)


def test_log_cut_off_in_a_line_is_mended(
    config: Config, tmp_path: Path, uninterrupted: tuple[Any, Any]
) -> None:
    with (tmp_path / "whole" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    train(config, tmp_path / "whole", resume=True)
    assert outcome(tmp_path / "whole") == uninterrupted


def test_run_directory_has_the_documented_files(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "a b" / "läuft"
    result = train(config, out)
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
    ]
    saved = load_config(out / "config.toml")
    assert saved == resolve(config, is_image=False)
    assert [path.name[-2:] for path in step_directories(out / "checkpoints")] == ["10", "08", "04"]
    assert result.checkpoint == out / "checkpoints" / "step-00000010"
    meta = load_latest(out / "checkpoints").meta
    assert meta["seed"] == 5
    assert meta["data"]["columns"] == ["a", "b"]
    assert from_record(meta["config"]) == saved


def poisoned(patch: pytest.MonkeyPatch, call: int, poison: Callable[[Tensor], Tensor]) -> None:
    """Changes the loss of one step, counted from 0."""
    real, calls = DiffFlowSDE.mean_loss, [0]

    def mean_loss(sde: DiffFlowSDE, *args: Any, **kwargs: Any) -> Tensor:
        loss = real(sde, *args, **kwargs)
        calls[0] += 1
        if calls[0] != call + 1:
            return loss
        return poison(loss)

    patch.setattr(DiffFlowSDE, "mean_loss", mean_loss)


@pytest.mark.parametrize(
    ("poison", "name"),
    [
        (lambda loss: loss * math.nan, "loss is nan"),
        (lambda loss: loss + math.inf, "loss is inf"),
        # The square root is finite at 0, its slope isn't.
        (lambda loss: loss + (loss - loss).sqrt(), "gradient norm is nan"),
    ],
)
def test_stops_before_a_step_that_is_not_finite(
    config: Config,
    tmp_path: Path,
    uninterrupted: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[Tensor], Tensor],
    name: str,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned(patch, 6, poison)
        with pytest.raises(TrainingError, match=rf"{name} at step 7; .*last good .*step-00000004"):
            train(config, out)
    assert all(tensor.isfinite().all() for tensor in load_latest(out / "checkpoints").ema.values())
    train(config, out, resume=True)
    assert outcome(out) == uninterrupted


def test_not_finite_before_the_first_checkpoint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 1, lambda loss: loss * math.nan)
    with pytest.raises(TrainingError, match=r"at step 2; .*none saved"):
        train(config, tmp_path)


def test_run_is_not_overwritten_by_accident(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds a run already; give --resume or --overwrite"):
        train(config, tmp_path)
    with pytest.raises(ValueError, match="got both"):
        train(config, tmp_path, resume=True, overwrite=True)
    train(config.replaced(steps=3, seed=8), tmp_path, overwrite=True)
    assert [path.name for path in step_directories(tmp_path / "checkpoints")] == ["step-00000003"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_bad_data_neither_removes_a_run_nor_leaves_a_directory(
    config: Config, tmp_path: Path
) -> None:
    train(config, tmp_path / "run")
    before = outcome(tmp_path / "run")
    missing = config.replaced(data=str(tmp_path / "missing.csv"))
    with pytest.raises((ValueError, OSError), match=r"missing\.csv"):
        train(missing, tmp_path / "run", overwrite=True)
    assert outcome(tmp_path / "run") == before
    with pytest.raises((ValueError, OSError), match=r"missing\.csv"):
        train(missing, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_two_runs_do_not_share_a_directory(config: Config, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        RunDirectory(tmp_path / "run").opened(),
        pytest.raises(ValueError, match="another process is training there"),
    ):
        train(config, tmp_path / "run")


def test_output_is_checked_before_any_work(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "open_data", lambda *args, **kwargs: pytest.fail("worked"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train(config, tmp_path / "file" / "run")


def test_resume_refuses_another_configuration(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path)
    with pytest.raises(ValueError, match="width=9: the run to resume has 8"):
        train(config.replaced(width=9), tmp_path, resume=True)
    train(config.replaced(log_every=1, save_every=9), tmp_path, resume=True)


def test_resume_refuses_other_data(config: Config, tmp_path: Path) -> None:
    data = tmp_path / "points.csv"
    write_points(data, seed=0)
    own = config.replaced(data=str(data))
    train(own, tmp_path / "run")
    write_points(data, seed=1)
    with pytest.raises(ValueError, match="values have changed since the run began"):
        train(own, tmp_path / "run", resume=True)
    data.write_text(data.read_text().replace("a,b", "a,c"))
    with pytest.raises(ValueError, match="expected the columns a, b of the run, got a, c"):
        train(own, tmp_path / "run", resume=True)


def test_resume_without_a_run_starts_one(config: Config, tmp_path: Path) -> None:
    assert train(config, tmp_path / "run", resume=True).step == STEPS


def test_each_step_has_its_own_noise_grid_and_rows(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DiffFlowSDE.mean_loss, []

    def mean_loss(sde: DiffFlowSDE, x0: Tensor, grid: Any, key: Any, **kwargs: Any) -> Tensor:
        calls.append((x0, grid.times, key, kwargs, torch.is_autocast_enabled("cpu")))
        return real(sde, x0, grid, key, **kwargs)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    train(config.replaced(checkpoint_every=2, autocast="bf16", steps=4), tmp_path / "a")
    train(config.replaced(grid="power", steps=4), tmp_path / "b")
    drawn, fixed = calls[:4], calls[4:]
    assert [(key.seed, key.stream) for _, _, key, _, _ in calls] == [(5, i) for i in range(4)] * 2
    assert len({tuple(times.tolist()) for _, times, _, _, _ in drawn}) == 4
    assert len({tuple(times.tolist()) for _, times, _, _, _ in fixed}) == 1
    assert len({tuple(x0[:, 0].tolist()) for x0, _, _, _, _ in drawn}) == 4
    assert all(kwargs["checkpoint_every"] == 2 and bf16 for _, _, _, kwargs, bf16 in drawn)
    assert all(kwargs["checkpoint_every"] == 1 and not bf16 for _, _, _, kwargs, bf16 in fixed)


def test_kept_graphs_reach_the_loss(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counts = DiffFlowSDE.mean_loss, []

    def mean_loss(sde: DiffFlowSDE, *args: Any, kept_graphs: int = 0, **kwargs: Any) -> Tensor:
        counts.append(kept_graphs)
        return real(sde, *args, **kwargs)

    monkeypatch.setattr(DiffFlowSDE, "mean_loss", mean_loss)
    for kept in (0, 3):
        train(config.replaced(steps=1, kept_graphs=kept), tmp_path / str(kept))
    assert counts == [0, 3]


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


def test_progressive_run_resumes_bit_equal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = config.replaced(progressive="0:2,6:3", learn_diffusion=True, checkpoint_every=2)
    train(growing, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_update(patch, 7, kill)
        with pytest.raises(Kill):
            train(growing, tmp_path / "run")
    train(growing, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_loaded_run_has_the_averaged_weights(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path)
    run = load_run(tmp_path)
    checkpoint = load_latest(tmp_path / "checkpoints")
    assert run.config == resolve(config, is_image=False)
    assert run.record.columns == ("a", "b")
    assert run.step == STEPS
    assert not run.model.training
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, checkpoint.ema[name])
    changed = [name for name in checkpoint.ema if name.endswith("weight")]
    assert all(not torch.equal(checkpoint.model[name], checkpoint.ema[name]) for name in changed)


def test_average_forgets_the_initial_weights_early(config: Config) -> None:
    state = _linear_state(config.replaced(ema_decay=0.999))
    weight = state.module.drift.weight
    for value in (1.0, 2.0, 3.0):
        weight.data.fill_(value)
        state.update([0.0])
    average = 1.0
    for n, value in ((1, 2.0), (2, 3.0)):
        decay = (1 + n) / (10 + n)
        average = decay * average + (1 - decay) * value
    assert state.ema.module.drift.weight.item() == pytest.approx(average, rel=1e-6)


def test_update_takes_the_given_learning_rate(config: Config) -> None:
    state = _linear_state(config)
    weight = state.module.drift.weight
    before = weight.item()
    weight.grad = torch.ones_like(weight)
    state.update([0.25])
    # The first step of Adam is as long as the learning rate.
    assert weight.item() == pytest.approx(before - 0.25, abs=1e-6)


def _linear_state(config: Config) -> Any:
    drift, score = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    module = DiffFlowSDE(drift, score)
    part = Objective("model", list(module.parameters()), lambda x0, step: x0.sum(), 1.0, 1.0)
    return TrainState(config, module, [part])


def test_training_lowers_the_loss(config: Config, tmp_path: Path) -> None:
    longer = config.replaced(steps=150, learning_rate=5e-3, save_every=150, batch_size=64)
    train(longer, tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0


def test_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run there; diffflow train DATA --out"):
        load_run(tmp_path)


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
    assert capfd.readouterr() == ("", "")
    train(config, tmp_path / "shown", progress=True)
    assert "10/10" in capfd.readouterr().err


def test_auto_progressive_takes_few_steps_first(config: Config) -> None:
    made = config.replaced(progressive="auto", steps=100, num_steps=30)
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
