"""The report of wheels is made of many runs. What is built is tested in tests/project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.wheels import check


def test_a_run_replaces_its_own_entries_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sdist.tar.gz").write_bytes(b"1234")
    monkeypatch.setattr(check, "source_distribution", lambda folder: tmp_path / "sdist.tar.gz")
    monkeypatch.setattr(check, "keep", lambda file: None)
    monkeypatch.setattr(check.platform, "machine", lambda: "x86_64")
    sizes = iter((10, 20, 30, 40))

    def examine(word: str, sdist: Path, folder: Path) -> dict:
        return {"file": f"diffflow_ext-0.1.0-{word}-{word}-linux_x86_64.whl", "bytes": next(sizes)}

    monkeypatch.setattr(check, "examine", examine)
    monkeypatch.delenv("DIFFFLOW_CUDA", raising=False)
    check.main(["--results", str(tmp_path), "cp310", "cp311"])
    check.main(["--results", str(tmp_path), "cp311"])
    monkeypatch.setenv("DIFFFLOW_CUDA", "ON")
    check.main(["--results", str(tmp_path), "cp311"])
    wheels = json.loads((tmp_path / "wheels.json").read_text())["wheels"]
    assert {name: entry["bytes"] for name, entry in wheels.items()} == {
        "cp310 x86_64 CPU": 10, "cp311 x86_64 CPU": 30, "cp311 x86_64 CUDA": 40,
    }  # fmt: skip
    assert {entry["sdist_bytes"] for entry in wheels.values()} == {4}


def test_pythons_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyenv's newest of each version; else what is on PATH, which may be nothing."""
    program = tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setattr(check.Path, "home", lambda: tmp_path)
    there = {"python3.10": "/usr/bin/python3.10", "python3.12": "/usr/bin/python3.12"}
    monkeypatch.setattr(check.shutil, "which", there.get)
    assert check.pythons() == ["/usr/bin/python3.10", str(program)]
