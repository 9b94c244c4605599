"""The commands that draw runs: several below one another, and one as a film."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from diffflow_ext.figures import FILMS, SUFFIXES, save
from diffflow_ext.training.config.rules import SEED, Maybe, Rule, Section
from diffflow_ext.training.evaluation.loaded_run import LoadedRun, load_run
from diffflow_ext.training.evaluation.pictures import film_of_paths, path_figure
from diffflow_ext.training.evaluation.sample_file import check_target

from .flags import DeviceName, RunArgument
from .training import Switch

Pair = Annotated[Maybe[str], arg(metavar="NAME,NAME")]
SOME = Rule("one run directory or more", lambda runs: len(runs) > 0)


@dataclass(frozen=True)
class Compare(Section):
    """Draw both processes of runs of the same data, one below the other."""

    op: ClassVar[str] = "compare"
    #: Run directories, or examples (see: diffflow data list).
    runs: Annotated[Positional[tuple[str, ...]], SOME, arg(metavar="RUN [RUN ...]")]
    #: A .png, .pdf or .svg file.
    out: Annotated[str, arg(metavar="FILE")]
    #: The two columns of a table that are drawn; None takes the first two of numbers.
    columns: Pair = None
    #: Where the data are now, if they have moved.
    data: Annotated[Maybe[str], arg(metavar="PATH")] = None
    #: Seed of the samples.
    seed: Annotated[int, SEED] = 0
    #: Replace an existing file.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"

    def __call__(self) -> int:
        """Draws; returns the exit code."""
        check_target(self.out, SUFFIXES, overwrite=self.overwrite)
        loaded = {name: load_run(run, self.device) for name, run in _names(self.runs).items()}
        runs = {_with_model(name, run): run for name, run in loaded.items()}
        save(path_figure(runs, self.data, seed=self.seed, columns=self.columns), self.out)
        print(f"{self.out}: both processes of {', '.join(runs)}")
        return 0


@dataclass(frozen=True)
class Animate(Section):
    """Write a film of both processes of a run."""

    op: ClassVar[str] = "animate"
    #: The run directory, of points or a table with two columns or more, or an example (see:
    #: diffflow data list).
    run: RunArgument
    #: A .gif file, or .mp4, which needs ffmpeg.
    out: Annotated[str, arg(metavar="FILE")]
    #: The two columns of a table that are drawn; None takes the first two of numbers.
    columns: Pair = None
    #: Where the data are now, if they have moved.
    data: Annotated[Maybe[str], arg(metavar="PATH")] = None
    #: Seed of the samples.
    seed: Annotated[int, SEED] = 0
    #: Replace an existing file.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"

    def __call__(self) -> int:
        """Draws; returns the exit code."""
        check_target(self.out, FILMS, overwrite=self.overwrite)
        run = load_run(self.run, self.device)
        if run.record.is_image:
            raise ValueError(
                f"animate: {self.run}: expected a run of points or a table, got one of images; "
                "diffflow compare draws those"
            )
        film_of_paths(run, self.out, self.data, seed=self.seed, columns=self.columns)
        print(f"{self.out}: both processes of {self.run}")
        return 0


def _names(runs: tuple[str, ...]) -> dict[str, str]:
    """Returns runs by the names of their folders, or by their paths where those are equal."""
    last = [Path(run).resolve().name for run in runs]
    paths = [os.path.normpath(run) for run in runs]
    if len(set(paths)) < len(runs):
        raise ValueError(f"compare: expected each run once, got {', '.join(runs)}")
    names = last if len(set(last)) == len(runs) else paths
    return dict(zip(names, runs, strict=True))


def _with_model(name: str, run: LoadedRun) -> str:
    """Returns the name of a run with that of its model, unless it has that already."""
    model = run.config.name
    return name if model in name.lower() else f"{name} ({model})"
