"""Launches every kernel once per dtype and shape, and compares with the CPU.

Inputs are drawn on the CPU, so that hardly a kernel but ours runs on the device: this is also the
program that compute-sanitizer watches.
"""

from __future__ import annotations

import torch

from diffflow_ext import DiffFlowSDE, TimeGrid, functional
from diffflow_ext.nets import FourierMLP

from ..common.machine import machine
from .ops import CASES, DTYPES, KEY, Case, name_of, ulps_apart
from .section import Record
from .steps import ROUNDINGS, Rounding, rounding

# Aligned and not, several samples a warp, a warp a sample, a block a sample, several segments.
SHAPES = ((33, 2), (5, 3, 4, 4), (3, 1000), (2, 8193))
#: The largest error of gradients by the kernels for whole paths; bfloat16 has 8 bits.
PATH_ERROR = 0.02


def launch(device: str, record: Record) -> None:
    """Names the machine, and launches every kernel, the simple ones first."""
    record(machine=machine())
    _ops(device, record)
    _paths(device, record)


def watched(device: str, record: Record) -> None:
    """Launches every kernel, those first that have the most for a tool to find."""
    _paths(device, record)
    _ops(device, record)


def _ops(device: str, record: Record) -> None:
    """Records whether each kernel gives the CPU's bits."""
    for case in CASES:
        for dtypes in DTYPES:
            far = max(_ulps(case, dtypes, shape, device) for shape in SHAPES)
            test = f"{case.name}, {'/'.join(map(name_of, dtypes))}"
            record(test=test, status="failed" if far else "passed", ulps=far)
    counter, key = torch.arange(64).reshape(16, 4), torch.tensor([1, 2])
    draws = {
        "philox_words": lambda to: functional.philox_words(counter.to(to), key.to(to)),
        "normal by a key of the device": lambda to: functional.normal(
            (5, 7), KEY.to_tensor(to), device=to
        ),
    }
    for test, draw in draws.items():
        same = torch.equal(draw(device).cpu(), draw("cpu"))
        record(test=test, status="passed" if same else "failed")


def _ulps(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype], shape: tuple[int, ...], device: str
) -> int:
    inputs = case.inputs(shape, *dtypes, "cpu", torch.Generator().manual_seed(1))
    there = {name: value.to(device) for name, value in inputs.items()}
    return max(ulps_apart(a, b) for a, b in zip(case.run(there), case.run(inputs), strict=True))


def _paths(device: str, record: Record) -> None:
    """Records whether the kernels for whole paths give the CPU's gradients."""
    expected = _path_gradients("cpu", device, "float32")
    for name in ROUNDINGS:
        test = f"whole paths, {name}"
        try:
            found = _path_gradients(device, device, name)
        except ValueError as refused:  # A processor without products of bfloat16, say.
            record(test=test, status="skipped", why=str(refused))
            continue
        error = float((found - expected).norm() / expected.norm())
        status = "passed" if error < PATH_ERROR else "failed"
        record(test=test, status=status, relative_error=error)


def _path_gradients(where: str, device: str, name: Rounding) -> torch.Tensor:
    torch.manual_seed(0)
    sde = DiffFlowSDE(FourierMLP(3, 40, 2), FourierMLP(3, 24, 1)).to(where)
    x0 = torch.randn(37, 3, generator=torch.Generator().manual_seed(1)).to(where)
    with rounding(name, device):
        sde.mean_loss(x0, TimeGrid.power(3, t_end=1.0), KEY, engine="fused").backward()
    return torch.cat([p.grad.flatten().cpu() for p in sde.parameters() if p.grad is not None])
