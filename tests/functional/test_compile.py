"""Ops as torch operators, and in graphs of torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import Op, gradients, same_bits
from op_cases import DT, DTYPES, F32, KEY, MAKE, OFFSET, STEP, G, residual_rows
from torch import Tensor

from diffflow_ext import functional
from diffflow_ext.functional.operator import operators

pytestmark = pytest.mark.usefixtures("one_thread")


def operator_arguments() -> dict[str, tuple]:
    """Arguments for every operator of the package."""
    rows = tuple(residual_rows((3, 5), DTYPES[0]).values())
    half = tuple(residual_rows((3, 5), DTYPES[2]).values())
    dt, g, key = torch.tensor(DT), torch.tensor(G), KEY.to_tensor()
    each = torch.rand(3)
    return {
        "normal": ([3, 5], key, 0, STEP, OFFSET, F32, torch.device("cpu")),
        "em_step": (rows[0], rows[2], dt, g, key, STEP, OFFSET),
        "backward_residual": (*rows, dt, g),
        "backward_residual_vjp": (rows[0], dt, g),
        "residual_cost": (*half, dt, g),
        "residual_cost_vjp": (each, *half, dt, g),
        "reverse_step": (rows[1], rows[2], rows[3], dt, g, key, STEP, 0.5, OFFSET),
        "affine_step": (rows[0], rows[2], rows[3], dt, g, dt, g, key, 1, STEP, OFFSET),
        "perturb": (rows[0], each, each, key, STEP, OFFSET),
        "noise_dot": (rows[0], key, 0, STEP, OFFSET),
    }


def registered() -> set[str]:
    names = [schema.name for schema in torch._C._jit_get_all_schemas()]
    return {name.split("::")[1] for name in names if name.startswith("diffflow_ext::")}


@pytest.mark.parametrize("name", sorted(registered()))
def test_operator_passes_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(operators, name).default, operator_arguments()[name])


@pytest.mark.parametrize("name", ["em_step", "residual_cost_vjp", "affine_step", "perturb"])
def test_operator_passes_opcheck_on_strided_and_empty_input(name: str) -> None:
    for change in (lambda t: t[:0], lambda t: torch.stack([t, t], -1)[..., 0]):
        arguments = tuple(
            change(a) if isinstance(a, Tensor) and a.dim() and a.dtype != torch.int64 else a
            for a in operator_arguments()[name]
        )
        torch.library.opcheck(getattr(operators, name).default, arguments)


Compile = Callable[[Op], tuple[Op, Any]]


@pytest.fixture
def compiled() -> Iterator[Compile]:
    """Compiles a function without graph breaks; also returns the counter of its compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()

    def build(op: Op) -> tuple[Op, Any]:
        counter = CompileCounterWithBackend("aot_eager")
        return torch.compile(op, fullgraph=True, backend=counter), counter

    yield build
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MAKE)
def test_compiled_op_equals_eager(compiled: Compile, name: str) -> None:
    case = MAKE[name]((5, 3), DTYPES[4], True)
    op, counter = compiled(case.op)
    expected = gradients(case.op, case.inputs)
    for part, value in gradients(op, case.inputs).items():
        if part in case.inputs.scalars:  # summed over the batch by another kernel of torch
            torch.testing.assert_close(value, expected[part])
        else:
            assert same_bits(value, expected[part]), part
    assert counter.frame_count == 1


def test_compiled_normal_equals_eager(compiled: Compile) -> None:
    op, _ = compiled(lambda key: functional.normal((5, 3), key, step=STEP))
    assert same_bits(op(KEY), functional.normal((5, 3), KEY, step=STEP))
    assert same_bits(op(KEY.to_tensor()), functional.normal((5, 3), KEY, step=STEP))


def test_new_tensor_keys_and_coefficients_do_not_compile_again(compiled: Compile) -> None:
    def both(x: Tensor, f: Tensor, s: Tensor, dt: Tensor, g: Tensor, key: Tensor) -> Tensor:
        x_next = functional.em_step(x, f, dt=dt, g=g, key=key, step=STEP)
        cost = functional.residual_cost(x, x_next, f, s, dt=dt, g_next=g)
        back = functional.reverse_step(x_next, f, s, dt=dt, g_next=g, key=key, step=STEP)
        moved = functional.affine_step(x, f, s, c_a=g, c_b=0.3, noise_scale=dt, key=key)
        return cost + back.sum(1) + moved.sum(1)

    op, counter = compiled(both)
    for stream in range(4):
        x, f, s = torch.randn(3, 5, 2).requires_grad_().unbind()
        dt, g = torch.rand(()) + 0.1, (torch.rand(()) + 0.1).requires_grad_()
        arguments = (x, f, s, dt, g, KEY.at(stream).to_tensor())
        value, expected = op(*arguments), both(*arguments)
        torch.testing.assert_close(value, expected)
        grads = torch.autograd.grad(value.sum(), (x, f, s, g))
        torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), (x, f, s, g)))
    assert counter.frame_count == 1


def test_steps_and_batch_sizes_compile_at_most_twice(compiled: Compile) -> None:
    """The second value makes an integer symbolic; later ones are free."""
    key, dt = KEY.to_tensor(), torch.tensor(DT)
    op, counter = compiled(
        lambda x, step: functional.em_step(x, x, dt=dt, g=dt, key=key, step=step)
    )
    for step, batch in ((2, 3), (3, 4), (7, 9), (8, 12)):
        x = torch.randn(batch, 2)
        eager = functional.em_step(x, x, dt=dt, g=dt, key=key, step=step)
        assert same_bits(op(x, step), eager)
    assert counter.frame_count <= 2


def test_numbers_may_change_between_compiled_calls(compiled: Compile) -> None:
    """Each compiles again; a scale of 0 makes a graph without noise and leaves it again."""

    def step(x: Tensor, a: Tensor, c: float, scale: float) -> Tensor:
        return functional.affine_step(x, a, c_a=c, noise_scale=scale, key=KEY, step=STEP)

    op, _ = compiled(step)
    x, a = torch.randn(2, 5, 3)
    for c, scale in ((0.1, 0.0), (0.1, 0.5), (0.2, 0.6), (0.2, 0.0)):
        assert same_bits(op(x, a, c, scale), step(x, a, c, scale))
