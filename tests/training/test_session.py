"""Signals in training: a line at once, and an end at once on the second one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import FAST, write_points

from diffflow_ext.training.loop.session import signals

#: A step in one operation that lets no handler of Python run, much longer than the test.
SCRIPT = """
import hashlib, signal, sys
from diffflow_ext.cli import main
from diffflow_ext.training.loop.step import TrainingStep

def take(step, received):
    print("in a step", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

# Tests that run in the background are started without it.
signal.signal(signal.SIGINT, signal.default_int_handler)
TrainingStep.take = take
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signals_in_a_long_operation(tmp_path: Path, number: signal.Signals) -> None:
    words = ["train", str(write_points(tmp_path)), "--out", str(tmp_path / "run"), *FAST]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert "in a step\n" in process.stdout
            assert "kinds: all continuous\n" in process.stderr  # The last line about the data.
            process.send_signal(number)
            line = process.stderr.readline()
            assert line.startswith(
                f"diffflow: {number.name}: finishing this step, then saving; a "
            )
            process.send_signal(number)
            # A SIGTERM that Python could see before the operation began has its usual handler.
            assert process.wait(60) in (128 + number, -number)
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_other_processes_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for says in (False, True):
        with signals(announce=says) as received:
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert ("finishing this step" in capfd.readouterr().err) == says
    assert signal.getsignal(signal.SIGTERM) is before
    # The place for the numbers of signals is free again.
    assert signal.set_wakeup_fd(-1) == -1
