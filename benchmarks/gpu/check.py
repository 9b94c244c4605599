"""Does the package do on this GPU what it promises, and how fast? One command, one JSON.

    benchmarks/gpu/check.sh                           builds, then runs this
    python benchmarks/gpu/check.py [--out FOLDER]     with the package installed
    python benchmarks/gpu/check.py --dry-run-on-cpu   the same steps on the CPU, to test this file

Runs the tests marked `gpu` (every op against the CPU, gradients, streams, graphs, memory) and the
four tools of compute-sanitizer over a program that launches every kernel, and measures each kernel
against a device-to-device copy. Exit code 0 only if no check fails; what cannot run on this
machine is named as skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import diffflow_ext

from . import graphs as gpu_graphs
from . import speed as gpu_speed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGES = ("torch", "numpy", "scipy", "safetensors", "triton", "pybind11", "ninja", "pytest")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: Words of compute-sanitizer where it cannot watch this machine's device.
CANNOT_ATTACH = ("Device not supported", "not supported on this", "Unable to", "unable to attach")

Check = dict[str, Any]


def check(name: str, status: str, seconds: float = 0.0, **numbers: Any) -> Check:
    """Returns one line of the report; `status` is passed, failed or skipped."""
    return {"name": name, "status": status, "seconds": round(seconds, 3), **numbers}


# --- what ran ------------------------------------------------------------------------------------


def output_of(*command: str) -> str | None:
    """Returns what a command prints, or None where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str | None]:
    """Returns the versions of the packages that count."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def circumstances(commit: str | None, device: str) -> dict[str, Any]:
    """Returns machine, versions and commit."""
    columns = "--query-gpu=name,driver_version,memory.total"
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    gpu: dict[str, Any] = {}
    if device == "cuda":
        of = torch.cuda.get_device_properties(0)
        gpu = {
            "name": of.name,
            "capability": f"{of.major}.{of.minor}",
            "multiprocessors": of.multi_processor_count,
            "memory": of.total_memory,
        }
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or output_of("git", "rev-parse", "HEAD"),
        "uncommitted": None if changed is None else bool(changed),
        "device": device,
        "gpu": gpu,
        "nvidia_smi": output_of("nvidia-smi", columns, "--format=csv,noheader"),
        "cuda_of_torch": torch.version.cuda,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "packages": versions(),
        "build": diffflow_ext.build_info(),
    }


# --- tests ---------------------------------------------------------------------------------------


def run_tests(work: Path) -> list[Check]:
    """Runs the tests marked gpu; every one is a check."""
    report = work / "tests.xml"
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"),
        *("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")),
        f"--junitxml={report}",
        *(str(ROOT / "tests" / f"{name}.py") for name in ("test_gpu", "test_gpu_graphs")),
    ]
    # Not in ROOT: its package folder has no compiled module and would come first.
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
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
    start = time.perf_counter()
    # Without torch's pool of memory, each tensor has bounds of its own.
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [
        *(program, "--tool", tool, "--error-exitcode", "99", "--print-limit", "20"),
        *(sys.executable, str(HERE / "gpu_launch_all.py")),
    ]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, timeout=150
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
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_launch_all.py"), device],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    status = "passed" if done.returncode == 0 else "failed"
    return check("launch every kernel", status, what=(done.stdout + done.stderr)[-500:].strip())


# --- the report ----------------------------------------------------------------------------------


def measure(device: str, plan: gpu_speed.Plan) -> tuple[dict[str, Any] | None, Check]:
    """Takes the measurements; kernels that only move memory must come near the copy."""
    name = f"memory-bound kernels run at {gpu_speed.LEAST_SHARE} of the copy's speed or more"
    start = time.perf_counter()
    try:
        speed = gpu_speed.measure(device, plan)
        problems = gpu_graphs.SMALL if device == "cpu" else gpu_graphs.FULL
        speed["steps_in_graphs"] = gpu_graphs.measure(device, problems)
    except Exception:  # The report must be written whatever happens.
        return None, check(name, "failed", why=traceback.format_exc()[-2000:])
    seconds, missing = time.perf_counter() - start, speed["shortfalls"]
    if device == "cpu":
        return speed, check(name, "skipped", seconds, why="a dry run on the CPU")
    return speed, check(name, "failed" if missing else "passed", seconds, why=missing)


def table(report: dict[str, Any]) -> str:
    """Returns what a person reads."""
    checks: list[Check] = report["checks"]
    lines = [] if report["speed"] is None else speed_table(report["speed"])
    for one in checks:
        if one["status"] == "failed":
            lines.append(f"failed: {one['name']}: {str(one.get('why', ''))[:300]}")
    skipped = Counter(str(one["why"])[:200] for one in checks if one["status"] == "skipped")
    lines += [f"skipped: {number}, {why}" for why, number in skipped.items()]
    count = Counter(one["status"] for one in checks)
    totals = ", ".join(f"{count[status]} {status}" for status in ("passed", "failed", "skipped"))
    return "\n".join([*lines, f"{totals}, {report['seconds']:.0f} s"])


def speed_table(speed: dict[str, Any]) -> list[str]:
    """Returns time, speed, its share of the copy's, and the time of eager torch over it."""
    columns = (("ms", 9), ("GB/s", 8), ("copy", 7), ("eager", 7))
    head = "".join(f"{name:>{width}}" for name, width in columns)
    lines = [f"{'kernel':<28}{'state/net':<20}{'rows':<16}{head}"]
    for r in speed["kernels"]:
        ratio = f"{r['eager_over_kernel']:.1f}x" if "eager_over_kernel" in r else ""
        lines.append(
            f"{r['kernel']:<28}{r['state'] + '/' + r['net']:<20}"
            f"{'x'.join(map(str, r['rows'])):<16}{r['milliseconds']:>9.3f}"
            f"{r['bytes_per_second'] / 1e9:>8.0f}{r['share_of_copy']:>7.0%}{ratio:>7}"
        )
    step = speed["step_in_two_dimensions"]
    return [
        *lines,
        f"copy: {speed['copy_bytes_per_second'] / 1e9:.0f} GB/s read and written",
        f"training step, 2-D, batch {step['batch']}, N = {step['num_steps']}: DDPM "
        f"{step['ddpm_ms']:.2f} ms, DiffFlow {step['diffflow_over_ddpm']:.1f} times that, "
        f"with batched scores {step['diffflow_batched_scores_over_ddpm']:.1f} times",
        *gpu_graphs.lines(speed["steps_in_graphs"]),
    ]


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or HERE / "results"),
        help="Folder of the JSON and the logs. Default: $OUT, or benchmarks/results.",
    )
    parser.add_argument("--commit", help="What was built, where git cannot say.")
    parser.add_argument("--dry-run-on-cpu", action="store_true", help="The steps, on the CPU.")
    return parser.parse_args()


def main() -> int:
    """Runs all checks and measurements; returns the exit code."""
    args = arguments()
    device, plan = "cuda", gpu_speed.FULL
    if args.dry_run_on_cpu:
        device, plan = "cpu", gpu_speed.SMALL
    elif not (torch.cuda.is_available() and diffflow_ext.build_info()["cuda"]):
        print("gpu_check: needs a CUDA device and a build with CUDA kernels; `diffflow doctor`")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = run_everything(device, plan, Path(folder), args)
        logs = args.out / f"{report['name']}-logs"
        failed = [c for c in report["checks"] if c["status"] == "failed"]
        if failed:
            shutil.copytree(folder, logs, dirs_exist_ok=True)
    target = args.out / f"{report['name']}.json"
    target.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(table(report))
    print(f"report: {target}")
    return 1 if failed else 0


def run_everything(
    device: str, plan: gpu_speed.Plan, work: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Returns the report."""
    start = time.perf_counter()
    about = circumstances(args.commit, device)
    model = str(about["gpu"].get("name", "cpu dry run")).lower().replace(" ", "-")
    checks = [launch_all(device)]
    print("gpu_check: tests", flush=True)
    checks += run_tests(work)
    print("gpu_check: compute-sanitizer", flush=True)
    if device == "cuda":
        checks += [sanitize(tool, work) for tool in TOOLS]
    print("gpu_check: measurements", flush=True)
    speed, verdict = measure(device, plan)
    checks.append(verdict)
    return {
        "name": f"gpu-check-{model}-{about['time'][:10]}",
        **about,
        "checks": checks,
        "speed": speed,
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
