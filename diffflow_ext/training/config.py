"""The one description of a training run: a flat, frozen, checked value that is also a TOML file.

Every field carries its help text and the rule that its value obeys, so that the command line, the
file format and the error messages are all made from this one list. Defaults stand here alone.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from diffflow_ext.nets.mlp import ACTIVATIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["MODELS", "Rule", "TrainConfig", "field_rule", "field_types", "parse_progressive"]

MODELS = ("diffflow",)
MAX_SEED = 2**63 - 1
# Half of the 2^32 streams of noise are for training, one for each step.
MAX_STEPS = 2**31
MAX_GRID = 2**24


@dataclass(frozen=True)
class Rule:
    """What a field is for and which values it takes.

    Arguments:
        help: One sentence for a person, used by the command line.
        allowed: The allowed values in words, used by error messages.
        accepts: Whether a value of the right type is allowed.
        on_resume: Whether a continued run may change the field: it doesn't touch the numbers
            computed so far.
        choices: All allowed values, where they are words.
    """

    help: str
    allowed: str
    accepts: Callable[[Any], bool]
    on_resume: bool = False
    choices: tuple[str, ...] = ()


def _field(default: Any, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


def _option(
    default: Any, text: str, allowed: str, accepts: Callable[[Any], bool], on_resume: bool = False
) -> Any:
    return _field(default, Rule(text, allowed, accepts, on_resume))


def _whole(
    default: int, low: int, text: str, *, high: int = MAX_STEPS, on_resume: bool = False
) -> Any:
    allowed = f"a whole number from {low} to {high}"
    return _option(default, text, allowed, lambda value: low <= value <= high, on_resume)


def _positive(default: float, text: str) -> Any:
    return _option(default, text, "a finite number above 0", lambda value: value > 0)


def _choice(default: str, choices: tuple[str, ...], text: str) -> Any:
    allowed = "one of " + ", ".join(choices)
    return _field(default, Rule(text, allowed, lambda value: value in choices, choices=choices))


def _flag(default: bool, text: str) -> Any:
    return _option(default, text, "true or false", lambda value: True)


def _is_device(name: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def _is_progressive(text: str) -> bool:
    try:
        parse_progressive(text)
    except ValueError:
        return False
    return True


def parse_progressive(text: str) -> tuple[tuple[int, int], ...]:
    """Returns the ((iteration, num_steps), …) that a text such as "0:10,2000:30" stands for.

    Arguments:
        text: Pairs `iteration:num_steps` joined by commas, iterations rising from 0. "auto" and
            "off" stand for no pairs of their own.

    Raises:
        ValueError: If the text has another form.
    """
    if text in ("auto", "off"):
        return ()
    if re.fullmatch(r"\d+:\d+(,\d+:\d+)*", text, re.ASCII) is None:
        raise ValueError(f"parse_progressive: expected pairs such as 0:10,2000:30, got {text!r}")
    pairs = tuple((int(a), int(b)) for a, b in (p.split(":") for p in text.split(",")))
    starts = [start for start, _ in pairs]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(f"parse_progressive: iterations must rise from 0, got {text!r}")
    if not all(1 <= steps <= MAX_GRID for _, steps in pairs):
        raise ValueError(f"parse_progressive: expected 1 to {MAX_GRID} steps each, got {text!r}")
    return pairs


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on; checked when it is made.

    Arguments are the fields below, each with its own help text (`diffflow train --help`).

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value isn't allowed; the message names the field, the value and what is.
    """

    data: str = _option(
        MISSING, "Built-in set or file to learn from.", "a name or a path", lambda text: text != ""
    )
    data_seed: int = _whole(
        0, 0, "Seed of the points of a built-in set; the split of a file is fixed.", high=MAX_SEED
    )
    model: str = _choice("diffflow", MODELS, "Which model to train.")
    seed: int = _whole(
        0, 0, "Seed of the initial weights, the order of the data and the noise.", high=MAX_SEED
    )

    steps: int = _whole(2000, 1, "Training steps, one batch each.", on_resume=True)
    batch_size: int = _whole(256, 1, "Samples in a batch.")
    learning_rate: float = _positive(3e-3, "Highest learning rate of Adam.")
    schedule: str = _choice(
        "cosine",
        ("cosine", "step", "constant"),
        "How the learning rate falls: cosine to 0 at the end; step halves it after 1/2, 3/4 and"
        " 7/8 of the work (network evaluations); constant.",
    )
    warmup: int = _whole(200, 0, "Steps over which the learning rate rises from 0.")
    clip_norm: float = _positive(1.0, "Longest gradient; a longer one is scaled down to it.")
    ema_decay: float = _option(
        0.999,
        "Decay of the averaged weights that sampling uses; lower in the first steps.",
        "a number from 0 up to but not including 1",
        lambda value: 0 <= value < 1,
    )

    num_steps: int = _whole(30, 1, "Steps N of the trajectories.", high=MAX_GRID)
    t_start: float = _option(
        0.0, "Time of the data.", "a finite number of at least 0", lambda value: value >= 0
    )
    t_end: float = _positive(0.05, "Time of the noise.")
    power: float = _positive(0.9, "Exponent of the time grid: t^power is evenly spaced.")
    grid: str = _choice(
        "stratified",
        ("stratified", "power"),
        "Time grid in training: drawn anew for each batch, or fixed.",
    )
    progressive: str = _option(
        "auto",
        "Steps N by iteration in training, such as 0:10,2000:30; auto takes N/6, N/3 and N from 0,"
        " 46 and 81 % of the training steps on; off takes N throughout. Sampling uses num-steps.",
        "auto, off, or pairs iteration:num_steps such as 0:10,2000:30, iterations rising from 0",
        _is_progressive,
    )
    diffusion_start: float = _positive(0.2, "Diffusion g at the data.")
    diffusion_end: float = _positive(0.2, "Diffusion g at the noise; between them geometric.")
    learn_diffusion: bool = _flag(False, "Learn both ends of g together with the networks.")

    width: int = _whole(128, 1, "Width of the drift and score networks.")
    depth: int = _whole(3, 0, "Hidden layers of the networks after the first.")
    activation: str = _choice("gelu", tuple(ACTIVATIONS), "Activation of the networks.")
    time_scale: float = _positive(
        0.4,
        "Factor from time to the argument of the networks' sines, whose frequencies go up to 100.",
    )

    autocast: str = _choice("off", ("off", "bf16"), "Precision in which the networks compute.")
    device: str = _option(
        "auto",
        "Where to compute: auto takes a GPU if the build has kernels for it.",
        "auto, cpu, cuda or cuda:INDEX",
        _is_device,
        True,
    )
    threads: int = _whole(0, 0, "CPU threads; 0 leaves the default.", on_resume=True)
    checkpoint_every: int = _whole(
        1,
        0,
        "Keep every k-th state of a trajectory for the gradient and recompute the others;"
        " 0 keeps the whole graph.",
        on_resume=True,
    )
    save_every: int = _whole(500, 1, "Steps between checkpoints.", on_resume=True)
    keep_checkpoints: int = _whole(3, 1, "How many checkpoints stay.", on_resume=True)
    log_every: int = _whole(10, 1, "Steps between lines of metrics.jsonl.", on_resume=True)

    def __post_init__(self) -> None:
        types = field_types()
        for item in fields(self):
            value = _typed(item.name, getattr(self, item.name), types[item.name])
            object.__setattr__(self, item.name, value)
            _check(item, value)
        if self.t_end <= self.t_start:
            raise ValueError(
                f"TrainConfig: t_end={self.t_end!r}: expected more than t_start={self.t_start!r}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Returns the configuration with these values, defaults elsewhere.

        Arguments:
            values: Field names and values.

        Raises:
            TypeError, ValueError: If a name is unknown or a value isn't allowed.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"TrainConfig: unknown key {name!r}; the nearest is {near!r}")
        if "data" not in values:
            raise ValueError("TrainConfig: data is missing: expected a name or a path")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Returns the configuration in a TOML file.

        Raises:
            OSError: If the file can't be read.
            ValueError: If it isn't TOML, has an unknown key or a value that isn't allowed.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a TOML file: {error}") from error
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def to_toml(self) -> str:
        """Returns the TOML text from which `load` makes an equal configuration."""
        return "".join(f"{name} = {_toml_value(value)}\n" for name, value in asdict(self).items())


def field_types() -> dict[str, type]:
    """Returns the type of each field of `TrainConfig`, by name."""
    return get_type_hints(TrainConfig)


def field_rule(item: Field[Any]) -> Rule:
    """Returns the rule of one field of `TrainConfig`."""
    rule: Rule = item.metadata["rule"]
    return rule


def _typed(name: str, value: object, kind: type) -> object:
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise TypeError(f"TrainConfig: {name}={value!r}: expected {words[kind]}")
    return value


def _check(item: Field[Any], value: Any) -> None:
    rule = field_rule(item)
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite or not rule.accepts(value) or not _is_text(value):
        raise ValueError(f"TrainConfig: {item.name}={value!r}: expected {rule.allowed}")


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _toml_value(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    # JSON and TOML agree on these types, but TOML wants the delete character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
