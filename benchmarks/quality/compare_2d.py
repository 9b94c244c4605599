"""DiffFlow, DDPM and FFJORD with as many parameters on 2-D sets, at equal steps and equal time.

DiffFlow takes STEPS updates; the others as many, and as many as fit into the time that these took.

    python -m benchmarks.quality.compare_2d                       # all sets, 20 minutes each
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
from .trainings import Trained, Training, trained

SETS = ("2-spirals", "checkerboard", "olympic-rings", "fractal-tree", "sierpinski-carpet")
# About what DiffFlow's updates take on one core.
STEPS, MINUTES, BATCH_SIZE = 3000, 0.8, 120
# 2 x 45,238 and 90,526 parameters, and about as many of a prediction and a forward process.
PAIR_WIDTH, SINGLE_WIDTH, NFDM_WIDTH, DEPTH = 86, 122, 112, 3
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "diffflow": "DiffFlow",
        "ddpm_steps": "DDPM, equal steps",
        "ddpm_time": "DDPM, equal time",
        "linear_time": "NFDM, linear process, equal time",
        "learned_time": "NFDM, learned process, equal time",
        "straight_time": "NFDM, learned process, straightness, equal time",
        "ffjord_time": "FFJORD, equal time",
        "ffjord_steps": "FFJORD, equal steps",
    }
)
#: What differs from the defaults but sizes: 1 / t_end, so that the network sees the sines that
#: DDPM's sees; slow sines and looser tolerances, because fast ones make FFJORD's equation stiff.
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

FULL = Sizes(n=10_000, rows=5000, shown=4000)
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
        done = self.trained(part)
        loaded, sizes = tighten(done.load()), self.sizes
        return {
            "title": TITLES[part],
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, sizes.rows, num_paths=sizes.paths),
            **self.of_samples(part, loaded, self.samplers(done.training.model), self.real),
        }

    def trained(self, part: str) -> Trained:
        name = part.partition("_")[0]
        fields = {**CHOICES[name], **({"width": 4} if self.sizes.tiny else {})}
        training = Training(
            name if name in CONFIGS else "nfdm",
            {"data": self.data, "batch_size": BATCH_SIZE, "depth": DEPTH, **fields},
        )
        if part.endswith("_time"):
            minutes = self.minutes_of("diffflow", self.args.minutes)
            return self.trained_for(part, training, minutes)
        if part == "ffjord_steps":
            return self.trained_for(part, training, self.args.cap_minutes, self.args.steps)
        return trained(training.of_steps(self.args.steps), self.folder / part)

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
    made.add_argument("--steps", type=int, default=STEPS, help="updates of equal steps")
    made.add_argument("--minutes", type=float, default=MINUTES, help="time, without diffflow")
    made.add_argument("--cap-minutes", type=float, default=4.0, help="of ffjord_steps")
    args = parse(made, words)
    torch.set_num_threads(1)
    for data in args.sets:
        Comparison2d(data, args).run(args.models)


if __name__ == "__main__":
    main()
