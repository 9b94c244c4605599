"""What is run on a device, and what must come out: single ops, and whole paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from helpers import same_bits
from host_device import poisoned_memory
from kernel_calls import (
    DT,
    ELEMENTWISE,
    REDUCTIONS,
    TYPES,
    Arguments,
    Call,
    G,
    Make,
    pairs,
)
from path_cases import ERRORS, KEY, Case
from torch import Tensor

from diffflow_ext import DiffFlowSDE
from diffflow_ext.engines.fused import perceptrons, workspace
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.fused.workspace import Rounding
from diffflow_ext.functional import core as functional_core
from diffflow_ext.functional.noise import launch_philox_words

Results = Sequence[Tensor | None]


@dataclass(frozen=True)
class Check:
    """A call, and whether its results are right."""

    name: str
    run: Callable[[], Results]
    agrees: Callable[[Results], bool]


# --- single ops ----------------------------------------------------------------------------------


def philox_words(a: Arguments) -> Call:
    counter, key = (torch.randint(2**32, (math.prod(a.shape), n)) for n in (4, 2))
    return lambda: (launch_philox_words(counter, key),)


def residual_vjp(a: Arguments) -> Call:
    """Kernels for half types among them, which only the core can be asked for."""
    grad = a.state()

    def call() -> Results:
        states = [torch.empty_like(grad) for _ in range(2)]
        networks = [torch.empty_like(grad, dtype=a.types[1]) for _ in range(2)]
        functional_core.core.backward_residual_vjp(
            functional_core.target(grad, a.types[1]),
            functional_core.number(DT),
            functional_core.number(G),
            *map(functional_core.address, (grad, *states, *networks)),
        )
        return *states, *networks

    return call


OPS: list[Make] = [*ELEMENTWISE, *REDUCTIONS, philox_words, residual_vjp]


def types_of(make: Make) -> list[tuple[torch.dtype, torch.dtype]]:
    if make is residual_vjp:
        return TYPES
    return TYPES[:1] if make is philox_words else pairs(make)


def op_check(name: str, call: Call) -> Check:
    """Equal to the installed core's loops for the CPU, to the bit."""
    with poisoned_memory():
        expected = call()

    def agrees(found: Results) -> bool:
        return all(same_bits(a, b) for a, b in zip(found, expected, strict=True))

    return Check(name, call, agrees)


def op_checks(make: Make, shapes: Iterable[tuple[int, ...]]) -> Iterator[Check]:
    """All pairs of types, with rows that start where a wide access may, and elsewhere."""
    for shape, types, shift in itertools.product(shapes, types_of(make), (0, 1)):
        name = f"{make.__name__} {shape} {types} {shift}"
        yield op_check(name, make(Arguments(shape, types, shift)))


# --- whole paths ---------------------------------------------------------------------------------


#: Whole tiles of 16 samples and not, one and several; widths of one unit of a warp, of an odd and
#: an even number, and such that are no whole number; no hidden layer to eight; each activation.
# Their gradients are well conditioned.
path = partial(Case, scale=1.2)
CASES = [
    path(2, (32, 48), (2, 2), 20, 4),
    path(1, (7, 40), (1, 3), 17, 3, ("tanh", "gelu"), learned_g=True),
    path(5, (64, 16), (0, 2), 33, 2, ("silu", "tanh"), learned_g=True),
    path(13, (48, 96), (3, 0), 16, 3, ("gelu", "gelu")),
    path(2, (208, 208), (3, 3), 17, 1, ("gelu", "gelu"), learned_g=True),
    path(2, (128, 128), (3, 3), 5, 2, ("gelu", "gelu"), learned_g=True),
    path(2, (16, 17), (8, 8), 48, 5, ("tanh", "silu"), learned_g=True),
    path(3, (256, 200), (0, 1), 18, 2, learned_g=True),
]


def gradients(sde: DiffFlowSDE, x0: Tensor, loss: Tensor) -> list[Tensor]:
    """The loss and its gradients: of the data, and of all parameters."""
    return [loss.detach(), *torch.autograd.grad(loss, [x0, *sde.parameters()])]


def truth(case: Case) -> list[Tensor]:
    """The same by the adjoint in float64, which tests/engines holds against autograd."""
    sde, x0 = case.sde().double(), case.data().double().requires_grad_()
    losses = sde.loss(x0, case.grid(), KEY, engine="autograd")
    return gradients(sde, x0, (losses * case.weight().double()).sum())


def engine(sde: DiffFlowSDE, x0: Tensor, case: Case, rounding: Rounding, key: Any) -> FusedPaths:
    """The kernels for a GPU, with time embeddings by torch, as there."""
    problem, x0 = sde._problem("test", x0, case.grid(), key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptrons, "embedding_or_none", lambda *_: None)
        drift, score = (
            perceptrons.parts_or_reason(net, problem.times, x0) for net in (sde.drift, sde.score)
        )
    assert isinstance(drift, workspace.Parts)
    assert isinstance(score, workspace.Parts)
    return FusedPaths(problem, drift, score, "ptx", rounding)


def run_paths(case: Case, rounding: Rounding, key: Any = KEY) -> list[Tensor]:
    sde, x0 = case.sde(), case.data().requires_grad_()
    loss = engine(sde, x0, case, rounding, key).mean_loss(x0, case.weight())
    return gradients(sde, x0, loss)


def distance(found: Results, expected: Sequence[Tensor]) -> float:
    """The largest error relative to a tensor's norm; infinite where something is not finite."""

    def one(a: Tensor | None, b: Tensor) -> float:
        assert a is not None
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-30))
        return error if math.isfinite(error) else math.inf

    return max(one(a, b) for a, b in zip(found, expected, strict=True))


def path_check(case: Case, rounding: Rounding) -> Check:
    """Within the bound of its rounding of float64."""
    expected = truth(case)
    return Check(
        f"{case} {rounding}",
        lambda: run_paths(case, rounding),
        lambda found: distance(found, expected) <= ERRORS[rounding],
    )
