"""A small run of DiffFlow on a table of two columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffflow_ext.training import (
    configure,
)

STEPS = 10


def write_points(path: Path, seed: int) -> None:
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(seed)).tolist()
    path.write_text("a,b\n" + "".join(f"{x},{x + 0.1 * y}\n" for x, y in points))


def small_config(data: Path) -> Any:
    return configure(
        progressive="off", data=str(data), seed=5, steps=STEPS, batch_size=16, num_steps=4,
        width=8, depth=1, warmup=3, save_every=4, log_every=2, threads=1,
    )  # fmt: skip
