"""The commands of the program: one class each, whose fields are the flags."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from diffflow_ext.data import FETCHABLE, describe_sets, fetch
from diffflow_ext.data.column import Column
from diffflow_ext.data.formats.columns import listed
from diffflow_ext.figures import SUFFIXES, save
from diffflow_ext.training.config.rules import SEED, Maybe, Section, whole
from diffflow_ext.training.evaluation.evaluate import evaluate
from diffflow_ext.training.evaluation.extractor import make_extractor
from diffflow_ext.training.evaluation.given import parse_given
from diffflow_ext.training.evaluation.loaded_run import load_run
from diffflow_ext.training.evaluation.pictures import figure_of_samples, picks_of
from diffflow_ext.training.evaluation.run_data import open_run_data, rows_of_run, warn_of_doubts
from diffflow_ext.training.evaluation.sample_file import check_target, endings, write_samples
from diffflow_ext.training.evaluation.sampling import MAX_SAMPLES
from diffflow_ext.training.evaluation.scoring import pick_estimator
from diffflow_ext.training.evaluation.table import format_table
from diffflow_ext.training.loop.callbacks import CallbackError
from diffflow_ext.training.loop.session import Interrupted
from diffflow_ext.training.loop.step import TrainingError
from diffflow_ext.training.parallel.distributed import ProcessError, is_first, joined
from diffflow_ext.training.recipes.base import EvaluationSettings
from diffflow_ext.training.store.checkpoint import CheckpointError
from diffflow_ext.training.store.dataset import DatasetRecord
from diffflow_ext.training.store.directory import RunDirectory
from diffflow_ext.training.store.examples import EXAMPLES

from .doctor import examine
from .figures import Animate, Compare
from .flags import DeviceName, RunArgument, Sampler, parse, refuse_unknown
from .impute import Impute
from .report import Report
from .training import Switch, parse_train

SCORE_ENDINGS = (".csv", ".npy")
SETS_TO_FETCH = f"{', '.join(FETCHABLE)}."
#: Paths of a bound are counted below it.
MAX_PATHS = 2**20 - 1
#: The delay of processes after another has failed: torchrun reports the first that ends.
SECONDS_BEHIND = 2


def run(command: str, words: Sequence[str]) -> int:
    """Runs a command; returns its exit code."""
    return parse_command(command, words)()


def parse_command(command: str, words: Sequence[str]) -> Callable[[], int]:
    """Returns a command with its flags, to be called."""
    if command == "train":
        return parse_train(list(words))
    kind = COMMANDS[command]
    parsed, unknown = parse(kind, words, command)
    refuse_unknown(unknown, _names(kind), command)
    return parsed


def exit_code(error: BaseException) -> int:
    """Returns the exit code for an error; 0 for errors that are defects of the program."""
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, ProcessError):
        time.sleep(SECONDS_BEHIND)
        return 1
    if isinstance(error, (TrainingError, CallbackError)):
        return 1
    if _out_of_memory(error):
        return 1
    user = (ValueError, TypeError, ImportError, CheckpointError, OSError)
    return 2 if isinstance(error, user) else 0


def in_words(error: BaseException) -> str:
    """Returns the message of an error."""
    if _out_of_memory(error):
        return f"out of memory: {error}; take a smaller network, batch or number of samples"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror.lower()}"
    return str(error) or type(error).__name__


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has a class of its own only for that of GPUs."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@dataclass(frozen=True)
class Sample(Section):
    """Draw samples in the units of the data."""

    op: ClassVar[str] = "sample"
    #: The run directory, or an example (see: diffflow data list).
    run: RunArgument
    #: A .npy or .csv file; for images .npz or .npy, bytes of shape (n, H, W, C).
    out: Annotated[str, arg(metavar="FILE")]
    #: Number of samples.
    n: Annotated[int, whole(1, MAX_SAMPLES)] = 10000
    #: Seed.
    seed: Annotated[int, SEED] = 0
    #: What the samples are conditioned on, such as label=3, label=cat, or cut=Ideal,price=500.
    given: Annotated[Maybe[str], arg(metavar="NAME=VALUE")] = None
    #: Picture of the samples beside the test data.
    figure: Annotated[Maybe[str], arg(metavar="FILE.png")] = None
    #: Columns of a table in the picture, such as a,b; None takes all, of which five are drawn.
    columns: Annotated[Maybe[str], arg(metavar="NAMES")] = None
    #: Where the data of the run are now, if they have moved, for the picture.
    data: Annotated[Maybe[str], arg(metavar="PATH")] = None
    #: Replace existing files.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"
    sampler: Sampler = field(default_factory=Sampler)

    def __call__(self) -> int:
        """Draws and writes; returns the exit code."""
        with joined(self.device) as world:
            run = load_run(self.run, self.device)
            check_target(self.out, endings(run.record.encoding), overwrite=self.overwrite)
            if self.figure:
                check_target(self.figure, SUFFIXES, overwrite=self.overwrite)
                picks_of("sample", run, self.columns)
            elif self.columns is not None:
                raise ValueError("sample: --columns: expected with --figure FILE, which it is of")
            dataset = open_run_data(run, self.data, warn=world.writes) if self.figure else None
            options = self.sampler.options()
            options |= {"seed": self.seed, "world": world}
            given = None if self.given is None else parse_given(self.given)
            samples, columns, values = run.drawn_columns(self.n, given, **options)
            if not world.writes:
                return 0
        if not self.out.lower().endswith(".csv") and run.record.encoding is not None:
            columns = run.record.encoding.columns  # An array has the columns of the data alone.
            values = values[:, : len(columns)]
        write_samples(self.out, values, columns)
        if self.figure and dataset is not None:
            save(figure_of_samples(dataset, samples, self.columns), self.figure)
        print(f"{self.out}: {self.n} samples of {_contents(run.record)}{_said(run.record)}")
        if self.figure:
            print(f"{self.figure}: the samples beside the test data")
        return 0


@dataclass(frozen=True)
class Score(Section):
    """Write log p of each row of a file, or of each image."""

    op: ClassVar[str] = "score"
    #: The run directory, or an example (see: diffflow data list).
    run: RunArgument
    #: A table with the columns of the run, in any order and others beside them; or images, which
    #: are taken in alphabetical order.
    data: Annotated[Positional[str], arg(metavar="DATA")]
    #: A .csv or .npy file: a number for each row, in nats, in the units of the data; a .csv of
    #: images also has the names of their files.
    out: Annotated[str, arg(metavar="FILE")]
    #: exact (flow, ffjord), ode (all others), bound (all but dinof), or importance_weighted
    #: (diffflow); None takes the density, of images the bound. Bounds of rows are random numbers,
    #: and so are all scores of tables with discrete columns or missing values.
    estimator: Annotated[Maybe[str], arg(metavar="NAME")] = None
    #: Paths K of the importance-weighted bound (diffflow), which is taken then.
    num_paths: Annotated[int, whole(1, MAX_PATHS)] = 1
    #: Steps N of the bound (diffflow); None takes those of the run.
    num_steps: Annotated[Maybe[int], whole(1)] = None
    #: What all rows are conditioned on, such as label=3; None takes their own columns or classes.
    given: Annotated[Maybe[str], arg(metavar="NAME=VALUE")] = None
    #: Array to read from an .npz file with several.
    key: Annotated[Maybe[str], arg(metavar="NAME")] = None
    #: Seed.
    seed: Annotated[int, SEED] = 0
    #: Replace an existing file.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"

    def __call__(self) -> int:
        """Computes and writes; returns the exit code."""
        with joined(self.device) as world:
            run = load_run(self.run, self.device)
            check_target(self.out, SCORE_ENDINGS, overwrite=self.overwrite, source=self.data)
            rows = rows_of_run(run, self.data, self.key, conditions=self.given is None)
            settings = EvaluationSettings(self.num_steps, self.num_paths)
            title = pick_estimator(run.recipe, self.estimator, settings).title
            if run.record.encoding is not None and run.record.encoding.is_random:
                title += ", one draw of noise for discrete and missing values"
            names = ("estimator", "num_steps", "num_paths", "seed")
            options = {name: getattr(self, name) for name in names}
            options["given"] = rows.given if self.given is None else parse_given(self.given)
            scores = run.log_prob(rows.values, world=world, **options)
            if not world.writes:
                return 0
        warn_of_doubts(self.data, rows)
        _write_scores(self.out, scores, rows.files)
        lowest = int(scores.argmin())
        where = rows.files[lowest] if rows.files else f"row {lowest} (counted from 0)"
        print(
            f"{self.out}: log p of {len(scores):,} rows in nats ({title}), mean"
            f" {float(scores.mean()):.4g}, lowest {float(scores[lowest]):.4g} in {where}"
        )
        return 0


@dataclass(frozen=True)
class Evaluate(Section):
    """Compare a model with held-out data; write RUN/evaluation.json and RUN/figures/."""

    op: ClassVar[str] = "evaluate"
    #: The run directory, or an example (see: diffflow data list).
    run: RunArgument
    #: Largest number of samples and of data; None takes 10000, for images 1000.
    n: Annotated[Maybe[int], whole(2, MAX_SAMPLES)] = None
    #: Seed.
    seed: Annotated[int, SEED] = 0
    #: Paths K of the importance-weighted bound (diffflow); 1 for none.
    num_paths: Annotated[int, whole(1, MAX_PATHS)] = 1
    #: Number of data for the density of the ODE; 0 for none; None takes 2000, for images 64.
    ode_n: Annotated[Maybe[int], whole(0, MAX_SAMPLES)] = None
    #: Features of images (see: diffflow extractor), for distances between samples and data.
    extractor: Annotated[Maybe[str], arg(metavar="FILE")] = None
    #: Where the data of the run are now, if they have moved.
    data: Annotated[Maybe[str], arg(metavar="PATH")] = None
    #: Another folder for the results than RUN, which then stays as it is.
    out: Annotated[Maybe[str], arg(metavar="FOLDER")] = None
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"
    #: Draw pictures.
    figures: bool = True
    sampler: Sampler = field(default_factory=Sampler)

    def __call__(self) -> int:
        """Evaluates and prints the table; returns the exit code."""
        names = ("seed", "num_paths", "ode_n", "extractor", "data", "out", "device", "figures")
        options = {name: getattr(self, name) for name in names}
        result = evaluate(self.run, self.n, **options, **self.sampler.options())
        if is_first():
            print(format_table(result))
            pictures = RunDirectory(self.out or self.run).figures
            if self.figures and pictures.is_dir():  # Without matplotlib there are none.
                print(f"pictures: {pictures}")
        return 0


@dataclass(frozen=True)
class DataSets:
    """List the data sets and the trained runs to try, or download a set."""

    #: list: a set on each line, then the runs; fetch: download one, checked by SHA-256.
    action: Annotated[Positional[Literal["list", "fetch"]], arg(metavar="list|fetch")]
    name: Annotated[Positional[Maybe[str]], arg(metavar="[NAME]", help=SETS_TO_FETCH)] = None
    #: Folder for the files; None takes the one in which train looks.
    to: Annotated[Maybe[str], arg(metavar="DIR")] = None

    def __call__(self) -> int:
        """Lists or fetches; returns the exit code."""
        if (self.action == "fetch") != (self.name is not None):
            raise ValueError("data: expected `diffflow data list` or `diffflow data fetch NAME`")
        if self.name is not None:
            print(fetch(self.name, self.to))
            return 0
        sets = describe_sets()
        width = max(map(len, sets))
        for name, description in [*sets.items(), *EXAMPLES.items()]:
            print(f"{name.ljust(width)}  {description}")
        return 0


@dataclass(frozen=True)
class ExtractorTraining(Section):
    """Train a classifier on labelled images; its features compare samples with data."""

    op: ClassVar[str] = "extractor"
    #: A set of images with labels.
    data: Annotated[Positional[str], arg(metavar="DATA")]
    #: A .safetensors file.
    out: Annotated[str, arg(metavar="FILE")]
    #: Side in pixels as in the runs; None takes that of the set.
    image_size: Annotated[Maybe[int], whole(1, 4096)] = None
    #: Seed.
    seed: Annotated[int, SEED] = 0
    #: Number of epochs.
    epochs: Annotated[int, whole(1)] = 3
    #: Replace an existing file.
    overwrite: Switch = False

    def __call__(self) -> int:
        """Trains and writes; returns the exit code."""
        check_target(self.out, (".safetensors",), overwrite=self.overwrite)
        size, seed, epochs = self.image_size or 0, self.seed, self.epochs
        print(make_extractor(self.data, self.out, image_size=size, seed=seed, epochs=epochs))
        return 0


@dataclass(frozen=True)
class Doctor:
    """Show what this installation has, and check it."""

    def __call__(self) -> int:
        """Prints the findings; returns the exit code."""
        lines, healthy = examine()
        print("\n".join(lines))
        return 0 if healthy else 1


COMMANDS: dict[str, Any] = {
    "sample": Sample,
    "score": Score,
    "impute": Impute,
    "evaluate": Evaluate,
    "compare": Compare,
    "animate": Animate,
    "report": Report,
    "data": DataSets,
    "extractor": ExtractorTraining,
    "doctor": Doctor,
}


def _contents(record: DatasetRecord) -> str:
    """Returns the names of the first columns and the number of others, or the shape of images."""
    return listed(record.columns) or " x ".join(map(str, record.event_shape))


def _said(record: DatasetRecord) -> str:
    """Returns which number is which class, if classes have names."""
    named = record.conditions is not None and record.conditions.classes
    return f", given {record.conditions.describe()}" if named and record.conditions else ""


def _write_scores(path: str, scores: Tensor, files: Sequence[str]) -> None:
    """Writes scores; in text, of images, beside the names of their files."""
    columns, values = [Column("log_prob", "continuous")], scores.unsqueeze(1)
    if files and path.lower().endswith(".csv"):
        # Names of files are bytes, perhaps of no text.
        names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in files]
        columns = [Column("file", "category", values=tuple(names)), *columns]
        values = torch.cat([torch.arange(len(files)).unsqueeze(1), values], dim=1)
    write_samples(path, values, columns)


def _names(kind: Any) -> list[str]:
    names = [item.name for item in fields(kind)]
    return names + [item.name for item in fields(Sampler)] if "sampler" in names else names
