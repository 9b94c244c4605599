"""What a first user does with an installed diffflow_ext: imports it, `diffflow doctor`, trains.

Started by its path (`python first_steps.py`), in an environment that has the package and no
checkout. Fails, or prints what it found, as JSON in the last line.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sysconfig
from pathlib import Path

import torch

import diffflow_ext
from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP

STEPS = 20


def main() -> None:
    """Runs all."""
    package = Path(diffflow_ext.__file__).parent
    installed = Path(sysconfig.get_path("platlib")) / "diffflow_ext"
    if package != installed:
        raise SystemExit(f"first_steps: expected the installed package {installed}, got {package}")
    doctor = [str(Path(sysconfig.get_path("scripts"), "diffflow")), "doctor"]
    subprocess.run(doctor, check=True, stdin=subprocess.DEVNULL)
    check_threads()
    first, last = train()
    if not last < first:
        raise SystemExit(f"first_steps: expected a falling loss, got {first}, then {last}")
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": diffflow_ext.__version__,
        "cuda": diffflow_ext.build_info()["cuda"],
        "loss": [first, last],
        "openmp": openmp_libraries(),
    }
    print(json.dumps(found))


def train() -> tuple[float, float]:
    """The loss, nats a sample, of a two-dimensional DiffFlow before some steps and after them."""
    torch.manual_seed(0)
    sde = DiffFlowSDE(FourierMLP(2), FourierMLP(2), diffusion=0.5)
    grid = TimeGrid.power(num_steps=10, t_end=1.0)
    optimiser = torch.optim.Adam(sde.parameters(), lr=1e-3)
    x = torch.randn(256, 2)
    losses = []
    for _ in range(STEPS + 1):
        loss = sde.mean_loss(x, grid, NoiseKey(seed=0))  # The same noise, so that losses compare.
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def check_threads() -> None:
    """Ops must run on torch's threads, though a wheel has an OpenMP library of its own.

    The linker finds torch's first, because torch loads it for the whole process.
    """
    grown = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        before = len(os.listdir("/proc/self/task"))
        normal((1000, 1000), NoiseKey(seed=0))
        grown.append(len(os.listdir("/proc/self/task")) - before)
    if grown != [0, 2]:
        raise SystemExit(f"first_steps: expected ops to start 0 threads, then 2, got {grown}")


def openmp_libraries() -> list[str]:
    """The OpenMP libraries in this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = {Path(line[-1]) for line in lines if "gomp" in line[-1]}
    return sorted("/".join(path.parts[-3:]) for path in files)


if __name__ == "__main__":
    main()
