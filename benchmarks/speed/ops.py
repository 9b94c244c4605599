"""What the fused ops cost by themselves, beside eager and compiled twins in plain torch.

    python benchmarks/speed/ops.py                       # runs benchmarks/speed/test_ops.py, two minutes
    python benchmarks/speed/ops.py --read FILE.json      # a report of pytest-benchmark that is there
    python benchmarks/speed/ops.py --only "em_step and not compiled" --seconds 0.1

One thread, values without gradients. Writes benchmarks/results/ops_1.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.runs import RESULTS, command, machine, write_json
from .op_variants import SIZES

HERE = Path(__file__).resolve().parent


def run(seconds: float, only: str | None) -> dict[str, Any]:
    """Runs test_ops.py on one thread and returns pytest-benchmark's report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        words = [
            *(sys.executable, "-m", "pytest", "-q", str(HERE / "test_ops.py")),
            *("--rootdir", str(HERE.parent), "-c", str(HERE.parent / "pyproject.toml")),
            *("--benchmark-only", f"--benchmark-json={report}"),
            *(f"--benchmark-max-time={seconds}", "--benchmark-warmup=on"),
            *("--benchmark-warmup-iterations=100",),
            *(("-k", only) if only else ()),
        ]
        done = subprocess.run(
            words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"ops: expected pytest to succeed, got\n{done.stdout[-3000:]}")
        return json.loads(report.read_text())


def condensed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Medians and quartiles of each op and size by way, and how many times the fused one's."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in report["benchmarks"]:
        about, stats = one["params"], one["stats"]
        found.setdefault((about["op"], about["size"]), {})[about["way"]] = {
            "median": stats["median"],
            "quartiles": [stats["q1"], stats["q3"]],
            "rounds": stats["rounds"],
        }
    return [
        {
            "op": op,
            "size": size,
            "shape": SIZES[size],
            "seconds": ways,
            "over_fused": {
                way: one["median"] / ways["fused"]["median"]
                for way, one in ways.items()
                if way != "fused" and "fused" in ways
            },
        }
        for (op, size), ways in found.items()
    ]


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="at most, for each")
    parser.add_argument("--only", help="an expression of pytest -k")
    parser.add_argument("--read", type=Path, help="a report of pytest-benchmark")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    report = json.loads(args.read.read_text()) if args.read else run(args.seconds, args.only)
    write_json(
        args.results / "ops_1.json",
        {
            "benchmark": "ops",
            "command": command("ops.py", words),
            "machine": machine(),
            "ops": condensed(report),
        },
    )


if __name__ == "__main__":
    main()
