"""Callbacks: when they are called, that they change nothing, and what their errors do."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from loop_cases import STEPS, small_config
from process_runs import POINTS, finished, start
from training_runs import before_update, outcome, train_until_killed

from diffflow_ext.cli import commands
from diffflow_ext.training import (
    Callback,
    CallbackError,
    Config,
    Interrupted,
    TrainingError,
    load_config,
    load_run,
    train,
)
from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.directory import MetricsLog, read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    out = tmp_path_factory.mktemp("whole")
    train(config, out)
    return outcome(out)


class Recorder(Callback):
    """Notes each call; in `failing`, a method and from which step on, it raises after that."""

    def __init__(self, failing: str = "", step: int = 0) -> None:
        self.failing, self.step = failing, step
        self.starts: list[tuple[Config, Path, int]] = []
        self.lines: list[dict[str, float]] = []
        self.ends: list[BaseException | None] = []

    def on_start(self, config: Config, out: Path, step: int) -> None:
        self.starts.append((config, out, step))
        self.fail("on_start")

    def on_log(self, line: dict[str, float]) -> None:
        self.lines.append(dict(line))
        if line["step"] >= self.step:
            self.fail("on_log")

    def on_end(self, error: BaseException | None) -> None:
        self.ends.append(error)
        self.fail("on_end")

    def fail(self, method: str) -> None:
        if method == self.failing:
            raise LookupError("mine")

    @property
    def steps(self) -> list[float]:
        return [line["step"] for line in self.lines]


class Meddler(Callback):
    """Does what would change a training that took its numbers or its line from elsewhere."""

    def on_start(self, config: Config, out: Path, step: int) -> None:
        self.draw()

    def on_log(self, line: dict[str, float]) -> None:
        line.clear()
        self.draw()

    def draw(self) -> None:
        torch.randn(3)
        np.random.rand(3)
        random.random()


def test_each_line_comes_once_between_start_and_end(config: Config, tmp_path: Path) -> None:
    recorder = Recorder()
    train(config, tmp_path / "run", callbacks=[recorder])
    assert recorder.starts == [
        (load_config(tmp_path / "run" / "config.toml"), tmp_path / "run", 0)
    ]
    assert recorder.lines == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert recorder.steps == [2, 4, 6, 8, 10]
    assert recorder.ends == [None]


def test_a_callback_changes_no_bit(config: Config, tmp_path: Path, whole: tuple[Any, Any]) -> None:
    recorder = Recorder()
    train(config, tmp_path, callbacks=[Meddler(), recorder])
    assert outcome(tmp_path) == whole
    assert recorder.lines == read_metrics(tmp_path / "metrics.jsonl")


def test_steps_after_the_checkpoint_come_again(config: Config, tmp_path: Path) -> None:
    train_until_killed(config, tmp_path, 7)
    recorder = Recorder()
    train(config, tmp_path, resume=True, callbacks=[recorder])
    assert [step for *_, step in recorder.starts] == [4]
    assert recorder.steps == [6, 8, 10]
    train(config, tmp_path, resume=True, callbacks=[recorder])
    assert [step for *_, step in recorder.starts] == [4, STEPS]
    assert recorder.steps == [6, 8, 10]
    assert recorder.ends == [None, None]


class Early(Recorder):
    """Ends the training as the documents say."""

    def on_log(self, line: dict[str, float]) -> None:
        super().on_log(line)
        if line["step"] == 4:
            signal.raise_signal(signal.SIGINT)


def test_a_callback_ends_a_training_as_ctrl_c(
    config: Config, tmp_path: Path, whole: tuple[Any, Any]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        early = Early()
        with pytest.raises(
            Interrupted, match=r"stopped by SIGINT; saved .*step-00000005"
        ) as caught:
            train(config, tmp_path, callbacks=[early])
    finally:
        signal.signal(signal.SIGINT, before)
    assert early.ends == [caught.value]
    train(config, tmp_path, resume=True)
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("beside", [False, True], ids=["saved", "saved by a thread"])
def test_the_state_is_saved_before_an_error(
    config: Config, tmp_path: Path, whole: tuple[Any, Any], beside: bool
) -> None:
    first, failing, last = Recorder(), Recorder("on_log", 6), Recorder()
    said = r"train: Recorder\.on_log failed: LookupError: mine; step 6 is saved: .*resume the run"
    with pytest.raises(CallbackError, match=said) as caught:
        train(config.replaced(async_save=beside), tmp_path, callbacks=[first, failing, last])
    assert isinstance(caught.value.__cause__, LookupError)
    assert load_latest(tmp_path / "checkpoints").step == 6
    for recorder in (first, failing, last):
        assert recorder.steps == [2, 4, 6]
        assert recorder.ends == [caught.value]
    assert commands.exit_code(caught.value) == 1
    train(config, tmp_path, resume=True)
    assert outcome(tmp_path) == whole


def test_an_error_at_the_start_changes_nothing(config: Config, tmp_path: Path) -> None:
    first, last = Recorder(), Recorder()
    callbacks = [first, Recorder("on_start"), last]
    with pytest.raises(
        CallbackError, match=r"Recorder\.on_start failed: LookupError: mine$"
    ) as caught:
        train(config, tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()
    assert first.ends == [caught.value]
    assert (last.starts, last.ends, callbacks[1].ends) == ([], [], [])
    train(config, tmp_path / "run")
    before = outcome(tmp_path / "run")
    with pytest.raises(CallbackError):
        train(config.replaced(seed=1), tmp_path / "run", overwrite=True, callbacks=callbacks)
    assert outcome(tmp_path / "run") == before


def test_an_error_at_the_end_does_not_hide_another(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Recorder()
    with pytest.raises(CallbackError, match=r"Recorder\.on_end failed: LookupError: mine"):
        train(config, tmp_path / "a", callbacks=[Recorder("on_end"), last])
    assert load_latest(tmp_path / "a" / "checkpoints").step == STEPS
    assert last.ends == [None]

    def fail() -> None:
        raise TrainingError("train: the loss is nan at step 4")

    before_update(monkeypatch, 3, fail)
    with pytest.raises(TrainingError) as caught, pytest.warns(UserWarning, match="on_end failed"):
        train(config, tmp_path / "b", callbacks=[Recorder("on_end"), last])
    assert last.ends == [None, caught.value]


@pytest.mark.parametrize("callbacks", [Recorder(), Recorder, [Recorder], [print], [None], 3, "ab"])
def test_what_is_no_callback_is_refused_first(
    config: Config, tmp_path: Path, callbacks: Any
) -> None:
    with pytest.raises(TypeError, match=r"train: callbacks.*: expected "):
        train(config, tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_saves_too(
    config: Config, tmp_path: Path, whole: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MetricsLog.write

    def fail(log: MetricsLog, values: dict[str, float]) -> None:
        if values["step"] == 6:
            raise OSError(28, "No space left on device")
        real(log, values)

    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", fail)
        with pytest.raises(OSError, match="No space left") as caught:
            train(config, tmp_path, callbacks=[recorder])
    assert (recorder.steps, recorder.ends) == ([2, 4], [caught.value])
    assert load_latest(tmp_path / "checkpoints").step == 6
    train(config, tmp_path, resume=True)
    files, lines = outcome(tmp_path)
    assert files == whole[0]
    assert [line["step"] for line in lines] == [2, 4, 8, 10]


#: A program in several processes: each notes its calls, and that of process 0 fails at step 2.
FOLLOWED = """
import os, sys
from pathlib import Path
from diffflow_ext.cli import main
from diffflow_ext.training import Callback
from diffflow_ext.training.loop import train as module
class Failing(Callback):
    def on_log(self, line):
        Path(f"{sys.argv[1]}-{os.environ['RANK']}-{line['step']}").touch()
        if line["step"] == 2:
            raise LookupError("mine")
module.loggers_of = lambda config: [Failing()]
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["whole", "shares"])
def test_the_first_of_several_processes_calls_and_all_save(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    words = ("train", *POINTS, *more, "--out", str(tmp_path / "run"))
    ends = finished(start(2, *words, program=("-c", FOLLOWED, str(tmp_path / "call"))), seconds=90)
    assert [code for code, *_ in ends] == [1, 1], ends
    assert "Failing.on_log failed: LookupError: mine; step 2 is saved" in ends[0][2]
    assert sorted(path.name for path in tmp_path.glob("call*")) == ["call-0-1", "call-0-2"]
    assert load_latest(tmp_path / "run" / "checkpoints").step == 2


def test_the_example_of_the_documents_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a limit of no seconds it ends at the first line."""
    text = (ROOT / "docs" / "howto" / "follow.md").read_text()
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "Callback" in code
    )
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert "steps=20_000" in code
        assert "TimeLimit(3600)" in code
        code = code.replace("steps=20_000", "steps=100, width=8, depth=1")
        names: dict[str, Any] = {}
        exec(code.replace("TimeLimit(3600)", "TimeLimit(0)"), names)
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().out
    assert re.fullmatch(r"step 10: bound \d\.\d{3} nats\nthe next session goes on\n", said)
    assert load_run("runs/limited").step == 11
