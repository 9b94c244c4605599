"""A small run of DiffFlow on a table of two columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_runs import write_table

from diffflow_ext.training import configure

STEPS = 10


def small_config(folder: Path) -> Any:
    return configure(
        progressive="off", data=str(write_table(folder / "points.csv")), seed=5, steps=STEPS,
        batch_size=16, num_steps=4, width=8, depth=1, warmup=3, save_every=4, log_every=2,
        threads=1,
    )  # fmt: skip
