"""What a reader needs to judge a number and to measure it again: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from diffflow_ext import build_info

from .files import ROOT

PACKAGES = (
    *("numpy", "scipy", "torch", "triton", "torchsde", "zuko", "normflows", "torchdiffeq"),
    *("scikit-learn", "jax", "diffrax", "optax", "pytest-benchmark"),
)


def machine() -> dict[str, Any]:
    """Processor, threads, versions of packages, build and commit."""
    commit = output_of("git", "rev-parse", "HEAD")
    # Reports and pages that a run before this one has written change nothing of what is measured.
    written = ("benchmarks/results", "docs/*.md", "docs/*.png")
    exclude = (f":(exclude,top){path}" for path in written)
    changed = ("git", "status", "--porcelain", "--", ":/", *exclude)
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "build": build_info(),
        "commit": commit,
        "dirty": bool(output_of(*changed)) if commit else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output_of(*words: str) -> str:
    """What a command prints, "" where it fails or is not there."""
    try:
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
