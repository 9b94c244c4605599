"""The fused ops beside twins in plain torch, eager and through torch.compile.

Twins are those of diffflow_ext.functional.reference, with noise from torch's generator in the place of the
reference's own slow one: they draw other numbers, as fast as torch can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import reference

DT, G, STEP, KEY = 0.03125, 0.75, 5, NoiseKey(7)
#: 2-D training, and 2^20 elements in rows like those of a table.
SIZES: dict[str, tuple[int, int]] = {"2000x2": (2000, 2), "16384x64": (16384, 64)}
WAYS = ("fused", "eager", "compiled")

Inputs = dict[str, Any]
Call = Callable[[Inputs], Any]
#: Returns noise for a state.
Draw = Callable[[Tensor], Tensor]


def inputs(size: tuple[int, int]) -> Inputs:
    """Tensors that the ops take, by name."""
    generator = torch.Generator().manual_seed(0)
    found: Inputs = {
        name: torch.randn(size, generator=generator) for name in ("x", "x_next", "f", "s")
    }
    found["alpha"], found["sigma"] = (torch.rand(size[0], generator=generator) for _ in range(2))
    return found


def _residual(i: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return i["x"], i["x_next"], i["f"], i["s"]


#: The fused op, and its twin, which is told where noise comes from.
OPS: dict[str, tuple[Call, Callable[[Inputs, Draw], Any]]] = {
    "normal": (
        lambda i: functional.normal(tuple(i["x"].shape), KEY, step=STEP),
        lambda i, draw: draw(i["x"]),
    ),
    "em_step": (
        lambda i: functional.em_step(i["x"], i["f"], dt=DT, g=G, key=KEY, step=STEP),
        lambda i, draw: reference.em_step(
            i["x"], i["f"], dt=DT, g=G, key=KEY, step=STEP, eps=draw(i["x"])
        ),
    ),
    "backward_residual": (
        lambda i: functional.backward_residual(*_residual(i), dt=DT, g_next=G),
        lambda i, draw: reference.backward_residual(*_residual(i), dt=DT, g_next=G),
    ),
    "residual_cost": (
        lambda i: functional.residual_cost(*_residual(i), dt=DT, g_next=G),
        lambda i, draw: reference.residual_cost(*_residual(i), dt=DT, g_next=G),
    ),
    "reverse_step": (
        lambda i: functional.reverse_step(
            i["x"], i["f"], i["s"], dt=DT, g_next=G, key=KEY, step=STEP
        ),
        lambda i, draw: reference.reverse_step(
            i["x"], i["f"], i["s"], dt=DT, g_next=G, key=KEY, step=STEP, eps=draw(i["x"])
        ),
    ),
    "perturb": (
        lambda i: functional.perturb(i["x"], alpha_t=i["alpha"], sigma_t=i["sigma"], key=KEY),
        lambda i, draw: reference.perturb(
            i["x"], alpha_t=i["alpha"], sigma_t=i["sigma"], key=KEY, eps=draw(i["x"])
        ),
    ),
}


def variant(op: str, way: str) -> Call:
    """Returns an op as a function of its inputs."""
    fused, twin = OPS[op]
    if way == "fused":
        return fused

    def eager(i: Inputs) -> Any:
        return twin(i, torch.randn_like)

    return eager if way == "eager" else torch.compile(eager, dynamic=False)
