"""Programs built from a copy of csrc with a planted bug, and what they say."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from helpers import CSRC, TESTS, compile_cpp
from host_device import OPTIONS

#: Schedules of the emulation of a GPU: emu::kNumSchedules.
SCHEDULES = range(8)


@dataclass(frozen=True)
class Bug:
    """A change of one place in csrc."""

    file: str
    right: str
    wrong: str


def copy_with(folder: Path, bug: Bug | None) -> Path:
    """A copy of csrc with a bug planted."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    if bug is not None:
        source = (csrc / bug.file).read_text()
        assert source.count(bug.right) == 1, "the place to change is gone"
        (csrc / bug.file).write_text(source.replace(bug.right, bug.wrong))
    return csrc


def build_probe(folder: Path, name: str, bug: Bug | None, *options: str) -> Path:
    """A program of tests/native that runs kernels on the host, from a copy of csrc."""
    includes = (f"-I{copy_with(folder, bug)}", f"-I{TESTS / 'native'}")
    # Warnings stay on for right sources; a bug may leave a name unused.
    quiet = () if bug is None else ("-w",)
    source = TESTS / "native" / name
    return compile_cpp([source], folder / "probe", [*OPTIONS, *includes, *quiet, *options])


def run(program: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"ASAN_OPTIONS": "detect_leaks=0", **env}
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, env=env,
    )  # fmt: skip


def answer(program: Path, *arguments: object) -> str:
    """What a program says, or what a sanitizer says in its place."""
    done = run(program, *arguments, OMP_NUM_THREADS="1")
    return done.stdout.strip() if done.returncode == 0 else done.stderr
