"""Runs tests marked `gpu`; each is a row as soon as it has ended."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ..common.files import ROOT
from .section import Record

#: What tests/conftest.py and its helpers import beyond torch.
NEEDED = ("hypothesis", "filelock")


class Recorder:
    """Records the outcome of each test, with its properties."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records a call, or what failed or skipped around it; ends where the device is lost."""
        if report.when != "call" and report.passed:
            return
        row = {**dict(report.user_properties), "seconds": round(report.duration, 2)}
        why = {} if report.passed else {"why": _why(report)}
        test = report.nodeid.rpartition("/")[2]
        self.record(test=test, status=report.outcome, **row, **why)
        if report.failed and not answers():
            pytest.exit("the device is lost to this process", returncode=3)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records a file that cannot be imported, or that needs what is missing."""
        if not report.passed:
            self.record(test=report.nodeid, status=report.outcome, why=_why(report))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext[-800:]


def answers() -> bool:
    """Whether the device still works in this process; some errors are for good."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def run(device: str, record: Record, which: str, *files: str) -> None:
    """Runs the tests of files of tests/gpu that `which` chooses, as `pytest -m` does."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        record(test=" ".join(files), status="skipped", why=f"needs {', '.join(missing)}")
        return
    code = pytest.main(
        ["-q", "-m", which, "-p", "no:cacheprovider", "--rootdir", str(ROOT),
         "-c", str(ROOT / "pyproject.toml"), *(str(ROOT / "tests/gpu" / file) for file in files)],
        plugins=[Recorder(record)],
    )  # fmt: skip
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(int(code))
