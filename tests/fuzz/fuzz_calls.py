"""Bad arguments for every public function, as a script: one process, a line for each finding.

    python fuzz_calls.py PROGRESS FIRST COUNT

Case k is a function of k alone: a target, and the arguments of a good call of which one to three
are replaced. PROGRESS holds the number of the case in hand, so that whoever started the script can
name the case that ended the process; one that hangs ends it too. The last line counts outcomes.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import random
import re
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import KEY, TARGETS, x

from diffflow_ext import GeometricDiffusion, NoiseKey, TimeGrid

#: A message of the package begins with the name of what was called.
OURS = re.compile(r"^[A-Za-z_][\w.]*: ")
#: PyTorch's own words where memory runs out or no tensor of that size can be.
MEMORY = re.compile(r"allocate memory|not enough memory|Storage size calculation overflowed")
SECONDS = 20
SPARE_BYTES = 3 * 2**29


# --- values --------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A network or a coefficient that returns the same whatever it is given."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *arguments: Any) -> Any:
        return self.value


class Geometric(GeometricDiffusion):
    """A coefficient that may be called as a network too."""

    def forward(self, times: Tensor, *others: Any) -> Tensor:
        return super().forward(times)


def freed() -> Tensor:
    """A tensor whose memory has been given back, as wrappers that shard parameters leave them."""
    value = x(2, 3)
    value.untyped_storage().resize_(0)
    return value


def inner_gradient() -> Tensor:
    return x(2, 3).requires_grad_() * 2


NUMBERS: list[Any] = [
    0, 1, -1, 3, 2**24 + 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, -0.5, 1e-320, 1e-45, 1e-38, 1e-12, 1e38, 1e39, 1e308,
    float("nan"), float("inf"), -float("inf"), True, False, 1j, Fraction(1, 3), Decimal("0.1"),
    np.float32(0.5), np.float64("nan"), np.int64(2), np.int8(-1), np.bool_(True), np.uint64(2**63),
]  # fmt: skip
OTHERS: list[Callable[[], Any]] = [
    lambda: None, lambda: "", lambda: "x", lambda: "\ud800", lambda: "0:" + "9" * 5000,
    lambda: b"", lambda: [], lambda: (), lambda: {}, set, object,
    lambda: [1, [2]], lambda: (2, 3), lambda: (0,), lambda: (0, 3), lambda: (2, 0), lambda: (3,),
    lambda: (2**31, 2), lambda: (2, 2**34), lambda: (2**62, 2**62), lambda: (2, -1),
    lambda: (True, 3), lambda: (2.0, 3), lambda: ("2", 3), lambda: [None, 3], lambda: range(3),
    lambda: iter([0.0, 1.0]), lambda: {"data": 3}, lambda: {"data": "x", "stepz": 1},
    lambda: {1: 2}, lambda: {"data": "x", None: 1}, lambda: ((0, 2), (0, 3)), lambda: ((0,),),
    lambda: ((0, "a"),), lambda: ((0, float("nan")),), lambda: (1, 2), lambda: NoiseKey(2**64 - 1),
    KEY.to_tensor, lambda: KEY.to_tensor().float(), lambda: TimeGrid.power(1, 1e-30),
    lambda: TimeGrid.power(2, 1e30), lambda: TimeGrid.from_times([-1e300, 0.0, 1e300]),
    lambda: TimeGrid.from_times([0.0, 1e-300, 1.0]), lambda: np.zeros((2, 3), np.float32),
    lambda: torch.float16, lambda: torch.int32, lambda: torch.device("meta"), lambda: "cuda",
    lambda: "meta", lambda: "cpu:7", lambda: "heun", lambda: "fused", lambda: "autograd",
    lambda: "dopri5", lambda: "hutchinson", lambda: "tweedie", lambda: "ve", lambda: "cosine",
    lambda: Constant(None), lambda: Constant(x(2, 3)), lambda: Constant(x(2)),
    lambda: Constant(x(2, 3).long()), lambda: Constant(torch.tensor(-1.0)),
    lambda: Constant(torch.tensor(float("nan"))), lambda: Constant(torch.ones(2, 3, 1)),
    lambda: Constant(x(2, 3, dtype=torch.complex64)), lambda: Constant(torch.zeros(())),
    lambda: Geometric(1e-30, 1e30),
    lambda: Geometric(0.5, 1.0, learnable=True), lambda: [x(2, 3)], lambda: [None],
    lambda: [nn.Parameter(x(2))],
]  # fmt: skip
TENSORS: list[Callable[[], Tensor]] = [
    lambda: torch.tensor(0.5), lambda: torch.tensor(float("nan")), lambda: torch.tensor(1e-42),
    lambda: torch.tensor(-1.0), lambda: torch.tensor([0.5], requires_grad=True),
    lambda: torch.tensor(0.5, dtype=torch.float16), lambda: torch.tensor(1), lambda: torch.ones(2),
    lambda: torch.tensor(True), lambda: torch.tensor(1j), lambda: x(0), lambda: x(0, 3),
    lambda: x(2, 0), lambda: x(1), lambda: x(3, 2), lambda: x(3, 2).T, lambda: x(2, 3, 1),
    lambda: x(2, 3)[:, :1].expand(2, 3), lambda: x(2, 6)[:, ::2], lambda: x(2, 3).flip(0),
    lambda: x(7)[1:].as_strided((2, 3), (1, 1)), lambda: x(1, 1).expand(2**31, 3),
    lambda: x(1, 1).expand(2, 2**34 + 1), lambda: x(1, 1).expand(2**31, 2**31),
    lambda: x(1).expand(2**33), lambda: x(2, 3, dtype=torch.float64),
    lambda: x(2, 3, dtype=torch.bfloat16), lambda: x(2, 3, dtype=torch.float16),
    lambda: x(2, 3).to(torch.float8_e4m3fn), lambda: x(2, 3, dtype=torch.complex64),
    lambda: torch.view_as_complex(x(2, 3, 2)).conj(), lambda: x(2, 3).long(),
    lambda: x(2, 3) > 0, lambda: x(2, 3).to(torch.int8),
    lambda: torch._neg_view(x(2, 3)), lambda: x(2, 3).to_sparse(), lambda: x(2, 3).to_sparse_csr(),
    lambda: x(2, 3).to_mkldnn(), lambda: x(2, 3).to("meta"),
    lambda: torch._efficientzerotensor(2, 3),
    lambda: torch.quantize_per_tensor(x(2, 3), 0.1, 0, torch.qint8), freed, inner_gradient,
    lambda: torch.nested.nested_tensor([x(3), x(2)]), lambda: nn.Parameter(x(2, 3)),
    lambda: x(2, 3).requires_grad_(), lambda: x(2, 3).fill_(float("nan")),
    lambda: x(2, 3).fill_(float("inf")), lambda: x(2, 3).fill_(1e38), lambda: x(2, 3).fill_(1e-42),
    nn.parameter.UninitializedParameter, lambda: torch.full((3, 4), 2**32),
    lambda: torch.full((3, 4), -1), lambda: torch.zeros(3, 2, dtype=torch.int64),
    lambda: torch.zeros(0, 4, dtype=torch.int64), lambda: torch.tensor([0.0, 1.0, 1.0]),
]  # fmt: skip


def replacement(old: Any, rng: random.Random) -> Any:
    """A value in the place of another, more often one of the same kind."""
    if isinstance(old, Tensor) and rng.random() < 0.7:
        return rng.choice(TENSORS)()
    if isinstance(old, (int, float)) and rng.random() < 0.6:
        return rng.choice(NUMBERS)
    pool: Any = rng.choice((NUMBERS, OTHERS, OTHERS, TENSORS))
    value = rng.choice(pool)
    return value if pool is NUMBERS else value()


def case(number: int) -> tuple[str, dict[str, Any], set[str]]:
    """The target of a case, its arguments, and which of them are not those of the good call."""
    rng = random.Random(number)
    name = rng.choice(list(TARGETS))
    arguments = TARGETS[name].good()
    spoiled = rng.sample(sorted(arguments), min(len(arguments), rng.choice((1, 1, 1, 2, 3))))
    for each in spoiled:
        arguments[each] = replacement(arguments[each], rng)
    if rng.random() < 0.1:
        arguments = dict(arguments, **{rng.choice(("dt", "key", "zzz")): rng.choice(NUMBERS)})
    return name, arguments, set(spoiled)


def described(number: int) -> str:
    """A case in words, for the message of a failure."""
    name, arguments, spoiled = case(number)
    words = (f"{each}={_short(arguments[each])}" for each in sorted(spoiled))
    return f"case {number}: {name}({', '.join(words)})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        lazy = nn.parameter.is_lazy(value) or value.is_nested
        shape = "?" if lazy else tuple(value.shape)
        return f"<{type(value).__name__} {value.dtype} {shape} {value.layout} on {value.device}>"
    return repr(value)[:80]


# --- the run -------------------------------------------------------------------------------------


def outcome(number: int) -> str:
    """What a case comes to: "done", "refused", "memory", or the words of a finding."""
    torch.manual_seed(0)
    name, arguments, _ = case(number)
    try:
        result = TARGETS[name].call(**arguments)
        _differentiate(result)
    except (ValueError, TypeError, RuntimeError) as error:
        return _judged(error)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def _differentiate(result: Any) -> None:
    values = result if isinstance(result, tuple) else (result,)
    for value in values:
        if isinstance(value, Tensor) and value.requires_grad and value.grad_fn is not None:
            value.sum().backward()


def _judged(error: Exception) -> str:
    text = str(error)
    if OURS.match(text) or "unexpected keyword argument" in text:
        return "refused"
    return "memory" if MEMORY.search(text) else f"{type(error).__name__}: {text}"


def limit_memory() -> None:
    """Makes huge allocations fail at once instead of filling the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def findings(progress: mmap.mmap, numbers: range, seen: Counter[str]) -> Iterator[str]:
    for number in numbers:
        progress[:8] = number.to_bytes(8, "little")
        if number % 100 == 0:
            faulthandler.dump_traceback_later(SECONDS, exit=True)
        result = outcome(number)
        seen[result if result in ("done", "refused", "memory") else "wrong"] += 1
        if result not in ("done", "refused", "memory"):
            yield f"{described(number)}: {' '.join(result.split())[:300]}"
    faulthandler.cancel_dump_traceback_later()


def main(progress: str, first: str, count: str) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    limit_memory()
    seen: Counter[str] = Counter()
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        for line in findings(shared, range(int(first), int(first) + int(count)), seen):
            print(line, flush=True)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
