"""Launches every kernel once per dtype and shape: the program that compute-sanitizer watches.

Inputs are drawn on the CPU, so that hardly a kernel but ours runs on the device.
"""

from __future__ import annotations

import sys

import torch
from gpu_ops import CASES, DTYPES, KEY, ulps_apart

from diffflow_ext import functional

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
    return different


if __name__ == "__main__":
    found = launch_all(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    print(f"launched every kernel; {found} cases differ from the CPU")
    sys.exit(1 if found else 0)
