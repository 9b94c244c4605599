"""Builds a wheel for each Python from the source distribution, and uses it without a checkout.

    python -m benchmarks.wheels.check [PYTHON[:TORCH,TORCH ...] ...]

For each PYTHON (default: every python3.10 to 3.14 that pyenv or PATH has): a wheel, made from the
source distribution of the commit in an isolated build, for the CPU unless DIFFFLOW_CUDA=ON is set;
`auditwheel` says for which systems it is. For each TORCH, a version (default: that of
constraints.txt): a new virtual environment with the wheel and that torch, and `first_steps.py` in
it. Where download.pytorch.org is out of reach, torch comes from PyPI with some gigabytes of CUDA
libraries; each environment is deleted after its turn. Wheels stay in dist/. The report,
wheels.json, has an entry for each Python, which replaces that of an earlier run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.files import ROOT
from ..common.machine import output_of
from ..common.reports import parse, parser, write_report

FIRST_STEPS = Path(__file__).with_name("first_steps.py")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
PYTHONS = [f"3.{minor}" for minor in range(10, 15)]


def run(*command: str | Path, cwd: str | Path = "/", fails: bool = False, **settings: str) -> str:
    """Returns what a command prints, run outside of our checkout; with `fails`, it may fail."""
    hidden = ("DIFFFLOW_", "CUDACXX", "PYTHON", "VIRTUAL_ENV", "PYENV_VERSION")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, text=True, check=False,
        env=env | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode and not fails:
        raise SystemExit(f"{done.stdout[-6000:]}\nwheels: `{command}` failed, see above")
    return done.stdout


def pythons() -> list[str]:
    """The Pythons of this machine: of each version pyenv's newest, else that on PATH."""
    found = []
    for version in PYTHONS:
        pyenv = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
        paths = sorted(pyenv, key=lambda path: path.stat().st_mtime)
        found.append(str(paths[-1]) if paths else shutil.which(f"python{version}"))
    return list(filter(None, found))


def environment(folder: Path, python: str) -> Path:
    """A new virtual environment; returns its Python."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def source_distribution(folder: Path) -> Path:
    """Packs what is committed."""
    archive, checkout = folder / "checkout.tar", folder / "checkout"
    run("git", "-C", ROOT, "archive", "--output", archive, "HEAD")
    shutil.unpack_archive(archive, checkout)
    script = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", script, cwd=checkout)
    (sdist,) = (checkout / "dist").iterdir()
    return sdist


def build(python: str, sdist: Path, folder: Path) -> Path:
    """Builds a wheel as pip does, for this system."""
    own = environment(folder / "venv", python)
    pip = (own, "-m", "pip", "--disable-pip-version-check")
    cuda = os.environ.get("DIFFFLOW_CUDA", "OFF")
    run(*pip, "wheel", "--no-deps", "-w", folder, sdist, DIFFFLOW_CUDA=cuda)
    (raw,) = folder.glob("*.whl")
    return raw


def repair(raw: Path, folder: Path) -> Path:
    """Names a wheel after the oldest systems that it runs on."""
    run(sys.executable, "-m", "auditwheel", "repair", "-w", folder / "repaired", raw)
    (wheel,) = (folder / "repaired").glob("*.whl")
    return wheel


def use(python: str, wheel: Path, torch: str, folder: Path) -> dict[str, Any]:
    """Installs a wheel and a torch in an environment of their own, and takes the first steps."""
    own = environment(folder, python)
    pip = (own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    wanted, cpu = f"torch=={torch}", ("--index-url", CPU_WHEELS, "--retries", "0")
    run(*pip, "--no-deps", "--timeout", "10", *cpu, wanted, fails=True)
    known = run(own, "-m", "pip", "index", "versions", "torch")
    if torch not in re.findall(r"[\d.]*\d", known):
        return {"torch": torch, "result": "no such torch for this Python"}
    run(*pip, wanted, wheel)
    lines = run(own, "-W", "ignore", FIRST_STEPS).splitlines()
    return json.loads(lines[-1]) | {"result": "works"}


def examine(word: str, sdist: Path, folder: Path) -> dict[str, Any]:
    """The entry of a Python, given as PYTHON or PYTHON:TORCH,TORCH."""
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    python, _, versions = word.partition(":")
    wheel = repair(build(python, sdist, folder), folder)
    keep(wheel)
    runs = []
    for torch in (versions or pinned).split(","):
        runs.append(use(python, wheel, torch, folder / "user"))
        shutil.rmtree(folder / "user")
    return {"file": wheel.name, "bytes": wheel.stat().st_size, "runs": runs}


def keep(file: Path) -> None:
    """Copies a file to dist/."""
    (ROOT / "dist").mkdir(exist_ok=True)
    shutil.copy2(file, ROOT / "dist")


def main(words: Sequence[str] | None = None) -> None:
    """Runs the program."""
    arguments = parser(__doc__)
    arguments.add_argument("pythons", nargs="*", metavar="PYTHON[:TORCH,TORCH ...]")
    args = parse(arguments, words)
    report = args.results / "wheels.json"
    wheels = json.loads(report.read_text())["wheels"] if report.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        sdist = source_distribution(Path(folder))
        keep(sdist)
        source = {
            "commit": output_of("git", "rev-parse", "HEAD"),
            "sdist_bytes": sdist.stat().st_size,
        }
        for index, word in enumerate(args.pythons or pythons()):
            entry = source | examine(word, sdist, Path(folder, str(index)))
            print(f"wheels: {json.dumps(entry)}", flush=True)
            kind = "CUDA" if os.environ.get("DIFFFLOW_CUDA") == "ON" else "CPU"
            wheels[f"{entry['file'].split('-')[2]} {platform.machine()} {kind}"] = entry
            write_report(args, "wheels.check", "wheels", wheels=dict(sorted(wheels.items())))


if __name__ == "__main__":
    main()
