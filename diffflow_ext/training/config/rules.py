"""Rules for the values of fields, which sections check when they are made."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Optional,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tyro.conf import arg

from diffflow_ext.functional.checks import in_words

MAX_SEED = 2**63 - 1
# Half of the 2^32 streams of noise are for training, one for each step.
MAX_STEPS = 2**31
MAX_GRID = 2**24
#: The largest width and depth of a network: more do not fit in memory, or take days for a step.
MAX_WIDTH, MAX_DEPTH = 65536, 4096
T = TypeVar("T")
#: A value or None, whose meaning the help text explains.
Maybe = Annotated[
    Optional[T],  # noqa: UP045
    arg(help_behavior_hint=lambda default: "" if default == "None" else f"(default: {default})"),
]
#: The same, for fields in which `resolve` replaces None by a value before they are read.
if TYPE_CHECKING:
    Chosen = T | Any
else:
    Chosen = Maybe


@dataclass(frozen=True)
class Rule:
    """The allowed values of a type: their description for errors, and a predicate."""

    allowed: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Section:
    """A part of a configuration, whose fields are checked when it is made.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value isn't allowed. The message names the field, the value and what is
            allowed.
    """

    #: The command that errors name.
    op: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        for name, hint in _type_hints(type(self)).items():
            value = checked(self.op, name, getattr(self, name), hint)
            object.__setattr__(self, name, value)

    def check_order(self, low: str, high: str) -> None:
        """Refuses two numbers, unless one is None, that aren't in increasing order."""
        small, large = getattr(self, low), getattr(self, high)
        if small is not None and large is not None and large <= small:
            raise ValueError(f"train: {high}={large!r}: expected more than {low}={small!r}")


@functools.cache
def _type_hints(section: type[Section]) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {item.name: hints[item.name] for item in fields(section)}


def checked(op: str, name: str, value: object, hint: Any) -> Any:
    """Returns a value of a field in the field's type; errors name the command `op`."""
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    rules = [extra for extra in extras if isinstance(extra, Rule)]
    options = set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else {kind}
    if value is None and type(None) in options:
        return None
    (kind,) = options - {type(None)}
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        rules.append(Rule("one of " + ", ".join(choices), lambda text: text in choices))
        kind = str
    if get_origin(kind) is tuple:
        kind = tuple
    if kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise TypeError(f"{op}: {name}={in_words(value)}: expected {words.get(kind, kind)}")
    if isinstance(value, float):
        rules.insert(0, FINITE)
    for rule in rules:
        if not rule.accepts(value):
            raise ValueError(f"{op}: {name}={in_words(value)}: expected {rule.allowed}")
    return value


def whole(low: int, high: int = MAX_STEPS) -> Rule:
    """Returns the rule for whole numbers from `low` to `high`."""
    return Rule(f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def whole_list(text: str) -> tuple[int, ...]:
    """Returns the numbers of a text such as "1,2,2"; none of "off"."""
    return () if text == "off" else tuple(int(part) for part in text.split(","))


def parse_progressive(text: str) -> tuple[tuple[int, int], ...]:
    """Returns the pairs (iteration, num_steps) of a text such as "0:10,2000:30".

    Iterations must increase from 0. "auto" and "off" have no pairs.
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


def _is_progressive(text: str) -> bool:
    try:
        parse_progressive(text)
    except ValueError:
        return False
    return True


def _is_whole_list(text: str) -> bool:
    matches = re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4}){0,15}", text, re.ASCII)
    return matches is not None and max(whole_list(text)) <= 65536


def _is_utf8(text: str) -> bool:
    return all(not 0xD800 <= ord(letter) < 0xE000 for letter in text)


FINITE = Rule("a finite number", math.isfinite)
# The networks compute in float32, and their optimiser refuses larger numbers in the first step.
SMALLEST, LARGEST = 1.2e-38, 3.4e38
POSITIVE = Rule(
    f"a number from {SMALLEST} to {LARGEST}, the range of float32",
    lambda value: SMALLEST <= value <= LARGEST,
)
NOT_NEGATIVE = Rule(f"a number from 0 to {LARGEST}", lambda value: 0 <= value <= LARGEST)
# As `processes.LogSNR`, which this module does not import: help texts need no torch.
LOG_SNR = Rule("a number from -40 to 40", lambda value: -40 <= value <= 40)
BELOW_ONE = Rule("a number from 0 up to but not including 1", lambda value: 0 <= value < 1)
UP_TO_ONE = Rule("a number above 0 up to 1", lambda value: 0 < value <= 1)
TEXT = Rule("a name or a path", _is_utf8)
NAMES = Rule("names such as cut,price", lambda text: _is_utf8(text) and text.strip(", ") != "")
SEED = whole(0, MAX_SEED)
DEVICE = Rule(
    "auto, cpu, cuda or cuda:INDEX",
    lambda name: re.fullmatch(r"auto|cpu|cuda(:\d+)?", name, re.ASCII) is not None,
)
WHOLE_LIST = Rule("whole numbers such as 1,2,2", _is_whole_list)
SIZES = Rule(
    "off, or whole numbers such as 16,8", lambda text: text == "off" or _is_whole_list(text)
)
PROGRESSIVE = Rule(
    "auto, off, or pairs iteration:num_steps such as 0:10,2000:30, iterations rising from 0",
    _is_progressive,
)
