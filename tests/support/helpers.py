"""How ops are checked against their references, and how closely: the one table of tolerances."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffflow_ext.functional.core import core

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
CSRC = ROOT / "csrc"
# The part of the build's flags that decides bits; see CMakeLists.txt.
CPP_FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")
#: Sets of instructions of the ops and of the fused engine that this processor has.
ENGINES = [name for name in core.instructions() if "bf16" not in name]
#: What compilers need for them, as in CMakeLists.txt. Headers of GCC 12 leave the masked-out
#: operand of intrinsics undefined, and warn of it.
AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-Wno-uninitialized",
          "-Wno-maybe-uninitialized")  # fmt: skip
OPTIONS_OF = {"portable": (), "avx2": ("-mavx2", "-mfma"), "avx512": AVX512}
LANES = {"portable": 4, "avx2": 8, "avx512": 16}
#: Those of the engine for products of bfloat16.
BF16_ENGINES = [name for name in core.instructions() if "bf16" in name]


@dataclass(frozen=True)
class Tolerance:
    """A bound on an error, and why it is that large."""

    bound: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "log_ulp": Tolerance(2.0, "promised by normal.h; an ulp of the float32 nearest the truth"),
    "sincospi_ulp": Tolerance(
        2.0, "promised by normal.h; an ulp of the float32 nearest the truth"
    ),
    "normal": Tolerance(
        4 * 2.0**-23,
        "relative: half of the logarithm's 2 ulp, the root's rounding, the sine's 2 ulp and the "
        "product's rounding; an ulp is at most 2^-23",
    ),
    "float64": Tolerance(
        1e-13, "to the largest entry: a dozen roundings of 1.1e-16, terms up to 20 times larger"
    ),
    "float32": Tolerance(
        4e-6, "to the largest entry: a dozen roundings of 6e-8, terms up to 6 times larger"
    ),
    "bfloat16": Tolerance(2.0**-8 * 1.01, "relative: one rounding to 8 bits, after float32's own"),
    "float16": Tolerance(
        2.0**-11 * 1.01, "relative: one rounding to 11 bits, after float32's own"
    ),
    "float32_sum": Tolerance(
        1e-6,
        "to the root of the number of terms times the largest gradient of a term: each is right "
        "to 4e-6, and errors of either sign mostly cancel",
    ),
    "float64_sum": Tolerance(1e-13, "as float32_sum, in float64"),
    "noise_float32": Tolerance(
        5e-6, "as float32, with draws that differ from the float64 reference by 'normal'"
    ),
}


def bound(name: str) -> float:
    """Looks a tolerance up."""
    return TOLERANCES[name].bound


# --- comparisons ---------------------------------------------------------------------------------


def same_bits(actual: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two tensors agree in dtype, shape and every bit; signs of zeros and NaN count."""
    if actual is None or expected is None:
        return actual is expected
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    return torch.equal(actual.contiguous().view(integers), expected.contiguous().view(integers))


def assert_close(actual: Tensor, expected: Tensor, tolerance: str, scale: float = 1.0) -> None:
    """The largest error, against the largest expected value or `scale`, whichever is larger."""
    assert actual.shape == expected.shape
    if not expected.numel():
        return
    error = (actual.double() - expected.double()).abs().max().item()
    size = max(scale, expected.abs().max().item())
    assert error <= bound(tolerance) * size, f"{tolerance}: error {error:.3g} at size {size:.3g}"


def assert_relative(actual: Tensor, expected: Tensor, tolerance: str, floor: float) -> None:
    """Every entry against itself; below `floor` only the absolute error counts."""
    error = (actual.double() - expected.double()).abs()
    allowed = bound(tolerance) * expected.abs().clamp(min=floor)
    assert bool((error <= allowed).all()), f"{tolerance}: {(error / allowed).max():.3g} of it"


# --- one check for every op ----------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Arguments of an op.

    Arguments:
        rows: Tensors with one row a sample, differentiable.
        scalars: Tensors of one element, differentiable.
        options: Everything else.
    """

    rows: dict[str, Tensor]
    scalars: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.rows, **self.scalars}

    @property
    def state(self) -> Tensor:
        return next(iter(self.rows.values()))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""
        return replace(
            self,
            rows={name: change(value) for name, value in self.rows.items()},
            scalars={name: change(value) for name, value in self.scalars.items()},
        )

    def rows_mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor that has rows changed."""
        return replace(self, rows={name: change(value) for name, value in self.rows.items()})

    def call(self, op: Callable[..., Tensor]) -> Tensor:
        return op(**self.tensors, **self.options)


Op = Callable[..., Tensor]


def check_op(op: Op, reference: Op, inputs: Inputs) -> None:
    """Value, gradients, gradcheck, an empty batch and strided input of one op.

    `reference` is run in float64 on the same numbers.
    """
    _check_value(op, reference, inputs)
    _check_gradients(op, reference, inputs)
    _check_strided(op, inputs)
    _check_empty(op, inputs)
    if inputs.state.numel() <= 32:
        _check_numeric(op, inputs)


def _leaves(inputs: Inputs) -> Inputs:
    return inputs.mapped(lambda value: value.detach().clone().requires_grad_())


def gradients(op: Op, inputs: Inputs, cotangent: Tensor | None = None) -> dict[str, Tensor]:
    """Value and gradients of an op by the names of its tensors; the value is named `value`."""
    leaves = _leaves(inputs)
    value = leaves.call(op)
    weight = torch.ones_like(value) if cotangent is None else cotangent.to(value)
    grads = torch.autograd.grad(value, list(leaves.tensors.values()), weight)
    return {"value": value.detach(), **dict(zip(leaves.tensors, grads, strict=True))}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_value(op: Op, reference: Op, inputs: Inputs) -> None:
    value, expected = inputs.call(op), inputs.mapped(Tensor.double).call(reference)
    assert value.dtype == inputs.state.dtype
    assert value.is_contiguous()
    assert_close(value, expected, _name(value.dtype))


def _check_gradients(op: Op, reference: Op, inputs: Inputs) -> None:
    cotangent = torch.randn(inputs.call(op).shape).clamp(-3, 3)
    actual = gradients(op, inputs, cotangent)
    expected = gradients(reference, inputs.mapped(Tensor.double), cotangent)
    state = _name(inputs.state.dtype)
    largest = max((e.abs().max().item() for e in expected.values() if e.numel()), default=1.0)
    for name, value in inputs.rows.items():
        grad = actual[name]
        assert (grad.dtype, grad.shape) == (value.dtype, value.shape)
        if value.dtype in (torch.float32, torch.float64):
            assert_close(
                grad, expected[name], state if value.dtype == torch.float64 else "float32"
            )
        else:
            # Below the floor float32's own error, or half's subnormal step, is the larger part.
            assert_relative(grad, expected[name], _name(value.dtype), floor=2e-3 * largest)
    for name, value in inputs.scalars.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape)
        terms = max(inputs.state.numel(), 1) ** 0.5 * largest
        assert_close(actual[name], expected[name], f"{state}_sum", scale=terms)


def _check_strided(op: Op, inputs: Inputs) -> None:
    strided = inputs.rows_mapped(lambda value: torch.stack([value, -value], dim=-1)[..., 0])
    expected, actual = gradients(op, inputs), gradients(op, strided)
    for name, value in expected.items():
        assert same_bits(actual[name], value), f"{name} depends on strides"


def _check_empty(op: Op, inputs: Inputs) -> None:
    empty = inputs.rows_mapped(lambda value: value[:0])
    results = gradients(op, empty)
    assert results["value"].shape == (0, *inputs.call(op).shape[1:])
    for name, value in empty.tensors.items():
        assert results[name].shape == value.shape
        assert not results[name].any()


def _check_numeric(op: Op, inputs: Inputs) -> None:
    leaves = _leaves(inputs.mapped(Tensor.double))
    names = list(leaves.tensors)

    def plain(*values: Tensor) -> Tensor:
        return op(**dict(zip(names, values, strict=True)), **leaves.options)

    assert torch.autograd.gradcheck(plain, tuple(leaves.tensors.values()), fast_mode=False)


@contextmanager
def ops_with(instructions: str) -> Iterator[None]:
    """Runs ops on the CPU with a set of instructions."""
    before = core.op_instructions()
    core.use_op_instructions(instructions)
    try:
        yield
    finally:
        core.use_op_instructions(before)


# --- C++ built for a test ------------------------------------------------------------------------


def compile_cpp(sources: Sequence[Path], to: Path, options: Sequence[str]) -> Path:
    """Builds C++ as the package is built, or skips the test where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    command = ["g++", *CPP_FLAGS, *options, *map(str, sources), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to


def replace_everywhere(patch: pytest.MonkeyPatch, original: object, value: object) -> None:
    """Puts a value in the place of an object in all modules of the package that imported it."""
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "diffflow_ext"]:
        for name in [n for n, held in vars(module).items() if held is original]:
            patch.setattr(module, name, value)
