"""Flags of the command line that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from diffflow_ext.training.config.fields import TrainConfig, field_types
from diffflow_ext.training.config.rules import Rule, field_rule

EXIT_CODES = """exit codes:
  0    done
  1    failed: training can't go on, or doctor found a fault
  2    bad input: one line on stderr says what and how to mend it
  130  Ctrl-C; 143 SIGTERM; train saves first, and --resume goes on from there
"""


DEVICE_HELP = "auto, cpu, cuda or cuda:INDEX. Default: auto."


METAVARS = {int: "N", float: "X", str: "TEXT"}


# Options of samplers; which model has which is for the model to say. None is the model's own.
SAMPLER_FLAGS: dict[str, dict[str, Any]] = {
    "stochasticity": {
        "type": float,
        "metavar": "X",
        "help": "Noise of the reverse process: 1 as trained, 0 none (diffflow).",
    },
    "solver": {
        "choices": ("euler", "heun", "rk4"),
        "help": "How a reverse process without noise is solved (diffflow, dinof).",
    },
    "sampler": {
        "metavar": "NAME",
        "help": "ancestral or ddim (ddpm); auto, em, reverse_diffusion or ode (dinof).",
    },
    "eta": {"type": float, "metavar": "X", "help": "Noise of ddim, from 0 to 1 (ddpm)."},
    "variance": {
        "choices": ("small", "large"),
        "help": "Noise of the ancestral sampler (ddpm).",
    },
    "clip": {
        "action": argparse.BooleanOptionalAction,
        "help": "Clip predictions of the data to [-1, 1]; default for images (ddpm).",
    },
    "last_step": {
        "choices": ("noisy", "mean", "tweedie"),
        "help": "How the last step ends (diffflow, dinof; ddpm: noisy or mean).",
    },
    "corrector_steps": {
        "type": int,
        "metavar": "N",
        "help": "Langevin moves after each step (diffflow, dinof).",
    },
    "corrector_scale": {
        "type": float,
        "metavar": "X",
        "help": "Size of a Langevin move (diffflow).",
    },
    "snr": {"type": float, "metavar": "X", "help": "Size of a Langevin move (dinof)."},
}


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field of `TrainConfig`; one that isn't given leaves no trace."""
    types, groups = field_types(), {}
    for item in fields(TrainConfig):
        if item.name == "data":
            continue
        rule = field_rule(item)
        title = f"for {rule.users}" if rule.needs else "for all models"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flag, kind = "--" + item.name.replace("_", "-"), _flag_kind(types[item.name], rule)
        text = _flag_help(item.default, rule)
        groups[title].add_argument(
            flag, dest=item.name, default=argparse.SUPPRESS, help=text, **kind
        )


def _flag_kind(kind: type, rule: Rule) -> dict[str, Any]:
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = "{" + ",".join(rule.choices) + "}"
    return {"type": kind, "metavar": choices if rule.choices else METAVARS[kind]}


def _flag_help(default: Any, rule: Rule) -> str:
    words = rule.help.replace("%", "%%")  # argparse formats help texts.
    shown = "no" if default is False else default
    return words if rule.auto == default and rule.auto == 0 else f"{words} Default: {shown}."


def _add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the options of samplers; one that isn't given leaves no trace."""
    group = parser.add_argument_group("sampler")
    group.add_argument(
        "--num-steps",
        type=int,
        metavar="N",
        help="Steps of the model. Default: those of the run (diffflow), all (ddpm), 1000 for the"
        " whole diffusion (dinof).",
    )
    for name, settings in SAMPLER_FLAGS.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, **settings)


def _sampler_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SAMPLER_FLAGS if name in args}
