"""Every kernel of the build as a case: its inputs, its call, and the same in eager torch.

Shared by the checks against the CPU (tests/gpu/test_ops.py), by the program that compute-sanitizer
watches (launches.py) and by the measurements (bandwidth.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import NoiseKey
from diffflow_ext.functional import reference
from diffflow_ext.functional.adjoint import AdjointState, adjoint_step
from diffflow_ext.functional.affine import launch_affine_step
from diffflow_ext.functional.noise import launch_normal, noise_dot, noise_energy
from diffflow_ext.functional.perturb import launch_perturb
from diffflow_ext.functional.residual import (
    backward_residual_vjp,
    launch_backward_residual,
    launch_residual_cost,
    residual_cost_vjp,
)
from diffflow_ext.functional.steps import launch_em_step, launch_reverse_step

from ..speed.ops import twin

Inputs = dict[str, Tensor]
Outputs = tuple[Tensor, ...]
DT, DT_NEXT, G, STEP, OFFSET = 0.03125, 0.0625, 0.75, 5, 1000
#: Of an affine step: the state's, both networks', the noise's.
FACTORS = (0.96875, -0.375, 0.25, 0.5)
KEY = NoiseKey(2**63 + 12345, 7)


@dataclass(frozen=True)
class Case:
    """One kernel.

    Arguments:
        states: Names of inputs of the state's shape and dtype.
        nets: Names of inputs of the state's shape in the networks' dtype.
        samples: Names of inputs of shape (B,).
        run: The kernel.
        eager: Eager torch operations that give the same, with noise from torch's generator.
        memory_bound: Whether moving its bytes is its cost, and a share of the copy's speed is due.
    """

    name: str
    states: tuple[str, ...]
    nets: tuple[str, ...]
    samples: tuple[str, ...]
    run: Callable[[Inputs], Outputs]
    eager: Callable[[Inputs], object] | None = None
    memory_bound: bool = True

    def inputs(
        self,
        shape: tuple[int, ...],
        state: torch.dtype,
        net: torch.dtype,
        device: torch.device | str,
        generator: torch.Generator,
    ) -> Inputs:
        """Draws inputs on the generator's device and brings them to `device`."""

        def draw(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            where = generator.device
            values = torch.randn(size, dtype=torch.float32, device=where, generator=generator)
            return values.to(device, dtype)

        return {
            **{name: draw(shape, state) for name in (*self.states, "x")},
            **{name: draw(shape, net) for name in self.nets},
            **{name: draw(shape[:1], state).abs() + 0.1 for name in self.samples},
        }


def bytes_moved(case: Case, inputs: Inputs, outputs: Outputs) -> int:
    """Counts each input that the kernel reads, once, and each output, once."""
    read = [inputs[name] for name in (*case.states, *case.nets, *case.samples)]
    return sum(t.numel() * t.element_size() for t in (*read, *outputs))


def _present(result: tuple[Tensor | None, ...]) -> Outputs:
    return tuple(value for value in result if value is not None)


def _residual(i: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return i["x"], i["x_next"], i["f"], i["s"]


def _adjoint(i: Inputs, *, learned: bool, last: bool = False, first: bool = False) -> Outputs:
    after = None if last else AdjointState(i["local"], i["vjp_f"], i["vjp_s"], i["carry"])
    return _present(
        adjoint_step(
            None if first else i["x_prev"],
            i["x"],
            i["f"],
            None if first else i["s"],
            after,
            weight=i["weight"],
            dt=DT,
            dt_next=DT_NEXT,
            g=G,
            key=KEY,
            step=STEP,
            sample_offset=OFFSET,
            want_grad_g=learned,
        )
    )


def _eager(op: str, i: Inputs) -> Any:
    return twin(op, i)()


_AFTER = ("local", "vjp_f", "vjp_s", "carry")

CASES = (
    Case(
        "normal", (), (), (),
        lambda i: (launch_normal(torch.empty_like(i["x"]), KEY, 0, STEP, OFFSET),),
        partial(_eager, "normal"),
        memory_bound=False,
    ),
    Case(
        "em_step", ("x",), ("f",), (),
        lambda i: (launch_em_step(i["x"], i["f"], DT, G, KEY, STEP, OFFSET),),
        partial(_eager, "em_step"),
        memory_bound=False,
    ),
    Case(
        "backward_residual", ("x", "x_next"), ("f", "s"), (),
        lambda i: (launch_backward_residual(*_residual(i), DT, G),),
        partial(_eager, "backward_residual"),
    ),
    Case(
        "backward_residual_vjp", ("x",), (), (),
        lambda i: backward_residual_vjp(i["x"], DT, G),
    ),
    Case(
        "residual_cost", ("x", "x_next"), ("f", "s"), ("previous",),
        lambda i: (launch_residual_cost(*_residual(i), DT, G, i["previous"]),),
        lambda i: _eager("residual_cost", i) + i["previous"],
    ),
    Case(
        "residual_cost_vjp", ("x", "x_next"), ("f", "s"), ("grad",),
        lambda i: residual_cost_vjp(i["grad"], *_residual(i), DT, G),
    ),
    Case(
        "reverse_step", ("x",), ("f", "s"), (),
        lambda i: (
            launch_reverse_step(i["x"], i["f"], i["s"], DT, G, KEY, STEP, 0.5, OFFSET),
        ),
        partial(_eager, "reverse_step"),
        memory_bound=False,
    ),
    Case(
        "affine_step", ("x",), ("f", "s"), (),
        lambda i: (launch_affine_step(i["x"], i["f"], i["s"], *FACTORS, KEY, 1, STEP, OFFSET),),
        lambda i: (
            reference.affine_step(
                i["x"], i["f"], i["s"], c_x=FACTORS[0], c_a=FACTORS[1], c_b=FACTORS[2],
                noise_scale=FACTORS[3], key=KEY, eps=torch.randn_like(i["x"]),
            ),
        ),
        memory_bound=False,
    ),
    Case(
        "affine_step, no noise", ("x",), ("f", "s"), (),
        lambda i: (
            launch_affine_step(i["x"], i["f"], i["s"], *FACTORS[:3], 0.0, None, 1, 0, 0),
        ),
        lambda i: (
            reference.affine_step(
                i["x"], i["f"], i["s"], c_x=FACTORS[0], c_a=FACTORS[1], c_b=FACTORS[2]
            ),
        ),
    ),
    Case(
        "affine_step, one network", ("x",), ("f",), (),
        lambda i: (
            launch_affine_step(i["x"], i["f"], None, *FACTORS[:2], 0.0, 0.0, None, 1, 0, 0),
        ),
        lambda i: (reference.affine_step(i["x"], i["f"], c_x=FACTORS[0], c_a=FACTORS[1]),),
    ),
    Case(
        "perturb", ("x",), (), ("alpha_t", "sigma_t"),
        lambda i: launch_perturb(i["x"], i["alpha_t"], i["sigma_t"], KEY, STEP, OFFSET),
        partial(_eager, "perturb"),
        memory_bound=False,
    ),
    Case(
        "noise_dot", ("x",), (), (),
        lambda i: (noise_dot(i["x"], KEY, 0, STEP, OFFSET),),
        lambda i: ((i["x"] * torch.randn_like(i["x"])).flatten(1).sum(1),),
        memory_bound=False,
    ),
    Case(
        "noise_energy", (), (), ("previous",),
        lambda i: (noise_energy(i["x"], KEY, STEP, OFFSET, i["previous"]),),
        lambda i: (i["previous"] + torch.randn_like(i["x"]).square().flatten(1).sum(1) / 2,),
        memory_bound=False,
    ),
    Case(
        "adjoint_step", ("x_prev", "x", *_AFTER), ("f", "s"), ("weight",),
        lambda i: _adjoint(i, learned=False),
    ),
    Case(
        "adjoint_step, last state", ("x_prev", "x"), ("f", "s"), ("weight",),
        lambda i: _adjoint(i, learned=False, last=True),
    ),
    Case(
        "adjoint_step, first state", ("x", *_AFTER), ("f",), ("weight",),
        lambda i: _adjoint(i, learned=False, first=True),
    ),
    Case(
        "adjoint_step, learned g", ("x_prev", "x", *_AFTER), ("f", "s"), ("weight",),
        lambda i: _adjoint(i, learned=True),
        memory_bound=False,
    ),
)  # fmt: skip

#: State and network dtypes that have kernels.
DTYPES = (
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float64),
)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def ulps_apart(a: Tensor, b: Tensor) -> int:
    """Returns the most representable numbers that lie between two tensors; NaN is never close."""
    a, b = a.detach().cpu(), b.detach().cpu()
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"ulps_apart: expected like tensors, got {a.shape} {a.dtype}, {b.shape} {b.dtype}"
        )
    if a.numel() == 0:
        return 0
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return 2**62
    return int((_ordered(a) - _ordered(b)).abs().max())


def _ordered(x: Tensor) -> Tensor:
    """Maps floats to integers in their order; neighbours are one apart, both zeros are 0."""
    bits = x.contiguous().view(_INTEGERS[x.element_size()]).long()
    lowest = -(2 ** (8 * x.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)
