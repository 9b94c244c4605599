"""Does the package do on this GPU what it promises, and how fast? One command, one JSON.

    benchmarks/gpu/check.sh                              builds, then runs this
    python -m benchmarks.gpu.check [--out FOLDER]        with the package installed
    python -m benchmarks.gpu.check --dry-run-on-cpu      the same steps on the CPU, to test this

Runs the tests marked `gpu` (every op against the CPU, gradients, streams, graphs, memory) and the
four tools of compute-sanitizer over a program that launches every kernel, and measures each kernel
against a device-to-device copy. Exit code 0 only if no check fails; what cannot run on this
machine is named as skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import diffflow_ext

from ..common.machine import ROOT, machine, output_of
from ..common.reports import RESULTS, WORK, run_python, write_json
from ..pages.speed import gpu_report
from .graphs import measure as measure_steps
from .paths import measure as measure_paths
from .speed import LEAST_SHARE
from .speed import measure as measure_kernels

LAUNCH_ALL = ("-m", "benchmarks.gpu.launch_all")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: Words of compute-sanitizer where it cannot watch this machine's device.
CANNOT_ATTACH = ("Device not supported", "not supported on this", "Unable to", "unable to attach")
Check = dict[str, Any]


def check(name: str, status: str, seconds: float = 0.0, **numbers: Any) -> Check:
    """Returns one line of the report; `status` is passed, failed or skipped."""
    return {"name": name, "status": status, "seconds": round(seconds, 3), **numbers}


def circumstances(commit: str | None, device: str) -> dict[str, Any]:
    """Returns machine, versions and commit."""
    about, query = machine(), "--query-gpu=name,driver_version,memory.total,compute_cap"
    return {
        "machine": about,
        "commit": commit or about["commit"],
        "device": device,
        "nvidia_smi": output_of("nvidia-smi", query, "--format=csv,noheader"),
        "cuda_of_torch": torch.version.cuda,
    }


# --- tests ---------------------------------------------------------------------------------------


def run_tests(work: Path) -> list[Check]:
    """Runs the tests marked gpu; every one is a check."""
    report, tests = work / "tests.xml", sorted((ROOT / "tests").rglob("test_*.py"))
    done = run_python(
        *("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"),
        *("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), f"--junitxml={report}"),
        *(str(path) for path in tests if "pytest.mark.gpu" in path.read_text()),
    )
    (work / "tests.log").write_text(done.stdout + done.stderr)
    if not report.exists():
        return [check("tests", "failed", why=(done.stdout + done.stderr)[-2000:])]
    found = [_of_test(case) for case in ElementTree.parse(report).iter("testcase")]
    return found or [check("tests", "failed", why="no test ran")]


def _of_test(case: ElementTree.Element) -> Check:
    numbers = {str(p.get("name")): p.get("value") for p in case.iter("property")}
    bad, skipped = case.find("failure"), case.find("skipped")
    bad = case.find("error") if bad is None else bad
    if bad is not None:
        numbers["why"] = (bad.get("message") or "")[:800]
    elif skipped is not None:
        numbers["why"] = skipped.get("message") or ""
    status = "failed" if bad is not None else "skipped" if skipped is not None else "passed"
    return check(str(case.get("name")), status, float(case.get("time") or 0), **numbers)


# --- compute-sanitizer ---------------------------------------------------------------------------


def sanitize(tool: str, work: Path) -> Check:
    """Runs one tool over the program that launches every kernel."""
    name = f"compute-sanitizer {tool}"
    program = shutil.which("compute-sanitizer")
    if program is None:
        return check(name, "skipped", why="compute-sanitizer is not on PATH")
    start, words = time.perf_counter(), ("--error-exitcode", "99", "--print-limit", "20")
    try:
        done = run_python(
            *LAUNCH_ALL,
            tool=(program, "--tool", tool, *words),
            # Without torch's pool of memory, each tensor has bounds of its own.
            env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            timeout=150,
        )
    except subprocess.TimeoutExpired:
        return check(name, "failed", 150.0, why="took more than 150 s")
    log = done.stdout + done.stderr
    (work / f"{tool}.log").write_text(log)
    summary = [line for line in log.splitlines() if "SUMMARY" in line]
    seconds = time.perf_counter() - start
    if any(words in log for words in CANNOT_ATTACH) and "launched every kernel" not in log:
        return check(name, "skipped", seconds, why=log[-500:])
    passed = done.returncode == 0 and "launched every kernel" in log
    why = {} if passed else {"why": log[-1500:]}
    return check(name, "passed" if passed else "failed", seconds, summary=summary, **why)


def launch_all(device: str) -> Check:
    """Runs that program by itself."""
    done = run_python(*LAUNCH_ALL, device)
    status = "passed" if done.returncode == 0 else "failed"
    return check("launch every kernel", status, what=(done.stdout + done.stderr)[-500:].strip())


# --- the report ----------------------------------------------------------------------------------


def measure(device: str) -> tuple[dict[str, Any] | None, Check]:
    """Takes the measurements; kernels that only move memory must come near the copy."""
    name = f"memory-bound kernels run at {LEAST_SHARE} of the copy's speed or more"
    start = time.perf_counter()
    try:
        speed = measure_kernels(device)
        speed |= {"steps": measure_steps(device), "paths": measure_paths(device)}
    except Exception:  # The report must be written whatever happens.
        return None, check(name, "failed", why=traceback.format_exc()[-2000:])
    seconds, missing = time.perf_counter() - start, speed["shortfalls"]
    if device == "cpu":
        return speed, check(name, "skipped", seconds, why="a dry run on the CPU")
    return speed, check(name, "failed" if missing else "passed", seconds, why=missing)


def summary(report: dict[str, Any]) -> str:
    """Returns what a person reads: the tables of the page, and what failed or did not run."""
    checks: list[Check] = report["checks"]
    lines = [] if report["speed"] is None else [gpu_report(report)]
    for one in checks:
        if one["status"] == "failed":
            lines.append(f"failed: {one['name']}: {str(one.get('why', ''))[:300]}")
    skipped = Counter(str(one["why"])[:200] for one in checks if one["status"] == "skipped")
    lines += [f"skipped: {number}, {why}" for why, number in skipped.items()]
    count = Counter(one["status"] for one in checks)
    totals = ", ".join(f"{count[status]} {status}" for status in ("passed", "failed", "skipped"))
    return "\n".join([*lines, f"{totals}, {report['seconds']:.0f} s"])


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--out", type=Path,
        help="folder of the JSON and the logs; default: $OUT, else benchmarks/results, which the "
        "page shows, or runs/results for a dry run",
    )  # fmt: skip
    made.add_argument("--commit", help="what was built, where git cannot say")
    made.add_argument("--dry-run-on-cpu", action="store_true", help="the steps, on the CPU")
    args = made.parse_args()
    usual = WORK / "results" if args.dry_run_on_cpu else RESULTS
    args.out = args.out or Path(os.environ.get("OUT") or usual)
    return args


def main() -> int:
    """Runs all checks and measurements; returns the exit code."""
    args = arguments()
    device = "cpu" if args.dry_run_on_cpu else "cuda"
    if device == "cuda" and not (torch.cuda.is_available() and diffflow_ext.build_info()["cuda"]):
        print("check: needs a CUDA device and a build with CUDA kernels; `diffflow doctor`")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = run_everything(device, Path(folder), args.commit)
        failed = [c for c in report["checks"] if c["status"] == "failed"]
        if failed:
            logs = args.out / f"{report['name']}-logs"
            shutil.copytree(folder, logs, dirs_exist_ok=True)
    target = args.out / f"{report['name']}.json"
    write_json(target, report)
    print(summary(report))
    print(f"report: {target}")
    return 1 if failed else 0


def run_everything(device: str, work: Path, commit: str | None) -> dict[str, Any]:
    """Returns the report."""
    start = time.perf_counter()
    about = circumstances(commit, device)
    model = str(about["machine"]["gpu"] or "cpu dry run").lower().replace(" ", "-")
    checks = [launch_all(device)]
    print("check: tests", flush=True)
    checks += run_tests(work)
    print("check: compute-sanitizer", flush=True)
    if device == "cuda":
        checks += [sanitize(tool, work) for tool in TOOLS]
    print("check: measurements", flush=True)
    speed, verdict = measure(device)
    checks.append(verdict)
    return {
        "name": f"gpu-check-{model}-{about['machine']['time'][:10]}",
        **about,
        "checks": checks,
        "speed": speed,
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
