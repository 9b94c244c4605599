"""What a training, samples and scores show while they run."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loop_cases import small_config
from tqdm.notebook import tqdm_notebook

from diffflow_ext.training import LoadedRun, load_run, show_progress, train
from diffflow_ext.training.parallel import progress
from diffflow_ext.training.parallel.progress import Progress, tracked

READ = 3  # lines about what was read


def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float, **options: Any
) -> list[str]:
    progress.SECONDS = seconds
    capsys.readouterr()
    train(small_config(tmp_path).replaced(steps=4, log_every=2), tmp_path / "run", **options)
    out, err = capsys.readouterr()
    assert not out
    return err.splitlines()


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", progress.SECONDS)
    monkeypatch.setattr(progress, "DELAY", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> LoadedRun:
    train(small_config(tmp_path).replaced(steps=2), tmp_path / "run", progress=False)
    return load_run(tmp_path / "run")


def test_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(tmp_path, capsys, 0.0)
    assert lines[0].endswith("2 columns: c0, c1")
    assert lines[1].startswith("split: ")
    first, second, third, last = lines[READ:]
    assert re.fullmatch(r"step 1 of 4: about [\d:]+ left", first)
    assert re.fullmatch(r"step 2 of 4: bound .* nats, .* samples/s, about [\d:]+ left", second)
    # What was known is said again.
    assert third.split(": ")[1].split(",")[0] == second.split(": ")[1].split(",")[0]
    assert last.startswith("step 4 of 4: bound ")
    assert "left" not in last


@pytest.mark.parametrize(
    ("wait", "options", "count"), [(0.0, {"progress": False}, 0), (60.0, {}, READ)]
)
def test_none_before_it_is_time_or_where_none_is_wanted(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wait: float,
    options: dict[str, Any],
    count: int,
) -> None:
    assert len(shown(tmp_path, capsys, wait, **options)) == count


@pytest.mark.parametrize("options", [{"progress": True}, {}])
def test_a_bar_on_a_terminal(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    if not options:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    lines = shown(tmp_path, capsys, 0.0, **options)
    assert any("4/4" in line and "bound" in line for line in lines)
    assert not any(line.startswith("step ") for line in lines)
    assert sum("split: " in line for line in lines) == 1


def test_lines_go_to_a_logger_that_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="diffflow_ext"):
        assert shown(tmp_path, capsys, 0.0) == []
    assert len(caplog.messages) == READ + 4
    assert {record.name for record in caplog.records} == {"diffflow_ext"}
    assert caplog.messages[-1].startswith("step 4 of 4: bound")


def test_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the mean speed of this session: of 400 of 1000 steps it took 10 seconds for 100."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("step", 1000, 300) as bar:
        now[0] = 10.0
        bar.update(100, "loss 1.0")
        assert capsys.readouterr().err == ""
        now[0] = 30.0
        bar.update(200)
    assert capsys.readouterr().err == "step 600 of 1,000: loss 1.0, about 00:40 left\n"


def test_samples_scores_and_copies(run: LoadedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """In pieces of 2048 samples or rows, of 64 rows with gaps."""
    progress.SECONDS = 0.0
    rows = run.sample(5000).numpy()
    assert firsts(capsys) == ["sample 2,048 of 5,000", "sample 4,096 of 5,000",
                              "sample 5,000 of 5,000"]  # fmt: skip
    run.log_prob(rows[:2049])
    assert firsts(capsys) == ["row 2,048 of 2,049", "row 2,049 of 2,049"]
    gaps = np.where(np.arange(130)[:, None] * [1, 0] % 2 == 1, np.nan, rows[:130])
    run.impute(gaps, candidates=512)
    assert firsts(capsys)[-3:] == ["row 32 of 65", "row 64 of 65", "row 65 of 65"]
    with show_progress(False):
        run.sample(3)
    assert firsts(capsys) == []
    with show_progress(True):
        run.sample(3)
    assert "3/3" in capsys.readouterr().err


def firsts(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]


def test_a_short_work_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 60.0)
    assert [*tracked(range(0, 10, 4), 10, "row")] == [0, 4, 8]
    assert capsys.readouterr().err == ""


def test_in_a_notebook_lines_are_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where stderr is for errors; the bar of widgets is shown though there is no terminal."""
    shown = list[Any]()

    class Bar(tqdm_notebook):
        @staticmethod
        def status_printer(*arguments: Any, **options: Any) -> Any:
            part = SimpleNamespace(style=SimpleNamespace())
            return SimpleNamespace(children=[part, part])

        def display(self, *arguments: Any, **options: Any) -> None:
            shown.append(options)

    monkeypatch.setattr("tqdm.notebook.display", shown.append, raising=False)
    monkeypatch.setattr(progress, "tqdm", Bar)
    with Progress("step", 4) as bar:
        bar.say(["what was read"])
        assert not bar.has_lines
        bar.update(4, "loss 1.0")
    assert capsys.readouterr() == ("what was read\n", "")
    assert shown
