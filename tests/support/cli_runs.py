"""The program as tests call it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffflow_ext.cli import main

FAST = ("--steps=6 --num-steps=3 --width=8 --depth=1 --batch-size=16 --threads=1 --device=cpu "
        "--save-every=3 --log-every=2").split()  # fmt: skip


def fast(*others: str) -> list[str]:
    """Returns `FAST` with other values of some flags, none of which may be given twice."""
    names = {word.partition("=")[0] for word in others}
    return [*(word for word in FAST if word.partition("=")[0] not in names), *others]


def write_points(folder: Path) -> Path:
    rows = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "points.csv").write_text("a,b\n" + "".join(f"{x},{1000 + x + y}\n" for x, y in rows))
    return folder / "points.csv"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Returns the one line with which the program refuses."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("diffflow: ")
    return lines[0]
