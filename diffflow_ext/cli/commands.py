"""The commands of the program: one class each, whose fields are the flags."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diffflow_ext.data import FETCHABLE, describe_sets, fetch
from diffflow_ext.training.config.fields import CONFIGS, Config, configure, no_such_field
from diffflow_ext.training.config.files import load_config, to_toml
from diffflow_ext.training.config.rules import Maybe
from diffflow_ext.training.evaluation.evaluate import evaluate
from diffflow_ext.training.evaluation.extractor import make_extractor
from diffflow_ext.training.evaluation.loaded_run import load_run
from diffflow_ext.training.evaluation.pictures import draw_sample_picture
from diffflow_ext.training.evaluation.report import format_table
from diffflow_ext.training.evaluation.sample_file import check_target, endings, write_samples
from diffflow_ext.training.evaluation.sampling import draw_samples
from diffflow_ext.training.loop.session import Interrupted
from diffflow_ext.training.loop.step import TrainingError
from diffflow_ext.training.loop.train import train
from diffflow_ext.training.parallel.distributed import ProcessError, is_first, joined
from diffflow_ext.training.store.checkpoint import CheckpointError
from diffflow_ext.training.store.dataset import describe_data, open_data
from diffflow_ext.training.store.directory import RunDirectory

from .doctor import examine
from .flags import Sampler, parse, refuse_unknown

C = TypeVar("C", bound=Config)
RunArgument = Annotated[Positional[str], arg(metavar="RUN")]
DeviceName = Annotated[str, arg(metavar="NAME")]
Switch = FlagCreatePairsOff[bool]
SETS_TO_FETCH = f"{', '.join(FETCHABLE)}."
#: The delay of processes after another has failed: torchrun reports the first that ends.
SECONDS_BEHIND = 2


def run(command: str, words: Sequence[str]) -> int:
    """Runs a command; returns its exit code."""
    return parse_command(command, words)()


def parse_command(command: str, words: Sequence[str]) -> Callable[[], int]:
    """Returns a command with its flags, to be called."""
    if command == "train":
        return _parse_train(list(words))
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
    if isinstance(error, TrainingError):
        return 1
    user = (ValueError, TypeError, ImportError, CheckpointError, OSError)
    return 2 if isinstance(error, user) else 0


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The directory of a run, and the source of its configuration."""

    #: The run directory.
    out: Annotated[str, arg(metavar="RUN")]
    #: Values for the flags not given.
    config: Annotated[Maybe[str], arg(metavar="FILE.toml")] = None
    #: Continue the run in RUN, if any.
    resume: Switch = False
    #: Replace the run in RUN, when the first step of the new one is done.
    overwrite: Switch = False
    #: Read the data, print the configuration and stop.
    dry_run: Switch = False


@dataclass(frozen=True, kw_only=True)
class TrainHelp(TrainOptions, Generic[C]):
    """Train a model on data."""

    values: Annotated[C, arg(name="")]


@dataclass(frozen=True)
class Sample:
    """Draw samples in the units of the data."""

    #: The run directory.
    run: RunArgument
    #: A .npy or .csv file; for images .npz or .npy, bytes of shape (n, H, W, C).
    out: Annotated[str, arg(metavar="FILE")]
    #: Number of samples.
    n: int = 10000
    #: Seed.
    seed: int = 0
    #: Picture of the samples.
    figure: Annotated[Maybe[str], arg(metavar="FILE.png")] = None
    #: Replace existing files.
    overwrite: Switch = False
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"
    sampler: Sampler = field(default_factory=Sampler)

    def __call__(self) -> int:
        """Draws and writes; returns the exit code."""
        with joined(self.device) as world:
            run = load_run(self.run, self.device)
            check_target(self.out, endings(run.record.is_image), overwrite=self.overwrite)
            if self.figure:
                check_target(self.figure, (".png", ".pdf", ".svg"), overwrite=self.overwrite)
            options = self.sampler.options()
            samples = draw_samples(run, self.n, seed=self.seed, world=world, **options)
            if not world.writes:
                return 0
        write_samples(self.out, run.record.in_data_units(samples), run.record.columns)
        if self.figure:
            draw_sample_picture(self.figure, run, samples)
        what = ", ".join(run.record.columns) or " x ".join(map(str, run.record.event_shape))
        print(f"{self.out}: {self.n} samples of {what}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Compare a model with held-out data; write RUN/evaluation.json and RUN/figures/."""

    #: The run directory.
    run: RunArgument
    #: Largest number of samples and of data; None takes 10000, for images 1000.
    n: Maybe[int] = None
    #: Seed.
    seed: int = 0
    #: Paths K of the importance-weighted bound (diffflow); 1 for none.
    num_paths: int = 1
    #: Number of data for the density of the ODE; 0 for none; None takes 2000, for images 64.
    ode_n: Maybe[int] = None
    #: Features of images (see: diffflow extractor), for distances between samples and data.
    extractor: Annotated[Maybe[str], arg(metavar="FILE")] = None
    #: auto, cpu, cuda or cuda:INDEX.
    device: DeviceName = "auto"
    #: Draw pictures.
    figures: bool = True
    sampler: Sampler = field(default_factory=Sampler)

    def __call__(self) -> int:
        """Evaluates and prints the table; returns the exit code."""
        names = ("seed", "num_paths", "ode_n", "extractor", "device", "figures")
        options = {name: getattr(self, name) for name in names}
        result = evaluate(self.run, self.n, **options, **self.sampler.options())
        if is_first():
            print(format_table(result))
        return 0


@dataclass(frozen=True)
class DataSets:
    """List the data sets, or download one."""

    #: list: a set on each line; fetch: download one, checked by SHA-256.
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
        for name, description in sets.items():
            print(f"{name.ljust(width)}  {description}")
        return 0


@dataclass(frozen=True)
class ExtractorTraining:
    """Train a classifier on labelled images; its features compare samples with data."""

    #: A set of images with labels.
    data: Annotated[Positional[str], arg(metavar="DATA")]
    #: A .safetensors file.
    out: Annotated[str, arg(metavar="FILE")]
    #: Side in pixels as in the runs; None takes that of the set.
    image_size: Maybe[int] = None
    #: Seed.
    seed: int = 0
    #: Number of epochs.
    epochs: int = 3
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
    "evaluate": Evaluate,
    "data": DataSets,
    "extractor": ExtractorTraining,
    "doctor": Doctor,
}


def _parse_train(words: list[str]) -> Callable[[], int]:
    model = words.pop(0) if words and words[0] in CONFIGS else None
    if {"-h", "--help"} & {*words}:
        kind = CONFIGS[model or "diffflow"]
        parse(TrainHelp[kind], ["--help"], f"train {kind.name}")
    options, words = parse(TrainOptions, words, "train")
    return partial(_train, options, _config(options, model, words))


def _train(options: TrainOptions, config: Config) -> int:
    if options.dry_run:
        facts = describe_data(open_data(config, warn=is_first())) if config.data.data else []
        print(to_toml(config), end="")
        # On stderr, so that the output is a file of configuration.
        for line in facts if is_first() else ():
            print(line, file=sys.stderr)
        return 0
    again = {"resume": options.resume, "overwrite": options.overwrite}
    result = train(config, options.out, **again, tell=partial(print, flush=True))
    if not is_first():
        return 0
    print(f"{options.out}: step {result.step}, {result.elapsed:.1f} s of training")
    if not result.taken:
        print("all steps had been taken before; --steps raises their number")
    print(f"next: diffflow evaluate {options.out}")
    return 0


def _config(options: TrainOptions, model: str | None, words: list[str]) -> Config:
    """Returns defaults, overridden by a file or the run to resume, overridden by flags."""
    resumed, source = RunDirectory(options.out).config, options.config
    if options.resume and resumed.exists():
        if source:
            raise ValueError(f"--config={source}: the run to resume has its own, {resumed}")
        source = str(resumed)
    base = load_config(source) if source else configure(model or "diffflow")
    if model not in (None, base.name):
        raise ValueError(f"train: {model!r}: expected {base.name!r}, the model of {source}")
    config, unknown = parse(type(base), words, f"train {base.name}", base)
    _refuse_unknown(config, unknown)
    data = config.data.data
    # The path must be absolute, for an evaluation from another folder.
    is_file = data != "" and data not in describe_sets() and Path(data).exists()
    return config.replaced(data=str(Path(data).resolve())) if is_file else config


def _refuse_unknown(config: Config, unknown: list[str]) -> None:
    """Refuses words that are neither flags of a model nor its data."""
    if not unknown:
        return
    word, data = unknown[0], config.data.data
    if word.split("=")[0] == "--model":
        raise ValueError(
            "train: --model: the model is a word: diffflow train MODEL DATA --out RUN"
        )
    if not word.startswith("-"):
        near = difflib.get_close_matches(data, CONFIGS, n=1)
        hint = f"; did you mean `diffflow train {near[0]} {word} ...`?" if near else ""
        raise ValueError(f"train: {word!r}: expected one DATA, got {data!r} too{hint}")
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    raise ValueError(f"train: {word}: {no_such_field(config, name, _names(TrainOptions))}")


def _names(kind: Any) -> list[str]:
    names = [item.name for item in fields(kind)]
    return names + [item.name for item in fields(Sampler)] if "sampler" in names else names
