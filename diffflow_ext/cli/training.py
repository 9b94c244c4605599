"""The command `train`: its configuration from flags, a file or the run to resume."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import FlagCreatePairsOff, arg

from diffflow_ext.data import describe_sets
from diffflow_ext.training.config.fields import (
    CONFIGS,
    Config,
    configure,
    nearest_model,
    no_such_field,
)
from diffflow_ext.training.config.files import load_config, to_toml
from diffflow_ext.training.config.rules import Maybe
from diffflow_ext.training.evaluation.run_data import is_gone
from diffflow_ext.training.loop.train import rehearse, train
from diffflow_ext.training.parallel.distributed import is_first
from diffflow_ext.training.store.checkpoint import CheckpointError, load_latest
from diffflow_ext.training.store.dataset import recorded
from diffflow_ext.training.store.directory import RunDirectory

from .flags import parse

C = TypeVar("C", bound=Config)
Switch = FlagCreatePairsOff[bool]


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
    #: Print the configuration, do what a run does before its first step, write nothing, and stop.
    dry_run: Switch = False


@dataclass(frozen=True, kw_only=True)
class TrainHelp(TrainOptions, Generic[C]):
    """Train a model on data."""

    values: Annotated[C, arg(name="")]


def parse_train(words: list[str]) -> Callable[[], int]:
    """Returns the command `train` with its flags, to be called."""
    model = words.pop(0) if words and words[0] in CONFIGS else None
    if {"-h", "--help"} & {*words}:
        kind = CONFIGS[model or "diffflow"]
        parse(TrainHelp[kind], ["--help"], f"train {kind.name}")
    options, words = parse(TrainOptions, words, "train")
    return partial(_train, options, _config(options, model, words))


def _train(options: TrainOptions, config: Config) -> int:
    again: dict[str, Any] = {"resume": options.resume, "overwrite": options.overwrite}
    if options.dry_run:
        lines = rehearse(config, options.out, **again)
        if is_first():
            # What was read goes to stderr, so that the output is a file of configuration.
            print(*lines, sep="\n", file=sys.stderr)
            print(to_toml(config), end="")
        return 0
    result = train(config, options.out, **again)
    if not is_first():
        return 0
    print(f"{options.out}: step {result.step}, {result.elapsed:.1f} s of training")
    if not result.taken:
        print("all steps had been taken before; --steps raises their number")
    print(f"next: diffflow evaluate {shlex.quote(options.out)}")
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
    _check_data(options, config)
    if options.config:
        _warn_of_new_defaults(Path(options.config), config)
    data = config.data.data
    # The path must be absolute, for an evaluation from another folder.
    is_file = data != "" and data not in describe_sets() and Path(data).exists()
    return config.replaced(data=str(Path(data).resolve())) if is_file else config


def _warn_of_new_defaults(source: Path, config: Config) -> None:
    """Warns of values of a run that the file of that run lacks: defaults of earlier versions."""
    run = RunDirectory(source.parent)
    if not source.exists() or not run.config.exists() or not source.samefile(run.config):
        return
    try:
        had = recorded(load_latest(run.checkpoints))[1].values()
    except (CheckpointError, OSError):  # It need not have been trained.
        return
    values = config.values()
    new = {n: v for n, v in had.items() if v is not None and values.get(n, v) is None}
    if new:
        words = {name.replace("_", "-"): shlex.quote(str(value)) for name, value in new.items()}
        flags = " ".join(f"--{name}={value}" for name, value in words.items())
        warnings.warn(
            f"{source}: the run there, of an earlier version, had {', '.join(new)}, which its file"
            f" lacks; this run takes the defaults of this version; for the same give {flags}",
            stacklevel=2,
        )


def _check_data(options: TrainOptions, config: Config) -> None:
    """Refuses to go on without data, with the words that are missing."""
    data, out = config.data.data, shlex.quote(options.out)
    if not data and options.resume and RunDirectory(options.out).config.exists():
        raise ValueError(
            "train: --resume: expected the data of the run, which were in memory when it was"
            f" trained; give a file with them: diffflow train PATH --out {out} --resume"
        )
    if not data and options.resume:
        raise ValueError(
            f"train: --resume: expected a run in {options.out!r}, got none; give another --out, or"
            f" begin a run: diffflow train DATA --out {out}"
        )
    if options.resume and is_gone(data):
        raise FileNotFoundError(
            f"train: expected the data of the run in {data!r}, which is not there; if they have"
            f" moved, give their new path: diffflow train PATH --out {out} --resume"
        )
    near = nearest_model(data)
    if near and data.lower() not in describe_sets() and not Path(data).exists():
        raise ValueError(
            f"train: {data!r}: expected DATA, or a model and DATA; did you mean"
            f" `diffflow train {near} DATA --out {out}`?"
        )


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
        near = nearest_model(data)
        hint = f"; models are {', '.join(CONFIGS)}"
        if near:
            hint = f"; did you mean `diffflow train {near} {shlex.quote(word)} ...`?"
        raise ValueError(f"train: {word!r}: expected one DATA, got {data!r} too{hint}")
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    options = [item.name for item in fields(TrainOptions)]
    raise ValueError(f"train: {word}: {no_such_field(config, name, options)}")
