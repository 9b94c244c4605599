"""Training: the same bits after any interruption, and clear refusals."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_cases import STEPS, small_config
from torch import Tensor
from training_runs import before_update, outcome, train_until_killed, write_table

from diffflow_ext import DiffFlowSDE
from diffflow_ext.training import (
    Config,
    Interrupted,
    TrainingError,
    load_config,
    train,
)
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.config.files import from_record
from diffflow_ext.training.loop import trainer
from diffflow_ext.training.store.checkpoint import load_latest, step_directories
from diffflow_ext.training.store.directory import RunDirectory, read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_config(tmp_path_factory.mktemp("data"))


@pytest.fixture
def usual_interrupt() -> Iterator[None]:
    """Python's own SIGINT handler, which a background job starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def uninterrupted(config: Config, tmp_path: Path) -> tuple[dict[str, bytes], list[Any]]:
    train(config, tmp_path / "whole")
    return outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "step", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in range(STEPS) if n != 5)]
)
def test_resumes_bit_equal_after_a_kill_at_any_step(
    config: Config, tmp_path: Path, uninterrupted: tuple[Any, Any], step: int
) -> None:
    train_until_killed(config, tmp_path / "run", step)
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


def test_resuming_a_finished_run_mends_a_log_cut_off_in_a_line(
    config: Config, tmp_path: Path, uninterrupted: tuple[Any, Any]
) -> None:
    with (tmp_path / "whole" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    assert train(config, tmp_path / "whole", resume=True).step == STEPS
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
    assert [column["name"] for column in meta["data"]["columns"]] == ["c0", "c1"]
    assert from_record(meta["config"]) == saved


def poisoned(patch: pytest.MonkeyPatch, call: int, poison: Callable[[Tensor], Tensor]) -> None:
    """Changes the loss of one step, counted from 0."""
    real, calls = DiffFlowSDE.mean_loss, [0]

    def mean_loss(sde: DiffFlowSDE, *args: Any, **kwargs: Any) -> Tensor:
        loss = real(sde, *args, **kwargs)
        calls[0] += 1
        return poison(loss) if calls[0] == call + 1 else loss

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
    data = write_table(tmp_path / "points.csv")
    own = config.replaced(data=str(data))
    train(own, tmp_path / "run")
    write_table(data, seed=1)
    with pytest.raises(ValueError, match="values have changed since the run began"):
        train(own, tmp_path / "run", resume=True)
    data.write_text(data.read_text().replace("c0,c1", "c0,d"))
    with pytest.raises(ValueError, match="expected column 2 to be 'c1' as in the run, got 'd'"):
        train(own, tmp_path / "run", resume=True)
