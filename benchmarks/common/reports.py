"""Reports: arguments of the programs that write them, their files, and processes that help."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import WORK, write_json
from .machine import machine


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A program's arguments: its help, and where its report goes."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--results",
        type=Path,
        default=WORK / "results",
        help="folder of the report; default: runs/results, so that a trial replaces no report "
        "that the pages show (those are in benchmarks/results)",
    )
    return made


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments, and as `words` what was given."""
    given = sys.argv[1:] if words is None else list(words)
    args = parser.parse_args(given)
    args.words = given
    return args


def write_report(args: argparse.Namespace, program: str, name: str, **content: Any) -> Path:
    """Writes NAME.json with command and machine; `program` is a module below benchmarks."""
    path = args.results / f"{name}.json"
    about = {
        "benchmark": program.rpartition(".")[2],
        "command": command(program, args.words),
        "machine": machine(),
    }
    write_json(path, about | content)
    return path


def command(program: str, words: Sequence[str]) -> str:
    """The command line of a report, without the folders that its files went to."""
    short, folders = [], ("--out", "--results")
    for before, word in zip(["", *words], words, strict=False):
        if word not in folders and before not in folders:
            short.append(word)
    return shlex.join(["python", "-m", f"benchmarks.{program}", *short])


def write_samples(path: Path, samples: Mapping[str, Any]) -> None:
    """Writes samples for pictures: bytes stay, floats are cut to 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(rows) for name, rows in samples.items()}
    small: dict[str, Any] = {
        name: rows if rows.dtype == np.uint8 else rows.astype(np.float16)
        for name, rows in arrays.items()
    }
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    with aside.open("wb") as file:
        np.savez_compressed(file, **small)
    os.replace(aside, path)


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name; of a missing one none."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def run_python(
    *words: str,
    tool: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs this Python, below a tool if there is one, with the import path of this process.

    Not in the folder of this process: `python -m` puts that first, and in a checkout it may hold
    a diffflow_ext without a compiled module.
    """
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [*tool, sys.executable, *words], cwd=folder, timeout=timeout, check=False,
            env={**os.environ, **(env or {}), "PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip
