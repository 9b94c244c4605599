"""Ops where torch records a graph, watches each operation, or carries tangents."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid, functional

GRID = TimeGrid.power(3, 1.0)


@pytest.mark.parametrize("name", ["em_step", "affine_step", "residual_cost", "perturb"])
def test_a_traced_op_is_part_of_the_graph(name: str) -> None:
    """Traced as a tensor that is filled by nobody, it would give unwritten memory."""
    key = {"key": NoiseKey(3)}
    calls: dict[str, Callable[[Tensor], Any]] = {
        "em_step": lambda x: functional.em_step(x, x, dt=0.5, g=0.3, step=2, **key),
        "affine_step": lambda x: functional.affine_step(x, x, c_a=0.5),
        "residual_cost": lambda x: functional.residual_cost(x, x, x, x, dt=0.5, g_next=0.3),
        "perturb": lambda x: functional.perturb(x, alpha_t=0.5, sigma_t=0.3, **key)[0],
    }
    x, call = torch.randn(4, 3), calls[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(call, (x,), check_trace=False)
    for graph in (traced, make_fx(call, tracing_mode="real")(x)):
        assert torch.equal(graph(x + 1), call(x + 1))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert call(x).shape == call(x).shape
        assert functional.normal((5, 3), NoiseKey(1)).shape == (5, 3)


def test_arguments_are_checked_while_operations_are_counted() -> None:
    x, key = torch.randn(4, 3), {"key": NoiseKey(3)}
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("dt > 0", lambda: functional.em_step(x, x, dt=-1.0, g=0.5, step=0, **key)),
        ("dt > 0", lambda: functional.em_step(x, x, dt=torch.tensor(-1.0), g=0.5, step=0, **key)),
        (
            "sigma_t >= 0",
            lambda: functional.perturb(x, alpha_t=1.0, sigma_t=-(x[:, 0] ** 2), **key),
        ),
        (r"g sqrt\(dt\) >=", lambda: functional.residual_cost(x, x, x, x, dt=1.0, g_next=1e-30)),
        ("finite x0", lambda: DiffFlowSDE(torch.mul, torch.mul).loss(x / 0, GRID)),
    ]
    for message, call in refused:
        with FlopCounterMode(display=False), pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["em_step", "affine_step", "residual_cost", "perturb"])
def test_tangents_of_coefficients_are_refused(name: str) -> None:
    """Compiled code would drop them."""
    x, key = torch.randn(4, 3), {"key": NoiseKey(3)}
    calls: dict[str, Callable[[Tensor], Any]] = {
        "em_step": lambda c: functional.em_step(x, x, dt=0.5, g=c, step=2, **key),
        "affine_step": lambda c: functional.affine_step(x, x, c_a=c),
        "residual_cost": lambda c: functional.residual_cost(x, x, x, x, dt=0.5, g_next=c),
        "perturb": lambda c: functional.perturb(x, alpha_t=c, sigma_t=0.3, **key),
    }
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="without a tangent"):
        calls[name](forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0)))
