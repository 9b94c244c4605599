"""Lets compute-sanitizer watch our kernels while every one is launched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from .section import Record

#: The namespace in the mangled name of each of our kernels: torch's own are not checked.
OURS = "kernel_substring=diffflow"
#: What compute-sanitizer says where it cannot watch this machine's device.
CANNOT = ("Device not supported", "not supported on this", "Unable to", "unable to attach")
#: The exit code for what a tool has found.
FOUND = 99


def watch(device: str, record: Record, tool: str) -> None:
    """Runs one tool; rows are those of the kernels that it has watched, and its verdict."""
    program = shutil.which("compute-sanitizer")
    if program is None or device == "cpu":
        why = "compute-sanitizer is not on PATH" if program is None else "needs a CUDA device"
        record(test=tool, status="skipped", why=why)
        return
    options = (
        *("--tool", tool, "--kernel-name", OURS, "--error-exitcode", str(FOUND)),
        # torch asks the driver for what it may not have; our core checks the result of each call.
        *("--report-api-errors", "no") * (tool == "memcheck"),
        *("--show-backtrace", "device", "--print-limit", "20"),
    )
    inner = ("benchmarks.gpu.launches:watched", device, str(record.path))
    process = subprocess.Popen(
        [program, *options, sys.executable, "-m", "benchmarks.gpu.section", *inner],
        # Without torch's pool of memory, each tensor has bounds of its own.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="")
        lines.append(line)
    launched = record.path.stat().st_size > 0
    record(test=tool, **verdict(process.wait(), lines, launched))


def verdict(code: int, lines: list[str], launched: bool) -> dict[str, str]:
    """Returns what the tool's exit code and output say; `launched` if any kernel has run."""
    found = " ".join(line.strip("= \n") for line in lines if "SUMMARY" in line)
    if code == 0 and found:
        return {"status": "passed", "why": found}
    refusals = [line for line in lines if any(words in line for words in CANNOT)]
    if refusals and not launched:
        return {"status": "skipped", "why": refusals[0].strip("= \n")}
    return {"status": "failed", "why": found or "".join(lines)[-500:]}
