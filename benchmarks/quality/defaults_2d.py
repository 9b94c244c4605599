"""Why the training defaults are what they are: one change at a time, at equal work.

Every variant spends the same number of sample-steps (batch x N, summed over updates) on olympic
rings with one thread, and reports the bound and the energy distance over that of real data. Two
seeds of the default show how much of a difference is chance.

    python benchmarks/quality/defaults_2d.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from diffflow_ext.data import open_dataset
from diffflow_ext.training import TrainConfig, train
from diffflow_ext.training.config.schedules import training_grid

from .quality_2d import N, bound, distances, machine, mean_distance

WORK = 1_500_000
DATA = "olympic-rings"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, another seed": {"seed": 1},
    "N = 30 throughout": {"progressive": "off"},
    "fast time features (time_scale 20)": {"time_scale": 20.0},
    "little noise (g = 0.09)": {"diffusion_start": 0.09, "diffusion_end": 0.09},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "batch 1000": {"batch_size": 1000},
}


def steps_for(config: TrainConfig) -> int:
    """How many updates spend WORK sample-steps; the schedule itself depends on their number."""
    sample = [training_grid(config, i).num_steps for i in range(0, config.steps, 10)]
    return round(WORK / (config.batch_size * sum(sample) / len(sample)))


def run(change: dict[str, Any], folder: Path) -> dict[str, Any]:
    options = {"data": DATA, "steps": 2000, "batch_size": 120, "threads": 1, **change}
    config = TrainConfig(**{**options, "steps": steps_for(TrainConfig(**options))})
    elapsed = train(config, folder).elapsed
    test = open_dataset(DATA).test[:N]
    floor = 2 * mean_distance(test) / N
    values = distances(folder, 1.0, config.num_steps)
    return {
        "steps": config.steps,
        "seconds": elapsed,
        "bound": bound(folder, config.num_steps),
        "energy_distance_over_floor": [value / floor for value in values],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(), "work": WORK, "data": DATA, "variants": {}}
    for name, change in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            report["variants"][name] = {"change": change, **run(change, Path(folder) / "run")}
        print(name, json.dumps(report["variants"][name]), flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
