"""What a training shows while it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from loop_cases import small_config

from diffflow_ext.training import train
from diffflow_ext.training.loop import progress


def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float, **options: Any
) -> list[str]:
    progress.SECONDS = seconds
    capsys.readouterr()
    train(small_config(tmp_path).replaced(steps=4, log_every=2), tmp_path / "run", **options)
    return capsys.readouterr().err.splitlines()


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", progress.SECONDS)


def test_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = shown(tmp_path, capsys, 0.0)
    assert first.startswith("step 2 of 4: loss ")
    assert second.startswith("step 4 of 4: loss ")
    assert " samples/s" in first


@pytest.mark.parametrize(("wait", "options"), [(0.0, {"progress": False}), (60.0, {})])
def test_none_before_it_is_time_or_where_none_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wait: float, options: dict[str, Any]
) -> None:
    assert shown(tmp_path, capsys, wait, **options) == []


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
    assert any("4/4" in line and "loss" in line for line in lines)
    assert not any(line.startswith("step ") for line in lines)
