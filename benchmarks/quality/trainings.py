"""Trainings whose time is measured, each done once.

Times are seconds of the processor, never of the clock: other work may share the machine. A
training that is finished is found in its folder and not done again, so that a comparison can be
cut off and go on. One that was cut off begins anew, because nobody knows what it took.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffflow_ext.training import Config, Interrupted, LoadedRun, configure, load_run, train

from ..common.files import write_json
from ..common.machine import cpu_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Training:
    """What is trained.

    Arguments:
        model: The name of a model.
        fields: Fields of its configuration by their own names; the others keep their defaults.
    """

    model: str
    fields: Mapping[str, Any]

    def of_steps(self, steps: int) -> Training:
        return self.having(steps=steps)

    def having(self, **fields: Any) -> Training:
        return replace(self, fields={**self.fields, **fields})

    def config(self) -> Config:
        """The configuration, on one thread, of which the last state is saved."""
        quiet: dict[str, Any] = {"threads": 1, "save_every": 10**6, "keep_checkpoints": 1}
        return configure(self.model, **quiet | dict(self.fields))


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Arguments:
        run: Its run directory.
        training: What was asked for.
        steps: The steps that were taken; fewer than asked for where the time was up.
        cpu_seconds: What they took, with the loading of the data.
    """

    run: Path
    training: Training
    steps: int
    cpu_seconds: float

    def load(self) -> LoadedRun:
        """The model, ready to be measured."""
        return load_run(self.run)

    def head(self) -> dict[str, Any]:
        """What a report says of the training."""
        asked = self.training.fields["steps"]
        return {
            "parameters": sum(p.numel() for p in self.load().model.parameters()),
            "steps": self.steps,
            "steps_asked_for": asked,
            "cut_off": self.steps < asked,
            "train_cpu_seconds": self.cpu_seconds,
            "config": tomllib.loads((self.run / "config.toml").read_text()),
        }


def trained(training: Training, folder: Path, cap_minutes: float | None = None) -> Trained:
    """Trains a model in folder/run, unless that is done, and stops it at a limit of its time."""
    run = folder / "run"

    def train_it() -> dict[str, Any]:
        start, time_is_up = cpu_seconds(), []
        with _alarm(60 * cap_minutes if cap_minutes else 0.0, time_is_up):
            try:
                step = train(training.config(), run, overwrite=True, progress=False).step
            except Interrupted:
                if not time_is_up:
                    raise KeyboardInterrupt(f"{run}: interrupted; it begins anew") from None
                step = load_run(run).step
        return {"steps": step, "cpu_seconds": cpu_seconds() - start}

    return Trained(run, training, **once(folder / "training.json", train_it))


@contextmanager
def _alarm(seconds: float, rung: list[bool]) -> Iterator[None]:
    """Asks the training to save and stop when the processor has worked for so long; 0: never."""
    outside = signal.getsignal(signal.SIGINT)

    def ring(number: int, frame: object) -> None:
        if signal.getsignal(signal.SIGINT) is outside:  # Before or after the steps: wait.
            signal.setitimer(signal.ITIMER_PROF, 0.1)
            return
        rung.append(True)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def steps_in(
    training: Training, minutes: float, folder: Path, pilot: int, growth: float = 1.0
) -> int:
    """How many steps of a training fit into some minutes, from a pilot; measured once.

    `growth` is how much more a step costs on average than one of the pilot.
    """

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            # The first run also loads libraries, which would hide most of the cost of steps.
            costs = [
                _cost(training.of_steps(n), Path(scratch) / name)
                for name, n in (("warm", 1), ("one", 1), ("more", pilot + 1))
            ]
        return {"seconds_per_step": max(costs[2] - costs[1], 1e-6) / pilot}

    rate = once(folder / "pilot.json", measure)["seconds_per_step"]
    return max(1, round(60 * minutes / (rate * growth)))


def _cost(training: Training, run: Path) -> float:
    start = cpu_seconds()
    train(training.config(), run, progress=False)
    return cpu_seconds() - start


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a file holds; if there is none, measures and writes it."""
    if not path.exists():
        write_json(path, measure())
    return json.loads(path.read_text())
