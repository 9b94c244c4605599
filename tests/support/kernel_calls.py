"""Calls of every kernel of the core, with random arguments of any shape and pair of dtypes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import NoiseKey
from diffflow_ext.functional import PURPOSES
from diffflow_ext.functional import core as functional_core
from diffflow_ext.functional.adjoint import AdjointState, adjoint_step
from diffflow_ext.functional.affine import launch_affine_step
from diffflow_ext.functional.noise import (
    launch_normal,
    noise_dot,
    noise_energy,
    noise_source,
)
from diffflow_ext.functional.perturb import launch_perturb
from diffflow_ext.functional.residual import (
    backward_residual_vjp,
    launch_backward_residual,
    launch_residual_cost,
    residual_cost_vjp,
)
from diffflow_ext.functional.steps import launch_em_step, launch_reverse_step

KEY = NoiseKey(seed=0x0123456789ABCDEF, stream=7)
DT, DT_NEXT, G = 0.05, 0.07, 0.7
STEP, OFFSET = 11, 2**32 - 1000
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
#: The pairs that there are kernels for, in the order of their codes.
TYPES = [(F32, F32), (F32, BF16), (F32, F16), (F64, F64)]
Result = tuple[Tensor | None, ...]
Call = Callable[[], Result]


@dataclass
class Arguments:
    """Random arguments of one shape and pair of types; `shift` elements off an aligned address."""

    shape: tuple[int, ...]
    types: tuple[torch.dtype, torch.dtype]
    shift: int = 0

    def state(self) -> Tensor:
        return self._placed(torch.randn(self.shape, dtype=self.types[0]))

    def network(self) -> Tensor:
        return self._placed(torch.randn(self.shape).to(self.types[1]))

    def column(self) -> Tensor:
        return torch.rand(self.shape[0], dtype=self.types[0]) + 0.1

    def scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.types[0])

    def _placed(self, x: Tensor) -> Tensor:
        store = torch.empty(x.numel() + self.shift, dtype=x.dtype)
        return store[self.shift :].view(x.shape).copy_(x)


def each(*calls: Call) -> Call:
    """One call for several, so that their arguments are drawn once."""
    return lambda: tuple(value for call in calls for value in call())


def single(function: Callable[..., Tensor], *arguments: Any) -> Call:
    return lambda: (function(*arguments),)


def normal(a: Arguments) -> Call:
    def draw(key: Any) -> Call:
        out = torch.empty(a.shape, dtype=a.types[0])
        noise = (key, PURPOSES["dsm"], STEP, OFFSET)
        return lambda: (launch_normal(out.fill_(torch.nan), *noise).clone(),)

    return each(draw(KEY), draw(KEY.to_tensor()))


def em_step(a: Arguments) -> Call:
    x, f, out = a.state(), a.network(), a.state()
    noise = (STEP, OFFSET)
    dt, g = a.scalar(DT), a.scalar(G)
    return each(
        single(launch_em_step, x, f, DT, G, KEY, *noise),
        single(launch_em_step, x, f, dt, g, KEY.to_tensor(), *noise),
        lambda: (launch_em_step(x, f, DT, G, KEY, *noise, out=out.fill_(torch.nan)).clone(),),
    )


def residual_tensors(a: Arguments) -> tuple[Tensor, ...]:
    return a.state(), a.state(), a.network(), a.network()


def backward_residual(a: Arguments) -> Call:
    rows = residual_tensors(a)
    return each(
        single(launch_backward_residual, *rows, DT, G),
        single(launch_backward_residual, *rows, a.scalar(DT), a.scalar(G)),
    )


def call_backward_residual_vjp(a: Arguments) -> Call:
    grad = a.state()
    return lambda: backward_residual_vjp(grad, DT, G)


def reverse_step(a: Arguments) -> Call:
    _, x_next, f, s = residual_tensors(a)
    rest = (x_next, f, s, DT, G, KEY, STEP)
    return each(*(single(launch_reverse_step, *rest, c, OFFSET) for c in (0.0, 0.5, 1.0)))


def affine_step(a: Arguments) -> Call:
    """With and without a second network; no noise, noise, and all factors in memory."""
    x, first, second = a.state(), a.network(), a.network()
    in_memory = [a.scalar(value) for value in (0.9, DT, -G, 0.3)]
    numbers, noise = (0.9, DT, -G), (PURPOSES["langevin"], STEP, OFFSET)
    return each(
        *(
            each(
                single(launch_affine_step, x, first, b, *numbers, 0.0, None, *noise),
                single(launch_affine_step, x, first, b, *numbers, 0.3, KEY, *noise),
                single(launch_affine_step, x, first, b, *in_memory, KEY.to_tensor(), *noise),
            )
            for b in (None, second)
        )
    )


def perturb(a: Arguments) -> Call:
    x0, alpha, sigma, elements = a.state(), a.column(), a.column(), a.state().abs_()

    def silent() -> Result:
        """Without writing the noise, which only the core can be asked for."""
        x_t = torch.empty_like(x0)
        functional_core.core.perturb(
            functional_core.target(x0),
            noise_source(KEY, PURPOSES["dsm"], STEP, OFFSET),
            *(x0.data_ptr(), alpha.data_ptr(), sigma.data_ptr(), 1, False, x_t.data_ptr(), 0),
        )
        return (x_t,)

    return each(
        lambda: launch_perturb(x0, alpha, sigma, KEY, STEP, OFFSET),
        lambda: launch_perturb(x0, alpha[:1], sigma[:1], KEY, STEP, OFFSET),
        lambda: launch_perturb(x0, alpha, elements, KEY, STEP, OFFSET),
        silent,
    )


def call_noise_dot(a: Arguments) -> Call:
    return single(noise_dot, a.state(), KEY, 1, STEP, OFFSET)


def call_noise_energy(a: Arguments) -> Call:
    x, previous = a.state(), a.column()
    return each(
        single(noise_energy, x, KEY, STEP, OFFSET),
        single(noise_energy, x, KEY.to_tensor(), STEP, OFFSET, previous),
    )


def residual_cost(a: Arguments) -> Call:
    rows, previous = residual_tensors(a), a.column()
    return each(
        single(launch_residual_cost, *rows, DT, G),
        single(launch_residual_cost, *rows, a.scalar(DT), a.scalar(G), previous),
    )


def call_residual_cost_vjp(a: Arguments) -> Call:
    rows, grad = residual_tensors(a), a.column()
    return lambda: residual_cost_vjp(grad, *rows, DT, G)


def call_adjoint_step(a: Arguments, combinations: Any = None) -> Call:
    """All `combinations` of (place, parts that exist, weights, learned g), or one full one."""
    x_prev, x, f, s = a.state(), a.state(), a.network(), a.network()
    local, parts = a.state(), (a.state(), a.state(), a.state())
    weights = a.column()

    def one(place: str, present: tuple[bool, ...], weighted: bool, learned: bool) -> Call:
        start, end = place in ("first", "only"), place in ("last", "only")
        chosen = (p if there else None for p, there in zip(parts, present, strict=True))
        after = None if end else AdjointState(local, *chosen)
        return lambda: adjoint_step(
            None if start else x_prev,
            x,
            f,
            None if start else s,
            after,
            weight=weights if weighted else 0.4,
            dt=DT,
            dt_next=DT_NEXT,
            g=a.scalar(G) if learned else G,
            key=KEY,
            step=STEP,
            sample_offset=OFFSET,
            want_grad_g=learned,
        )

    full = (("inner", (True, True, True), True, learned) for learned in (False, True))
    return each(*(one(*combination) for combination in combinations or full))


ELEMENTWISE = [
    *(normal, em_step, backward_residual, call_backward_residual_vjp),
    *(reverse_step, affine_step, perturb),
]
REDUCTIONS = [
    call_noise_dot,
    call_noise_energy,
    residual_cost,
    call_residual_cost_vjp,
    call_adjoint_step,
]
#: Kernels of the state alone: their bits do not depend on a network's type.
OF_STATE = (normal, call_backward_residual_vjp, perturb, call_noise_dot, call_noise_energy)
Make = Callable[[Arguments], Call]


def pairs(make: Make) -> list[tuple[torch.dtype, torch.dtype]]:
    return [TYPES[0], TYPES[3]] if make in OF_STATE else TYPES
