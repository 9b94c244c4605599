"""What the sections of the check of a GPU do that a dry run on a CPU does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENGINES, ROOT
from host_device import HostDevice

from benchmarks.gpu import build, launches, ops, sanitizer, steps
from benchmarks.speed.problem import Problem
from diffflow_ext.engines.fused import perceptrons, workspace

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert call.endswith(f"benchmarks.gpu.launches:watched cuda {record.path}\n")
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


def test_tests_are_rows_and_a_lost_device_ends_them(tmp_path: Path) -> None:
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "test_some.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['gpu: x']\n")
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu import section, tests\n"
        "tests.ROOT = Path(sys.argv[1])\n"
        "tests.run('cpu', section.Record(tests.ROOT / 'rows'), 'gpu', 'test_some.py')\n"
        "tests.answers = lambda: False\n"
        "tests.run('cpu', section.Record(tests.ROOT / 'lost'), 'gpu', 'test_some.py')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=tmp_path, env=env, check=False
    )
    rows, lost = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rows", "lost")
    )
    found = {row["test"]: (row["status"], row.get("why", "")[-10:]) for row in rows}
    assert found["test_some.py::test_good"] == ("passed", "")
    assert found["test_some.py::test_bad"][0] == "failed"
    assert found["test_some.py::test_ugly"][0] == "failed"
    assert found["test_some.py::test_absent"] == ("skipped", "not here")
    assert rows[0]["error"] == 0.5
    assert [row["status"] for row in lost] == ["passed", "failed"]
    assert done.returncode == 3


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


def test_a_processor_without_products_of_bfloat16_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workspace, "_instructions", lambda: ENGINES)
    rows: Any = Rows()
    launches.watched("cpu", rows)
    steps.paths("cpu", rows)
    refused = [row for row in rows if row.get("status") == "skipped"]
    names = ["whole paths, bfloat16", "fused", "fused_graph"]
    assert [row.get("test", row.get("step")) for row in refused] == names
    assert all("engine='fused' is not possible here" in row["why"] for row in refused)
    assert not [row for row in rows if row.get("status") == "failed"]


class Event:
    """Stands for an event of a device on which each takes 2 ms."""

    def __init__(self, enable_timing: bool) -> None:
        self.count = -1

    def record(self) -> None:
        Event.recorded += 1
        self.count = Event.recorded

    def elapsed_time(self, end: Event) -> float:
        return 2.0 * (end.count - self.count)

    recorded = 0


def test_times_and_peaks_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    rows, calls = Rows(), []
    took = steps.measured(rows, {"step": "a"}, "cuda", 4, lambda: lambda: calls.append(0), 0.5)  # pyright: ignore
    assert took == 2.0
    assert rows == [{"step": "a", "milliseconds": 2.0, "over_ddpm": 4.0, "mebibytes": 3.0}]
    assert len(calls) == 3 + 4


def test_a_device_in_error_ends_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        steps.measured(Rows(), {"step": "a"}, "cuda", 2, fails)  # pyright: ignore


@pytest.mark.parametrize("name", steps.ROUNDINGS)
def test_single_launches_run(name: Any, host: HostDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulated device, whose time embeddings are torch's, as a GPU's."""
    monkeypatch.setattr(perceptrons, "embedding_or_none", lambda *_: None)
    # Not those of the installed core, which may be known already.
    monkeypatch.setattr(workspace, "_instructions", workspace._instructions.__wrapped__)
    problem = Problem(batch=5, num_steps=2, width=16, depth=1)
    with host.running(0):
        for phase in (*steps.PHASES, "products"):
            steps.launch("cpu", problem, name, phase)()


@pytest.mark.parametrize(
    "case", [case for case in ops.CASES if case.eager], ids=lambda case: case.name
)
def test_eager_yardsticks_return_what_the_op_does(case: ops.Case) -> None:
    given = case.inputs((5, 3), torch.float32, torch.float32, "cpu", torch.Generator())
    assert case.eager is not None
    found: Any = case.eager(given)
    found = found if isinstance(found, tuple) else (found,)
    assert [one.shape for one in found] == [one.shape for one in case.run(given)]
