"""What the comparisons share: one thread, CPU time, trainings and measurements that are done once.

Times are seconds of the processor, never of the clock: other work may share the machine. A part
that is finished is found in its folder and not done again, so that a long job can be cut off and
go on; what `Interrupted` left goes on too, and a training that was killed begins anew, because
nobody knows what it took.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext import build_info
from diffflow_ext.training import Interrupted, LoadedRun, TrainConfig, load_run, train
from diffflow_ext.training.config.fields import traits
from diffflow_ext.training.config.rules import field_rule

RESULTS = Path(__file__).parent / "results"
WITHOUT_RESULTS = (":/", ":(exclude,top)benchmarks/results")
WORK = Path(__file__).parent.parent / "runs"
PACKAGES = (
    *("numpy", "scipy", "torch", "torchsde", "zuko", "normflows", "torchdiffeq", "scikit-learn"),
    "pytest-benchmark",
)
# What no run of a comparison needs: the last state is enough.
QUIET: Mapping[str, Any] = {"threads": 1, "save_every": 10**6, "keep_checkpoints": 1}


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return time.process_time() + sum(os.times()[2:4])


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Arguments:
        run: Its run directory.
        config: What was asked for.
        steps: The steps that were taken; fewer than asked for where the time was up.
        cpu_seconds: What they took, with the loading of the data.
    """

    run: Path
    config: TrainConfig
    steps: int
    cpu_seconds: float

    def load(self) -> LoadedRun:
        """The model, ready to be measured."""
        return load_run(self.run)

    def head(self) -> dict[str, Any]:
        """What a report says of the training."""
        loaded = self.load()
        return {
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "steps": self.steps,
            "steps_asked_for": self.config.steps,
            "cut_off": self.steps < self.config.steps,
            "train_cpu_seconds": self.cpu_seconds,
            "config": fields_read(loaded.config),
        }


def fields_read(config: TrainConfig) -> dict[str, Any]:
    """The fields of a configuration that its run reads."""
    present = traits(config)
    return {
        item.name: getattr(config, item.name)
        for item in fields(TrainConfig)
        if field_rule(item).used_by(present)
    }


def trained(config: TrainConfig, folder: Path, cap_minutes: float | None = None) -> Trained:
    """Trains a model in folder/run, unless that is done, and stops it at a limit of its time."""
    run, notes = folder / "run", folder / "training.json"
    sessions = json.loads(notes.read_text()) if notes.exists() else []
    if not (sessions and sessions[-1]["done"]):
        known = bool(sessions) and sessions[-1]["step"] == _saved_step(run)
        sessions = sessions if known else []
        spent = sum(one["cpu_seconds"] for one in sessions)
        left = None if cap_minutes is None else max(60 * cap_minutes - spent, 1e-3)
        sessions.append(_session(config, run, left, resume=known))
        write_json(notes, sessions)
        if not sessions[-1]["done"]:
            raise KeyboardInterrupt(f"{run}: interrupted; the same command goes on")
    total = sum(one["cpu_seconds"] for one in sessions)
    return Trained(run, config, sessions[-1]["step"], total)


def _session(
    config: TrainConfig, run: Path, left: float | None, *, resume: bool
) -> dict[str, Any]:
    start, time_is_up = cpu_seconds(), []
    with _alarm(left, time_is_up):
        try:
            done = train(config, run, resume=resume, overwrite=not resume, progress=False)
            step, ended = done.step, True
        except Interrupted:
            step, ended = load_run(run).step, bool(time_is_up)
    return {"step": step, "done": ended, "cpu_seconds": cpu_seconds() - start}


@contextmanager
def _alarm(seconds: float | None, rung: list[bool]) -> Iterator[None]:
    """Asks the training to save and stop when the processor has worked for so long."""

    outside = signal.getsignal(signal.SIGINT)

    def ring(number: int, frame: object) -> None:
        if signal.getsignal(signal.SIGINT) is outside:  # Before or after the steps: wait.
            signal.setitimer(signal.ITIMER_PROF, 0.1)
            return
        rung.append(True)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _saved_step(run: Path) -> int | None:
    try:
        return load_run(run).step
    except ValueError:
        return None


def steps_in(
    config: TrainConfig, minutes: float, folder: Path, pilot: int, growth: float = 1.0
) -> int:
    """How many steps of a training fit into some minutes, from a pilot; measured once.

    `growth` is how much more a step costs on average than one of the pilot.
    """

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            costs = [_cost(config, steps, Path(scratch)) for steps in (1, pilot + 1)]
        return {"seconds_per_step": max(costs[1] - costs[0], 1e-6) / pilot}

    rate = once(folder / "pilot.json", measure)["seconds_per_step"]
    return max(1, round(60 * minutes / (rate * growth)))


def _cost(config: TrainConfig, steps: int, scratch: Path) -> float:
    start = cpu_seconds()
    train(replace(config, steps=steps), scratch / str(steps), progress=False)
    return cpu_seconds() - start


# --- files ---------------------------------------------------------------------------------------


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a file holds; if there is none, measures and writes it."""
    if not path.exists():
        write_json(path, measure())
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Writes a file that readers find whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(aside, path)


def write_samples(path: Path, samples: Mapping[str, Tensor | np.ndarray]) -> None:
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


# --- machine -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a reader needs to judge the times and to repeat the numbers."""
    commit = _git("rev-parse", "HEAD")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "build": build_info(),
        "commit": commit,
        # Reports that a run before this one has written change nothing of what is measured.
        "dirty": bool(_git("status", "--porcelain", "--", *WITHOUT_RESULTS)) if commit else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


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


def _git(*words: str) -> str:
    found = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, check=False, capture_output=True, text=True
    )
    return found.stdout.strip()


def command(script: str, words: Sequence[str]) -> str:
    """Returns the command line of a report, without the places where its files went."""
    kept, places = [], ("--out", "--results")
    for before, word in zip(["", *words], words, strict=False):
        if word not in places and before not in places:
            kept.append(word)
    return shlex.join(["python", f"benchmarks/{script}", *kept])
