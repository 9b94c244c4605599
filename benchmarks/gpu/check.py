"""Does the package do on this GPU what it promises, and how fast? One command, one JSON.

    benchmarks/gpu/check.sh [--seconds 540] [--out FOLDER] [--commit NAME]
    benchmarks/gpu/check.sh --dry-run-on-cpu        the same sections on the CPU, to test this

Sections run in the order of their worth, each in a process of its own and at most for its limit.
The JSON is written anew with every row that a section finds: whatever ends the check, what ran
stays. A section that did not run is named with the reason. Exit code 0 only if every section that
ran has passed. Imports nothing that must be installed, nor the package, which the first section
builds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import RESULTS, ROOT, WORK, write_json
from ..pages.gpu import gpu_report
from .build import card, site_of

#: Where a CUDA toolkit may lie that is not on PATH.
TOOLS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
#: Seconds left under which a section is not started: Python, torch and the device take as many.
LEAST = 15.0
#: Characters of its output that are kept of a section that did not pass.
TAIL = 3000
Entry = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A function `f(device, record, *arguments)`, and the most seconds that it may take."""

    name: str
    call: str
    limit: float
    arguments: tuple[str, ...] = ()


def _tests(name: str, limit: float, *files: str, which: str = "gpu and not slow") -> Section:
    return Section(name, "benchmarks.gpu.tests:run", limit, (which, *files))


def _sanitizer(tool: str) -> Section:
    return Section(tool, "benchmarks.gpu.sanitizer:watch", 90, (tool,))


#: What runs, in this order.
SECTIONS = (
    Section("build", "benchmarks.gpu.build:build", 240),
    Section("launch", "benchmarks.gpu.launches:launch", 60),
    Section("steps", "benchmarks.gpu.steps:points", 60),
    Section("paths", "benchmarks.gpu.steps:paths", 60),
    Section("bandwidth", "benchmarks.gpu.bandwidth:kernels", 60),
    _tests("ops", 90, "test_ops.py"),
    _tests("graphs", 60, "test_cuda_graph.py"),
    Section("images", "benchmarks.gpu.steps:images", 60),
    Section("memory", "benchmarks.gpu.steps:memory", 40),
    _sanitizer("memcheck"),
    _sanitizer("racecheck"),
    _tests("models", 60, "test_losses.py", "test_training.py"),
    _sanitizer("initcheck"),
    _sanitizer("synccheck"),
    _tests("compiled", 90, "test_ops.py", which="gpu and slow"),
)


@dataclass
class Check:
    """One run: its report, where it is kept, and when all must end."""

    report: dict[str, Any]
    target: Path
    log: Path
    work: Path
    start: float

    def run(self, sections: Sequence[Section]) -> None:
        """Runs the sections and fills in their entries; all need the first one, the build."""
        entries: list[Entry] = self.report["sections"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self.write()
        for section, entry in zip(sections, entries, strict=True):
            left = self.start + self.report["budget_seconds"] - time.monotonic()
            if entries[0]["status"] != "passed" and entry is not entries[0]:
                entry["why"] = f"{entries[0]['name']}: {entries[0]['status']}"
            elif left < LEAST:
                entry["why"] = f"no time: {max(0, left):.0f} s were left"
            else:
                self._run(section, entry, min(section.limit, left))
            self.write()
            words = f"check: {section.name}: {entry['status']} {entry.get('why', '')}"
            print(words.rstrip(), file=sys.stderr)

    def write(self) -> None:
        """Writes the report as it is now."""
        self.report["seconds"] = round(time.monotonic() - self.start, 1)
        write_json(self.target, self.report)

    def _run(self, section: Section, entry: Entry, limit: float) -> None:
        """Runs one section, at most for its limit."""
        rows, start = self.work / f"{section.name}.jsonl", time.monotonic()
        rows.touch()
        entry |= {"status": "running", "why": "the check has ended before it"}
        with self.log.open("ab") as log:
            log.write(f"\n=== {section.name}\n".encode())
            log.flush()
            begin, process = log.tell(), self._start(section, rows, log)
            try:
                code = self._wait(process, rows, entry, start + limit)
            finally:
                end(process)
        entry["seconds"] = round(time.monotonic() - start, 1)
        found, whole = read_rows(rows)
        entry |= {"rows": found, **verdict(code, found, whole, limit)}
        text = self.log.read_bytes()[begin:].decode(errors="replace").strip()
        if entry["status"] == "failed" and not entry["why"]:
            entry["why"] = text.splitlines()[-1][:300] if text else ""
        if entry["status"] in ("failed", "stopped"):
            entry["log"] = text[-TAIL:]

    def _start(self, section: Section, rows: Path, log: Any) -> subprocess.Popen[bytes]:
        words = (section.call, self.report["device"], str(rows), *section.arguments)
        python = (str(site_of(self.report["device"])), str(ROOT), os.environ.get("PYTHONPATH", ""))
        paths = (os.environ.get("PATH", ""), *TOOLS, sysconfig.get_path("scripts"))
        env = {"PYTHONPATH": os.pathsep.join(filter(None, python)), "PATH": os.pathsep.join(paths)}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.section", *words],
            cwd=self.work, env={**os.environ, **env, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # Its children end with it.
        )  # fmt: skip

    def _wait(
        self, process: subprocess.Popen[bytes], rows: Path, entry: Entry, until: float
    ) -> int | None:
        """Returns the exit code, None at the limit; keeps the rows of a process that runs."""
        while time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=min(0.5, max(0.01, until - time.monotonic())))
            found, _ = read_rows(rows)
            if len(found) != len(entry["rows"]):
                entry["rows"] = found
                self.write()
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children, unless it has ended well by itself."""
    if process.poll() == 0:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that waits for the device can outlive its end.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Returns the rows of a file, and whether it holds nothing else."""
    rows, whole = [], path.exists()
    for line in path.read_text(errors="replace").splitlines() if whole else ():
        try:
            row = json.loads(line, parse_constant=str)  # JSON has no NaN.
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            whole = False
    return rows, whole


def verdict(
    code: int | None, rows: list[dict[str, Any]], whole: bool, limit: float
) -> dict[str, str]:
    """Returns what a section's exit code and rows say: its status, and why."""
    states = [row.get("status") for row in rows]
    failed = states.count("failed")
    if code is None:
        return {"status": "stopped", "why": f"took more than {limit:.0f} s"}
    if rows and not (code or failed) and states.count("skipped") == len(rows):
        return {"status": "not run", "why": str(rows[0].get("why", ""))}
    why = ""
    if code:
        why = f"ended by {signal.Signals(-code).name}" if code < 0 else ""
    elif not whole:
        why = "left a line that is no row"
    elif failed:
        why = f"{failed} of {len(rows)} rows have failed"
    elif not rows:
        why = "left no row"
    return {"status": "failed" if code or why else "passed", "why": why}


# --- the command ---------------------------------------------------------------------------------


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seconds", type=float, default=540, help="all it may take; default: 540")
    made.add_argument(
        "--out", type=Path,
        help="folder of the JSON and the log; default: $OUT, else benchmarks/results, which the "
        "page shows, or runs/results for a dry run",
    )  # fmt: skip
    made.add_argument("--commit", help="what is checked, where git cannot say")
    made.add_argument("--dry-run-on-cpu", action="store_true", help="the sections, on the CPU")
    args = made.parse_args(words)
    usual = WORK / "results" if args.dry_run_on_cpu else RESULTS
    args.out = args.out or Path(os.environ.get("OUT") or usual)
    return args


def blank(args: argparse.Namespace, name: str, sections: Sequence[Section]) -> dict[str, Any]:
    """Returns the report of a check in which nothing has run."""
    now = time.gmtime()
    missing = {"status": "not run", "why": "the check has ended before it"}
    return {
        "name": f"gpu-check-{name.lower().replace(' ', '-')}-{time.strftime('%Y-%m-%d', now)}",
        "device": "cpu" if args.dry_run_on_cpu else "cuda",
        "card": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        "commit": args.commit,
        "budget_seconds": args.seconds,
        "seconds": 0.0,
        "sections": [{"name": section.name, **missing, "rows": []} for section in sections],
    }


def main(words: Sequence[str] | None = None, sections: Sequence[Section] = SECTIONS) -> int:
    """Runs all sections for which there is time; returns the exit code."""
    start, args = time.monotonic(), arguments(words)
    found = ("CPU dry run", "") if args.dry_run_on_cpu else card()
    if found is None:
        print("check: needs a CUDA device, and neither nvidia-smi nor torch finds one")
        return 2
    # So that the section that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report = blank(args, found[0], sections)
    target = args.out / f"{report['name']}.json"
    # The folder of the pages' reports is for reports alone.
    log = (WORK / "results" if args.out == RESULTS else args.out) / f"{report['name']}.log"
    with tempfile.TemporaryDirectory() as work:
        Check(report, target, log, Path(work), start).run(sections)
    print(gpu_report(report))
    print(f"report: {target}; log: {log}")
    states = [section["status"] for section in report["sections"]]
    return 1 if "passed" not in states or {*states} - {"passed", "not run"} else 0


if __name__ == "__main__":
    sys.exit(main())
