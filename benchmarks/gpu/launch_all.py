"""Launches every kernel once per dtype and shape: the program that compute-sanitizer watches.

Inputs are drawn on the CPU, so that hardly a kernel but ours runs on the device.
"""

from __future__ import annotations

import sys

import torch

from diffflow_ext import DiffFlowSDE, TimeGrid, functional
from diffflow_ext.nets import FourierMLP

from .ops import CASES, DTYPES, KEY, ulps_apart
from .paths import rounding

# Aligned and not, several samples a warp, a warp a sample, a block a sample, several segments.
SHAPES = ((33, 2), (5, 3, 4, 4), (3, 1000), (2, 8193))


def launch_all(device: str) -> int:
    """Runs all cases; returns how many give other results than on the CPU."""
    different = 0
    for case in CASES:
        for state, net in DTYPES:
            for shape in SHAPES:
                inputs = case.inputs(shape, state, net, "cpu", torch.Generator().manual_seed(1))
                there = {name: value.to(device) for name, value in inputs.items()}
                pairs = zip(case.run(there), case.run(inputs), strict=True)
                different += any(ulps_apart(a, b) != 0 for a, b in pairs)
    counter = torch.arange(64, dtype=torch.int64).reshape(16, 4)
    words = functional.philox_words(counter.to(device), torch.tensor([1, 2]).to(device))
    different += int(
        not torch.equal(words.cpu(), functional.philox_words(counter, torch.tensor([1, 2])))
    )
    noise = functional.normal((5, 7), KEY.to_tensor(device), device=device)
    different += int(not torch.equal(noise.cpu(), functional.normal((5, 7), KEY)))
    return different + paths(device)


def paths(device: str) -> int:
    """Runs the kernels for whole paths in each form; returns how many are far from the CPU's."""
    different = 0
    for name in ("float32", "tf32", "bfloat16"):
        grads = []
        for where in (device, "cpu"):
            torch.manual_seed(0)
            sde = DiffFlowSDE(FourierMLP(3, 40, 2), FourierMLP(3, 24, 1)).to(where)
            x0 = torch.randn(37, 3, generator=torch.Generator().manual_seed(1)).to(where)
            with rounding(name if where == device else "float32", device):
                sde.mean_loss(x0, TimeGrid.power(3, t_end=1.0), KEY, engine="fused").backward()
            found = [p.grad.flatten().cpu() for p in sde.parameters() if p.grad is not None]
            grads.append(torch.cat(found))
        different += float((grads[0] - grads[1]).norm() / grads[1].norm()) > 0.02
    return different


if __name__ == "__main__":
    found = launch_all(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    print(f"launched every kernel; {found} cases differ from the CPU")
    sys.exit(1 if found else 0)
