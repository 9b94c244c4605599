"""The program `diffflow`: choice of the command, and errors.

Help, version and unknown commands do not import torch, which takes seconds.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from .output import NO_READER, outlets

COMMANDS = {
    "train": "Train a model on data.",
    "sample": "Draw samples in the units of the data.",
    "score": "Write log p of each row of a file, or of each image.",
    "impute": "Draw missing values of rows, or a half of images, given the rest.",
    "evaluate": "Compare a model with held-out data; write RUN/evaluation.json and RUN/figures/.",
    "compare": "Draw both processes of runs of the same data, one below the other.",
    "animate": "Write a film of both processes of a run.",
    "data": "List the data sets and the trained runs to try, or download a set.",
    "extractor": "Train a classifier on labelled images; its features compare samples with data.",
    "doctor": "Show what this installation has, and check it.",
}

MODELS = {
    "diffflow": "DiffFlow: drift and score of two SDEs, trained on one path loss (the default)",
    "dinof": "DiNof: a diffusion up to a time, and a normalizing flow from there on",
    "nfdm": "NFDM: a diffusion with a learned forward process, trained without simulation",
    "ddpm": "DDPM: a network that predicts the noise of a fixed diffusion",
    "ffjord": "FFJORD: a continuous normalizing flow, of vectors alone",
    "flow": "a normalizing flow: splines, or Glow for images",
}

#: Packages whose modules have another name.
PACKAGES = {"sklearn": "scikit-learn"}

HELP = """usage: diffflow COMMAND ... [--debug]

Train generative models with a learned forward process.

commands (diffflow COMMAND --help):
{commands}

options:
  -h, --help  show this help message and exit
  --version   show the version and exit
  --debug     with any command, show the traceback of an error

exit codes:
  0    done
  1    failed: training can't continue, memory ran out, the output can't be written, or doctor
       found a fault
  2    bad input: one line on stderr says what and how to mend it
  130  Ctrl-C; 143 SIGTERM; train saves first, and --resume continues
"""

TRAIN_HELP = """usage: diffflow train [MODEL] DATA --out RUN [FLAGS]
       diffflow train --out RUN --resume [FLAGS]

Train a model on data.

models (diffflow train MODEL --help lists the flags):
{models}

DATA is a built-in set (see: diffflow data list) or a file.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process; returns the exit code."""
    with outlets() as output:
        code = _main(arguments)
        output.flush()
        if output.error is None or output.error.errno in NO_READER:
            return code
        return _fail(f"the output can't be written: {output.error.strerror}", 1)


def _main(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    text = _information(words)
    if text is not None:
        print(text, end="")
        return 0
    command, *rest = words or [""]
    if command not in COMMANDS:
        return _fail(_unknown_command(command), 2)
    try:
        commands: Any = importlib.import_module("diffflow_ext.cli.commands")
    except ModuleNotFoundError as error:
        if "--debug" in given:
            traceback.print_exception(error)
        return _fail(_missing_package(error), 2)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module="diffflow_ext")
            warnings.showwarning = _show_warning
            return commands.run(command, rest)
    except (Exception, KeyboardInterrupt) as error:
        code: int = commands.exit_code(error)
        if code == 0:
            raise
        if "--debug" in given:
            traceback.print_exception(error)
        return _fail(commands.in_words(error), code)


def _information(words: list[str]) -> str | None:
    """Returns the version or a help text that needs no command, else None."""
    asked = words[-1] if words else "--help"
    if words[:1] == ["--version"]:
        return f"diffflow {_version()}\n"
    first = words[0] if words else asked
    if not {asked, first} & {"-h", "--help"}:
        return None
    if len(words) <= 1 or first.startswith("-"):
        return HELP.format(commands=_listed(COMMANDS))
    return TRAIN_HELP.format(models=_listed(MODELS)) if words[:-1] == ["train"] else None


def _version() -> str:
    try:
        return importlib.metadata.version("diffflow_ext")
    except importlib.metadata.PackageNotFoundError:  # Found, not installed.
        return str(importlib.import_module("diffflow_ext").__version__)


def _missing_package(error: ModuleNotFoundError) -> str:
    """Returns a text about a package that the installation needs and lacks."""
    module = (error.name or "").partition(".")[0]
    if module in ("", "diffflow_ext"):
        return f"{error}; reinstall diffflow_ext"
    package = PACKAGES.get(module, module)
    return f"expected the package {package}, which is not installed; run: pip install {package}"


def _listed(texts: dict[str, str]) -> str:
    width = max(map(len, texts))
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in texts.items())


def _unknown_command(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{word!r}: expected a command, one of {', '.join(COMMANDS)}{hint}"


def _fail(message: str, code: int) -> int:
    """Prints an error in one line; text after a blank line is printed unchanged."""
    line, _, rest = message.partition("\n\n")
    print(f"diffflow: {' '.join(line.split())}", *rest.splitlines(), sep="\n", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    print(f"diffflow: warning: {message}", file=sys.stderr)
