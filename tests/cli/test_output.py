"""Standard streams: texts that an encoding lacks, readers that have gone, a full disk."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runs import FAST, write_points

from diffflow_ext.cli import main
from diffflow_ext.cli.output import Outlet, outlets, plain


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("1 ± 2", "ascii", "1 +/- 2"),
        ("1 ± 2", "latin-1", "1 ± 2"),
        ("Fréchet ≥ → ü", "ascii", "Frechet >= -> u"),
        ("data/\udcff.csv", "utf-8", "data/?.csv"),
        ("𝄞", "ascii", "?"),
    ],
)
def test_what_an_encoding_lacks_is_spelt_in_ascii(text: str, encoding: str, expected: str) -> None:
    assert plain(text, encoding) == expected
    raw = io.BytesIO()
    stream = Outlet(io.TextIOWrapper(raw, encoding=encoding))
    stream.write(text)
    stream.flush()
    assert raw.getvalue().decode(encoding) == expected
    assert stream.error is None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_evaluation_ends_well_where_there_is_no_plus_minus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    run, raw = tmp_path / "Läufe ±", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(["train", str(write_points(tmp_path)), "--out", str(run), *FAST]) == 0
    assert main(["evaluate", str(run), "--n=60", "--ode-n=9", "--no-figures"]) == 0
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert "in data units" in text
    assert ("+/-" in text) == (encoding == "ascii")


class Failing(io.StringIO):
    """A stream whose system refuses to write."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(errno.EPIPE, 0, ""), (errno.ENOSPC, 1, "diffflow: the output can't be written: No space")],
)
def test_a_stream_that_fails_does_not_end_the_work(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int, said: str
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Failing(number))
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["data", "list"]) == code
    assert err.getvalue().startswith(said)
    assert "Traceback" not in err.getvalue()


def test_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with outlets():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before
    for name in ("stdout", "stderr"):  # As where they were closed before the program began.
        monkeypatch.setattr(sys, name, None)
    with outlets() as output:
        print("x")
        print("x", file=sys.stderr, flush=True)
        assert output.error is None
    assert (sys.stdout, sys.stderr) == (None, None)


def helped(stdout: Any) -> tuple[int, str]:
    command = [sys.executable, "-m", "diffflow_ext", "--help"]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
        if process.stdout is not None:
            process.stdout.close()  # Long before the program writes.
        assert process.stderr is not None
        error = process.stderr.read()
    return process.returncode, error


def test_a_reader_that_has_gone_is_no_error() -> None:
    assert helped(subprocess.PIPE) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        code, error = helped(full)
    assert code == 1
    assert error == "diffflow: the output can't be written: No space left on device\n"
