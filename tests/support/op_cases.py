"""Every op as a case: the op, its reference, and arguments of any shape and dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from helpers import Inputs, Op
from torch import Tensor

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional import reference

KEY = NoiseKey(seed=2026, stream=3)
DT, G = 0.05, 0.7
STEP, OFFSET = 11, 5
SHAPES = [(0, 2), (1, 1), (33, 5), (4, 3, 8, 8), (3, 2), (7,), (2, 4096), (2, 20_000)]
#: dtypes of the state, of the drift's output and of the score's.
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [
    (F32, F32, F32),
    (F64, F64, F64),
    (F32, BF16, BF16),
    (F32, F16, F16),
    (F32, BF16, F32),
    (F32, F16, BF16),
    (F32, F64, F64),
    (F64, F32, F16),
]


@dataclass(frozen=True)
class Case:
    """An op as a function of its tensors, its reference, and arguments."""

    op: Op
    reference: Op
    inputs: Inputs


def first(op: Callable[..., tuple[Tensor, ...]]) -> Op:
    """The op's first result alone."""
    return lambda **arguments: op(**arguments)[0]


def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def noisy(shape: tuple[int, ...], purpose: str) -> tuple[dict[str, Any], Tensor]:
    """Options of an op that draws, and what it draws."""
    eps = functional.normal(
        shape, KEY, purpose=purpose, step=STEP, sample_offset=OFFSET, dtype=F64
    )
    return {"key": KEY, "step": STEP, "sample_offset": OFFSET}, eps


def with_eps(op: Op, eps: Tensor) -> Op:
    """A reference that is given its noise; fewer samples take the first rows."""
    return lambda **arguments: op(**arguments, eps=eps)


Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]


def em_step_case(shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    options, eps = noisy(shape, "forward")
    return Case(
        functional.em_step,
        with_eps(reference.em_step, eps),
        Inputs(
            {"x": tensor(shape, dtypes[0]), "f": tensor(shape, dtypes[1])},
            *coefficient("g", learned, dtypes[0], {"dt": DT, **options}),
        ),
    )


def coefficient(
    name: str, learned: bool, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The diffusion coefficient as a tensor with a gradient, or as a number."""
    if learned:
        return {name: torch.tensor(G, dtype=dtype)}, options
    return {}, {name: G, **options}


def residual_rows(shape: tuple[int, ...], dtypes: Dtypes) -> dict[str, Tensor]:
    x = tensor(shape, dtypes[0])
    return {
        "x": x,
        "x_next": x + 0.3 * torch.randn(shape).to(dtypes[0]),
        "f_next": tensor(shape, dtypes[1]),
        "s_next": tensor(shape, dtypes[2]),
    }


def residual_case(name: str, shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    rows = residual_rows(shape, dtypes)
    inputs = Inputs(rows, *coefficient("g_next", learned, dtypes[0], {"dt": DT}))
    return Case(getattr(functional, name), getattr(reference, name), inputs)


def reverse_step_case(
    strength: float, shape: tuple[int, ...], dtypes: Dtypes, learned: bool
) -> Case:
    options, eps = noisy(shape, "reverse")
    rows = residual_rows(shape, dtypes)
    del rows["x"]
    options = {"dt": DT, "stochasticity": strength, **options}
    return Case(
        functional.reverse_step,
        with_eps(reference.reverse_step, eps),
        Inputs(rows, *coefficient("g_next", learned, dtypes[0], options)),
    )


def perturb_case(of: str, shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    """With factors for the batch, as tensors or numbers; for samples; or sigma for elements."""
    options, eps = noisy(shape, "dsm")
    scalars, rows = {}, {"x0": tensor(shape, dtypes[0])}
    if of == "elements":
        rows["sigma_t"] = torch.rand(shape).to(dtypes[0])
        options["alpha_t"] = 1.0
    elif of == "samples":
        rows["alpha_t"] = torch.rand(shape[0]).to(dtypes[0])
        rows["sigma_t"] = torch.rand(shape[0]).to(dtypes[0])
    elif learned:
        scalars = {
            "alpha_t": torch.tensor(0.8, dtype=dtypes[0]),
            "sigma_t": torch.tensor([0.6], dtype=dtypes[0]),
        }
    else:
        options.update(alpha_t=0.8, sigma_t=0.6)
    op = with_eps(reference.perturb, eps)
    return Case(first(functional.perturb), first(op), Inputs(rows, scalars, options))


#: Factors of an affine step; that of its noise is a standard deviation.
FACTORS = {"c_x": 0.9, "c_a": -0.4, "c_b": 0.3, "noise_scale": 0.6}


def affine_step_case(full: bool, shape: tuple[int, ...], dtypes: Dtypes, learned: bool) -> Case:
    """With a second network and noise, or with neither."""
    options, eps = noisy(shape, "langevin")
    rows = {name: tensor(shape, dtype) for name, dtype in zip("xab", dtypes, strict=True)}
    factors, options = dict(FACTORS), {"purpose": "langevin", **options}
    if not full:
        del rows["b"], factors["c_b"], factors["noise_scale"]
        options = {}
    scalars = {name: torch.tensor(c, dtype=dtypes[0]) for name, c in factors.items()}
    return Case(
        functional.affine_step,
        with_eps(reference.affine_step, eps),
        Inputs(rows, scalars, options) if learned else Inputs(rows, {}, {**factors, **options}),
    )


MAKE: dict[str, Callable[[tuple[int, ...], Dtypes, bool], Case]] = {
    "em_step": em_step_case,
    "backward_residual": partial(residual_case, "backward_residual"),
    "residual_cost": partial(residual_case, "residual_cost"),
    "reverse_step": partial(reverse_step_case, 1.0),
    "reverse_step_half": partial(reverse_step_case, 0.5),
    "reverse_step_ode": partial(reverse_step_case, 0.0),
    "affine_step": partial(affine_step_case, True),
    "affine_step_mean": partial(affine_step_case, False),
    "perturb": partial(perturb_case, "batch"),
    "perturb_samples": partial(perturb_case, "samples"),
    "perturb_elements": partial(perturb_case, "elements"),
}


def dtype_id(dtypes: Dtypes) -> str:
    return "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


#: How many of DTYPES a shape is tried with, where not all.
FEWER = {(2, 4096): 4, (2, 20_000): 2}


def parameters() -> list[Any]:
    """Ops, shapes and dtypes; on one shape numbers in place of tensor scalars too."""
    cases = []
    for name, shape in itertools.product(MAKE, SHAPES):
        count = 2 if name.startswith("perturb") else FEWER.get(shape)
        both = (True, False) if shape == (3, 2) else (True,)
        for dtypes, learned in itertools.product(DTYPES[:count], both):
            label = f"{name}-{shape}-{dtype_id(dtypes)}-{learned}"
            cases.append(pytest.param(name, shape, dtypes, learned, id=label))
    return cases
