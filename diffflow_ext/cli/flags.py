"""Parsing of flags by tyro, with errors of one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from diffflow_ext.training.config.rules import DEVICE, Maybe

T = TypeVar("T")
RunArgument = Annotated[Positional[str], arg(metavar="RUN")]
DeviceName = Annotated[str, DEVICE, arg(metavar="NAME")]
_NOT_OF = r"no type matching \{None\}\|%s could be instantiated from \[(.*?)\]\."


@dataclass(frozen=True)
class Sampler:
    """Options of the sampler, different for each model; None is the model's default."""

    #: Steps of the model; None takes those of the run (diffflow, nfdm), all (ddpm), 1000 for the
    #: whole diffusion (dinof).
    num_steps: Maybe[int] = None
    #: Noise of the reverse process: 1 as trained, 0 none (diffflow, nfdm).
    stochasticity: Maybe[float] = None
    #: Solver of a reverse process without noise (diffflow, dinof).
    solver: Maybe[Literal["euler", "heun", "rk4"]] = None
    #: ancestral or ddim (ddpm); auto, em, reverse_diffusion or ode (dinof).
    sampler: Annotated[Maybe[str], arg(metavar="NAME")] = None
    #: Noise of ddim, from 0 to 1 (ddpm).
    eta: Maybe[float] = None
    #: Noise of the ancestral sampler (ddpm).
    variance: Maybe[Literal["small", "large"]] = None
    #: Clip predictions of the data to [-1, 1], as is usual for images (ddpm, nfdm).
    clip: FlagCreatePairsOff[bool] = False
    #: Don't clip them (ddpm, nfdm).
    no_clip: FlagCreatePairsOff[bool] = False
    #: Treatment of the last step (diffflow, dinof; ddpm: noisy or mean).
    last_step: Maybe[Literal["noisy", "mean", "tweedie"]] = None
    #: Langevin steps after each step (diffflow, dinof).
    corrector_steps: Maybe[int] = None
    #: Size of a Langevin step (diffflow).
    corrector_scale: Maybe[float] = None
    #: Size of a Langevin step (dinof).
    snr: Maybe[float] = None
    #: Weight of the condition, of a run with one: more than 1 strengthens it, and samples then
    #: follow no stated density; None takes 1.
    guidance: Maybe[float] = None

    def __post_init__(self) -> None:
        if self.clip and self.no_clip:
            raise ValueError("expected one of --clip and --no-clip, got both; leave one out")

    def options(self) -> dict[str, Any]:
        """Returns the options that were given, `num_steps` always."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        no_clip = values.pop("no_clip")
        values["clip"] = False if no_clip else values["clip"] or None
        return {n: value for n, value in values.items() if n == "num_steps" or value is not None}


def parse(
    kind: type[T], words: Sequence[str], command: str, default: T | None = None
) -> tuple[T, list[str]]:
    """Returns a dataclass with the values of flags, and the unknown words.

    Flags have the names of its fields and of the fields of dataclasses in it.

    Raises:
        ValueError: If a flag is missing or has a wrong value.
        SystemExit: After help was shown.
    """
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                kind,
                prog=f"diffflow {command}",
                args=words,
                return_unknown_args=True,
                config=(OmitArgPrefixes,),
                **options,
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        raise ValueError(message(errors.getvalue(), command)) from None
    return parsed, unknown


def refuse_unknown(unknown: Sequence[str], known: Iterable[str], command: str) -> None:
    """Refuses unknown words, with the nearest flag of the known fields."""
    if not unknown:
        return
    word = unknown[0].split("=")[0]
    flags = ["--" + name.replace("_", "-") for name in known]
    near = difflib.get_close_matches(word, flags, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{command}: unknown {word!r}{hint} (diffflow {command} --help)")


def message(box: str, command: str) -> str:
    """Returns the text in a box that tyro has drawn, in one line and in our words."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    lines = [line.strip(" │") for line in plain.splitlines()[1:]]
    # The text is between a title and the next rule.
    paragraphs = " ".join("\0" if re.fullmatch(r"[─╰╯-]*", line) else line for line in lines)
    text = next((part for part in paragraphs.split("\0") if part.strip()), plain).strip()
    text = re.sub(r"^Error parsing (?=-)|^Error parsing [\w.]*: ", "", text)
    for pattern, words in REWORDED:
        text = re.sub(pattern, words, text)
    return text if text.startswith(f"{command.partition(' ')[0]}: ") else f"{command}: {text}"


def _choices(found: re.Match[str]) -> str:
    """Words tyro's refusal of a choice; the order of its choices is another one each time."""
    choices = sorted({*re.findall(r"'([^']*)'", found["choices"])} - {"None"})
    return f"{found['flag']}: expected one of {', '.join(choices)}, got {found['value']}"


#: Errors of tyro and of Python, and our words for them.
REWORDED: list[tuple[str, Any]] = [
    (r"invalid literal for int\(\) with base 10: ", "expected a whole number, got "),
    (r"could not convert string to float: ", "expected a number, got "),
    (_NOT_OF % "INT", r"expected a whole number, got \1"),
    (_NOT_OF % "FLOAT", r"expected a number, got \1"),
    (
        r"invalid choice (?P<value>'.*?') for argument '(?P<flag>.*?)'\."
        r" Expected one of \((?P<choices>.*?)\)\.",
        _choices,
    ),
    (r"Missing value for argument '(.*?)'\. Expected 1 values?\.", r"\1: expected a value"),
]
