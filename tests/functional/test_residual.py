"""backward_residual, residual_cost and the step of the adjoint."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from op_cases import DT, F64, KEY, OFFSET, STEP, G
from torch import Tensor

from diffflow_ext import functional
from diffflow_ext.functional import reference
from diffflow_ext.functional.adjoint import AdjointState, adjoint_step

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_residual_inverts_a_reverse_step() -> None:
    """The noise that the reverse SDE needs is the noise it was given."""
    x_next, f, s = (torch.randn(8, 6, dtype=F64) for _ in range(3))
    x = functional.reverse_step(x_next, f, s, dt=DT, g_next=G, key=KEY, step=2)
    residual = functional.backward_residual(x, x_next, f, s, dt=DT, g_next=G)
    eps = functional.normal((8, 6), KEY, purpose="reverse", step=2, dtype=F64)
    assert_close(residual, eps, "float64")


def optional(present: bool, shape: tuple[int, ...]) -> Tensor | None:
    return torch.randn(shape, dtype=F64) if present else None


@pytest.mark.parametrize("each", [False, True], ids=["weight", "weights"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed_g", "learned_g"])
@pytest.mark.parametrize("parts", ["", "f", "s", "q", "fs", "fsq"])
@pytest.mark.parametrize("place", ["first", "inner", "last"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 9000)], ids=str)
def test_adjoint_step_equals_autograd(
    shape: tuple[int, int], place: str, parts: str, learned: bool, each: bool
) -> None:
    x, f = torch.randn(shape, dtype=F64), torch.randn(shape, dtype=F64)
    x_prev, s = (optional(place != "first", shape) for _ in range(2))
    after = None
    if place != "last":
        after = AdjointState(
            torch.randn(shape, dtype=F64), *(optional(part in parts, shape) for part in "fsq")
        )
    options = {
        "weight": torch.rand(shape[0], dtype=F64) if each else 0.4,
        **{"dt": DT, "dt_next": 0.07, "g": G, "key": KEY, "step": STEP, "sample_offset": OFFSET},
        "want_grad_g": learned,
    }
    actual = adjoint_step(x_prev, x, f, s, after, **options)
    eps = functional.normal(shape, KEY, step=STEP, sample_offset=OFFSET, dtype=F64)
    expected = reference.adjoint_step(x_prev, x, f, s, after, **options, eps=eps)
    for name, value, truth in zip(actual._fields, actual, expected, strict=True):
        assert (value is None) == (truth is None), name
        if value is not None:
            assert_close(value, truth, "float64", scale=shape[1] ** 0.5)
