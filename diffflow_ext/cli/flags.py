"""Flags by tyro: a class is made from words, and what is wrong with them is said in one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg

from diffflow_ext.training.config.rules import Maybe

T = TypeVar("T")


@dataclass(frozen=True)
class Sampler:
    """Options of the sampler, of which each model has its own; None is the model's default."""

    #: Steps of the model; None takes those of the run (diffflow), all (ddpm), 1000 for the whole
    #: diffusion (dinof).
    num_steps: Maybe[int] = None
    #: Noise of the reverse process: 1 as trained, 0 none (diffflow).
    stochasticity: Maybe[float] = None
    #: How a reverse process without noise is solved (diffflow, dinof).
    solver: Maybe[Literal["euler", "heun", "rk4"]] = None
    #: ancestral or ddim (ddpm); auto, em, reverse_diffusion or ode (dinof).
    sampler: Annotated[Maybe[str], arg(metavar="NAME")] = None
    #: Noise of ddim, from 0 to 1 (ddpm).
    eta: Maybe[float] = None
    #: Noise of the ancestral sampler (ddpm).
    variance: Maybe[Literal["small", "large"]] = None
    #: Clip predictions of the data to [-1, 1], as is usual for images (ddpm).
    clip: FlagCreatePairsOff[bool] = False
    #: Don't clip them (ddpm).
    no_clip: FlagCreatePairsOff[bool] = False
    #: How the last step ends (diffflow, dinof; ddpm: noisy or mean).
    last_step: Maybe[Literal["noisy", "mean", "tweedie"]] = None
    #: Langevin moves after each step (diffflow, dinof).
    corrector_steps: Maybe[int] = None
    #: Size of a Langevin move (diffflow).
    corrector_scale: Maybe[float] = None
    #: Size of a Langevin move (dinof).
    snr: Maybe[float] = None

    def options(self) -> dict[str, Any]:
        """Returns the options that were given, `num_steps` always."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        no_clip = values.pop("no_clip")
        values["clip"] = False if no_clip else values["clip"] or None
        kept = ("num_steps",)
        return {n: value for n, value in values.items() if n in kept or value is not None}


def parse(
    kind: type[T], words: Sequence[str], command: str, default: T | None = None
) -> tuple[T, list[str]]:
    """Returns an object of a class made from flags, and the words that it has no use for.

    Arguments:
        kind: A dataclass; flags have the names of its fields and of those of dataclasses in it.
        words: The command line behind the command.
        command: The command, for help texts.
        default: Values for the flags that aren't given.

    Raises:
        ValueError: If a flag is missing or has a wrong value.
        SystemExit: After help was shown.
    """
    said = io.StringIO()
    more: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            made, unknown = tyro.cli(
                kind,
                prog=f"diffflow {command}",
                args=words,
                return_unknown_args=True,
                config=(OmitArgPrefixes,),
                **more,
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        raise ValueError(message(said.getvalue(), command)) from None
    return made, unknown


def refuse_unknown(unknown: Sequence[str], known: Iterable[str], command: str) -> None:
    """Refuses words that no flag took.

    Arguments:
        unknown: The words.
        known: The names of the fields that there are.
        command: The command.

    Raises:
        ValueError: If there are any.
    """
    if not unknown:
        return
    word = unknown[0].split("=")[0]
    flags = ["--" + name.replace("_", "-") for name in known]
    near = difflib.get_close_matches(word, flags, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{command}: unknown {word!r}{hint} (diffflow {command} --help)")


def message(box: str, command: str) -> str:
    """Returns the message in a box that tyro has drawn, in one line."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    lines = [line.strip(" │") for line in plain.splitlines()[1:]]
    # Between a title and the next rule, which is drawn in characters that the terminal has.
    paragraphs = " ".join("\0" if re.fullmatch(r"[─╰╯-]*", line) else line for line in lines)
    text = next((part for part in paragraphs.split("\0") if part.strip()), plain).strip()
    text = re.sub(r"^Error parsing [\w.]*: ", "", text)
    return text if text.startswith("train: ") else f"{command}: {text}"
