"""Builds the package for the GPU of this machine alone, by CMake, and installs it nowhere.

Needs Python's headers, pybind11, CMake and nvcc; ninja is used where it is. What was compiled
stays in build/, so that a second run compiles what has changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ..common.files import ROOT
from .section import Record

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
BY_TORCH = """
import torch
major, minor = torch.cuda.get_device_capability(0)
print(f"{torch.cuda.get_device_name(0)}, {major}.{minor}")
"""


def card() -> tuple[str, str] | None:
    """Returns name and compute capability of the first GPU, "9.0", or None where there is none."""
    for words in (NVIDIA_SMI, (sys.executable, "-c", BY_TORCH)):
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        found = re.match(r"(.+), (\d+\.\d+)$", done.stdout, re.MULTILINE)
        if found:
            return found[1], found[2]
    return None


def folder_of(device: str) -> Path:
    return ROOT / "build" / f"gpu-check-{device}"


def site_of(device: str) -> Path:
    """The folder from which sections import the package."""
    return folder_of(device) / "site"


def build(device: str, record: Record) -> None:
    """Builds for the card; for a dry run takes the module of the checkout, if it has one."""
    start, site = time.monotonic(), site_of(device)
    shutil.rmtree(site, ignore_errors=True)
    if device == "cpu" and any((ROOT / "diffflow_ext").glob("_core*.so")):
        record(built="before")
        return
    found = None if device == "cpu" else card()
    options = ["-DDIFFFLOW_CUDA=OFF"]
    if found:
        options = ["-DDIFFFLOW_CUDA=ON", f"-DDIFFFLOW_CUDA_ARCHS={_architecture(found[1])}"]
    _cmake(folder_of(device), site, options)
    shutil.copytree(
        ROOT / "diffflow_ext", site / "diffflow_ext", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )  # fmt: skip
    record(built=" ".join(options), seconds=round(time.monotonic() - start, 1))


def _architecture(capability: str) -> str:
    return capability.replace(".", "") + "-real"


def _cmake(folder: Path, site: Path, options: list[str]) -> None:
    """Configures, compiles, and copies the module to `site`."""
    import pybind11

    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    options += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DDIFFFLOW_VERSION={version[1] if version else '0.0.0'}",
    ]
    if shutil.which("ninja"):
        options += ["-G", "Ninja"]
    for words in (
        ["-S", str(ROOT), "-B", str(folder), *options],
        ["--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
        ["--install", str(folder), "--prefix", str(site)],
    ):
        subprocess.run(["cmake", *words], check=True)
