"""A small run, for the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import FAST, write_points

from diffflow_ext.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_points(tmp_path)


@pytest.fixture
def run(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "run"
    assert main(["train", str(data), "--out", str(out), *FAST]) == 0
    capsys.readouterr()
    return out
