"""DiffFlow, DDPM, NFDM and FFJORD on 2-D sets: as many parameters, and the same time of training.

    python -m benchmarks.quality.compare_2d                       # all sets, 15 minutes each
    python -m benchmarks.quality.compare_2d --sets 2-spirals      # beside another process

Each set gets compare_2d_SET.json and .npz; trainings stay in runs/compare_2d.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from diffflow_ext.data import open_dataset, toy_entropy
from diffflow_ext.training.config.fields import CONFIGS

from ..common.reports import parse
from .comparison import Comparison, Sizes, comparison_parser
from .measures import energy_floor, likelihood, tighten
from .trainings import Training

SETS = ("2-spirals", "checkerboard", "olympic-rings", "fractal-tree", "sierpinski-carpet")
MINUTES, BATCH_SIZE = 1.0, 120
# 2 x 45,238 and 90,526 parameters, and about as many of a prediction and a forward process.
PAIR_WIDTH, SINGLE_WIDTH, NFDM_WIDTH, DEPTH = 86, 122, 112, 3
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "diffflow": "DiffFlow",
        "ddpm": "DDPM",
        "linear": "NFDM, linear process",
        "learned": "NFDM, learned process",
        "straight": "NFDM, learned process, straightness",
        "ffjord": "FFJORD",
    }
)
#: What differs from the defaults but sizes: DiffFlow's time times 1 / t_end, which makes it run
#: from 0 to 1 as DDPM's does; slow sines and looser tolerances, because fast ones make FFJORD's
#: equation stiff.
CHOICES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "diffflow": {"time_scale": 20.0, "width": PAIR_WIDTH},
        "ddpm": {"width": SINGLE_WIDTH},
        "linear": {"forward": "linear", "width": SINGLE_WIDTH},
        "learned": {"width": NFDM_WIDTH},
        "straight": {"straightness": 10.0, "width": NFDM_WIDTH},
        "ffjord": {"time_scale": 0.05, "rtol": 1e-3, "atol": 1e-3, "width": SINGLE_WIDTH},
    }
)

FULL = Sizes(n=10_000, rows=5000, shown=4000, pilot=200)
SMOKE = Sizes(n=60, rows=40, draws=1, paths=2, shown=30, pilot=2, tiny=True)
#: Steps N of the ways to sample.
STEPS_OF = {
    "diffflow": (5, 10, 30),
    "ddim": (5, 10, 30, 100),
    "ancestral": (5, 10, 30, 100, 1000),
    "nfdm": (5, 10, 30, 100),
}


class Comparison2d(Comparison):
    """All models on one set."""

    program = "compare_2d"

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, sizes = data, SMOKE if args.smoke else FULL
        super().__init__(data, args, sizes, open_dataset(data), list(TITLES))
        real = torch.cat([self.dataset.test, self.dataset.valid])
        self.real = real.split(self.sizes.n)[: self.sizes.draws]

    def measure(self, part: str) -> dict[str, Any]:
        fields = {**CHOICES[part], **({"width": 4} if self.sizes.tiny else {})}
        training = Training(
            part if part in CONFIGS else "nfdm",
            {"data": self.data, "batch_size": BATCH_SIZE, "depth": DEPTH, **fields},
        )
        done = self.trained_for(part, training, self.args.minutes)
        loaded, sizes = tighten(done.load()), self.sizes
        return {
            "title": TITLES[part],
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, sizes.rows, num_paths=sizes.paths),
            **self.of_samples(part, loaded, self.samplers(training.model), self.real),
        }

    def samplers(self, model: str) -> list[dict[str, Any]]:
        """The ways to sample that are measured; the last one gives the samples for all else."""
        steps = {kind: (2,) if self.sizes.tiny else many for kind, many in STEPS_OF.items()}
        if model == "ffjord":
            return [{}]
        if model == "diffflow":
            ways = [{"num_steps": n} for n in steps["diffflow"]]
            return [{**ways[-1], "stochasticity": 0.0}, *ways]
        if model == "nfdm":
            noises = (0.0, 1.0)
            return [{"num_steps": n, "stochasticity": k} for k in noises for n in steps["nfdm"]]
        kinds = ("ddim", "ancestral")
        return [{"num_steps": n, "sampler": kind} for kind in kinds for n in steps[kind]]

    def about(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "entropy": toy_entropy(self.data),
            "energy_distance_floor": energy_floor(torch.cat(list(self.real)), self.sizes.n),
            "n": self.sizes.n,
            "draws": self.sizes.draws,
            "minutes": self.args.minutes,
        }


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "compare_2d")
    made.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    made.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    made.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    args = parse(made, words)
    torch.set_num_threads(1)
    for data in args.sets:
        Comparison2d(data, args).run(args.models)


if __name__ == "__main__":
    main()
