"""Peak memory of training steps, each taken by a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..common.reports import run_python
from .problem import Pair, Problem
from .variants import VARIANTS


def peak_mebibytes(
    problem: Problem, name: str | None, threads: int, steps: int = 2, library: str = "ddpm"
) -> float:
    """Peak memory of a fresh process that takes some steps of a variant, or none.

    Before, it takes a step of one sample of the variant `library`.
    """
    what = {
        "problem": asdict(problem), "name": name, "threads": threads, "steps": steps,
        "library": library,
    }  # fmt: skip
    done = run_python("-m", "benchmarks.speed.peaks", json.dumps(what))
    if done.returncode:
        raise RuntimeError(f"peak_mebibytes: {name} failed\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def take(what: dict[str, Any]) -> None:
    """The child's part: the steps, then the peak of its memory."""
    torch.set_num_threads(what["threads"])
    problem = Problem(**what["problem"])
    Pair(problem)
    # What torch, this package or a compiler load at their first call is not what is measured.
    small = Problem(dim=1, batch=1, width=1, depth=problem.depth, num_steps=problem.num_steps)
    VARIANTS[what["library"]][0](small)()
    if what["name"] is not None:
        step = VARIANTS[what["name"]][0](problem)
        for _ in range(what["steps"]):
            step()
    # getrusage would count what the parent had when it made this process.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


if __name__ == "__main__":
    take(json.loads(sys.argv[1]))
