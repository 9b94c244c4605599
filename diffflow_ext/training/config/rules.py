"""What a field of the configuration is for, which values it takes, and which runs read it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Any, Literal

from diffflow_ext.functional.checks import in_words

__all__ = [
    "MAX_GRID",
    "MAX_SEED",
    "MAX_STEPS",
    "Rule",
    "attention_sizes",
    "check_typed",
    "choice",
    "field_rule",
    "flag",
    "is_device",
    "is_memory",
    "is_progressive",
    "is_whole_list",
    "memory_bytes",
    "option",
    "parse_progressive",
    "positive",
    "toml_value",
    "whole",
    "whole_list",
]


MAX_SEED = 2**63 - 1


# Half of the 2^32 streams of noise are for training, one for each step.
MAX_STEPS = 2**31


MAX_GRID = 2**24


Needs = tuple[str, ...]


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
        needs: What a run must have to read the field: one of the words in each text, such as
            "dinof" or "mlp|unet". Elsewhere the field must keep its default.
        auto: What stands for a value that is chosen when the data are known; None if nothing does.
    """

    help: str
    allowed: str
    accepts: Callable[[Any], bool]
    on_resume: bool = False
    choices: tuple[str, ...] = ()
    needs: Needs = ()
    auto: Any = None

    def used_by(self, traits: frozenset[str]) -> bool:
        """Whether a run with these traits reads the field."""
        return all(traits & set(words.split("|")) for words in self.needs)

    @property
    def users(self) -> str:
        """The runs that read the field, in words."""
        return " with ".join(words.replace("|", ", ") for words in self.needs)


def field_rule(item: Field[Any]) -> Rule:
    """Returns the rule of one field of `TrainConfig`."""
    rule: Rule = item.metadata["rule"]
    return rule


def option(
    default: Any,
    text: str,
    allowed: str,
    accepts: Callable[[Any], bool],
    *,
    on_resume: bool = False,
    needs: Needs = (),
) -> Any:
    """Returns a field with a rule of its own."""
    rule = Rule(text, allowed, accepts, on_resume, needs=needs)
    return field(default=default, metadata={"rule": rule})


def whole(
    default: int,
    low: int,
    text: str,
    *,
    high: int = MAX_STEPS,
    on_resume: bool = False,
    needs: Needs = (),
    auto: bool = False,
) -> Any:
    """Returns a field for whole numbers from `low` to `high`, and 0 where it means automatic."""
    allowed = f"a whole number from {low} to {high}" + (", or 0 to choose" if auto else "")

    def accepts(value: int) -> bool:
        return low <= value <= high or (auto and value == 0)

    rule = Rule(text, allowed, accepts, on_resume, needs=needs, auto=0 if auto else None)
    return field(default=default, metadata={"rule": rule})


def positive(default: float, text: str, *, needs: Needs = (), auto: bool = False) -> Any:
    """Returns a field for numbers above 0, and 0 where it means automatic."""
    allowed = "a finite number above 0" + (", or 0 to choose" if auto else "")

    def accepts(value: float) -> bool:
        return value > 0 or (auto and value == 0)

    rule = Rule(text, allowed, accepts, needs=needs, auto=0.0 if auto else None)
    return field(default=default, metadata={"rule": rule})


def choice(
    default: str,
    choices: tuple[str, ...],
    text: str,
    *,
    on_resume: bool = False,
    needs: Needs = (),
) -> Any:
    """Returns a field for one of several words; "auto" is chosen when the data are known."""
    allowed = "one of " + ", ".join(choices)
    auto = "auto" if "auto" in choices else None
    rule = Rule(text, allowed, lambda value: value in choices, on_resume, choices, needs, auto)
    return field(default=default, metadata={"rule": rule})


def flag(default: bool, text: str, *, on_resume: bool = False, needs: Needs = ()) -> Any:
    """Returns a field for true and false."""
    allowed = "true or false"
    return option(default, text, allowed, lambda value: True, on_resume=on_resume, needs=needs)


def is_device(name: str) -> bool:
    """Whether a text names a device."""
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def is_memory(text: str) -> bool:
    """Whether a text says how much memory to take; see `memory_bytes`."""
    number = re.fullmatch(r"[1-9]\d{0,6}", text, re.ASCII) is not None
    return text in ("off", "auto") or (number and int(text) <= 2**20)


def memory_bytes(text: str) -> int | Literal["auto"] | None:
    """Returns the bytes of a text with MiB; "auto" as it is, None for "off"."""
    if text == "off":
        return None
    return "auto" if text == "auto" else int(text) * 2**20


def is_whole_list(text: str) -> bool:
    """Whether a text lists whole numbers from 1 to 65536, such as "1,2,2"."""
    matches = re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4}){0,15}", text, re.ASCII)
    return matches is not None and max(whole_list(text)) <= 65536


def whole_list(text: str) -> tuple[int, ...]:
    """Returns the numbers of a text such as "1,2,2"."""
    return tuple(int(part) for part in text.split(","))


def attention_sizes(text: str) -> tuple[int, ...]:
    """Returns the picture sizes of a text such as "16,8"; none for "off"."""
    return () if text == "off" else whole_list(text)


def is_progressive(text: str) -> bool:
    """Whether a text is one for `parse_progressive`."""
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


def check_typed(item: Field[Any], value: object, kind: type) -> Any:
    """Returns a value of a field in its type.

    Raises:
        TypeError: If it has another type.
        ValueError: If the rule of the field doesn't allow it.
    """
    if kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise TypeError(f"TrainConfig: {item.name}={in_words(value)}: expected {words[kind]}")
    rule = field_rule(item)
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite or not rule.accepts(value) or not _is_text(value):
        raise ValueError(f"TrainConfig: {item.name}={in_words(value)}: expected {rule.allowed}")
    return value


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def toml_value(value: object) -> str:
    """Returns a value as TOML writes it."""
    if isinstance(value, float):
        return repr(value)
    # JSON and TOML agree on these types, but TOML wants the delete character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
