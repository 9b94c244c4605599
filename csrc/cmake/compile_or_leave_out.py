"""Compiles code for a set of instructions, or a stand-in that holds the compiler's error.

CMake puts this program before the compiler's command:

    python compile_or_leave_out.py c++ ... -MF x.o.d -o x.o -c x.cpp
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def main(command: list[str]) -> int:
    """Runs the command, then if need be the one for the stand-in; returns the exit code."""
    done = subprocess.run(
        command, check=False, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        return 0
    name = Path(command[-1]).stem
    error = first_error(done.stderr)
    # The compiler may not know the options for these instructions, or crash on them.
    plain = [part for part in command if not part.startswith(("-mavx", "-mfma"))]
    stand_in = [*plain, f'-DDIFFFLOW_LEFT_OUT="{error}"']
    if code := subprocess.run(stand_in, check=False).returncode:
        return code
    try_again_next_time(command)
    sys.stderr.write(
        f"WARNING: diffflow_ext is being built WITHOUT its code for {name}: the compiler failed "
        f"on it ({error}). Slower code takes its place. Set CXX to another compiler, or "
        "MAX_JOBS=1 where memory ran out, and install again.\n"
    )
    return 0


def first_error(text: str) -> str:
    """Returns the first line that tells of an error, fit for a C string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    words = re.compile("error|killed|segmentation fault|please submit", re.IGNORECASE)
    line = next(filter(words.search, lines), lines[-1])
    return re.sub(r"[^ !#-\[\]-~]", "'", line)[:300]


def try_again_next_time(command: list[str]) -> None:
    """Names a file that is never there as a dependency, so that the next build compiles anew."""
    if "-MF" in command:
        dependencies = Path(command[command.index("-MF") + 1])
        dependencies.write_text(dependencies.read_text().rstrip() + " compile-this-again\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
