"""The command that writes a report: its file, and errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import refusal

pytest.importorskip("matplotlib", reason="needs the plot extra")

from diffflow_ext.cli import main, report


def test_a_file_beside_others(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    words = ["report", str(run), "--device", "cpu", "--out", str(out)]
    before = {path.name for path in tmp_path.iterdir()}
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}: a report of {run}\n"
    assert {path.name for path in tmp_path.iterdir()} == before | {"page.html"}
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<h1>run</h1>" in text
    assert "is there already; give --overwrite" in refusal(capsys, *words)
    assert out.read_text(encoding="utf-8") == text
    moved = data.rename(tmp_path / "moved.csv")
    assert "give their new path (--data PATH)" in refusal(capsys, *words, "--overwrite")
    assert main([*words, "--overwrite", "--data", str(moved)]) == 0
    assert out.read_text(encoding="utf-8") == text


def test_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "report_page", lambda *args: pytest.fail("began to work"))
    words = ("report", tmp_path / "no", "--out")
    assert "a file name that ends in .html" in refusal(capsys, *words, tmp_path / "page.pdf")
    assert "the directory" in refusal(capsys, *words, tmp_path / "no" / "page.html")
    assert "--out" in refusal(capsys, "report", tmp_path / "no")


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert "no run there" in refusal(capsys, "report", tmp_path / "no", "--out", out)
    assert not out.exists()
