"""DiNof between a diffusion and a flow: quality, likelihood and time against the cutoff.

    python -m benchmarks.quality.dinof_sweep                     # both sets, forty minutes each
    python -m benchmarks.quality.dinof_sweep --sets magic        # beside another process

One score network that is trained up to time 1 could serve every cutoff. Here each cutoff has a
training of its own, as a user would train it: score and flow side by side, the score only up to
the cutoff, all within the same processor time. So a curve shows what a user gets, with the
advantage of a short diffusion that its network has less to learn. At the ends stand a flow alone
and a diffusion alone. Each set gets dinof_sweep_SET.json; trainings stay in runs/dinof_sweep.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffflow_ext.data import open_dataset

from ..common.reports import parse
from .comparison import Comparison, Sizes, comparison_parser
from .measures import energy_floor, likelihood
from .trainings import Training

SETS = ("2-spirals", "magic")
CUTOFFS = (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
MINUTES = 2.0
FULL = Sizes(n=10_000, rows=5000, shown=2000)
SMOKE = Sizes(n=60, rows=20, draws=1, shown=20, pilot=2, tiny=True)


def training_of(data: str, part: str, sizes: Sizes) -> Training:
    """What is trained: a cutoff, or one of the ends."""
    fields: dict[str, Any] = {"data": data}
    if part != "flow":
        fields |= {"t_cutoff": 1.0 if part == "diffusion" else float(part)}
        fields |= {"width": 4} if sizes.tiny else {}
    if part == "diffusion":
        fields["flow"] = "none"
    elif sizes.tiny:
        fields["flow_hidden"] = "4"
    return Training("flow" if part == "flow" else "dinof", fields)


class Sweep(Comparison):
    """All cutoffs on one set."""

    program = "dinof_sweep"
    part_of_report = "parts"

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, dataset = data, open_dataset(data)
        sizes = SMOKE if args.smoke else FULL
        if dataset.dim != 2:  # Others are not drawn.
            sizes = replace(sizes, shown=0)
        parts = ["flow", *(f"{cutoff:g}" for cutoff in args.cutoffs), "diffusion"]
        super().__init__(Path(data).stem, args, sizes, dataset, parts)
        self.reference = self.dataset.test[: sizes.n]

    def measure(self, part: str) -> dict[str, Any]:
        training = training_of(self.data, part, self.sizes)
        done = self.trained_for(part, training, self.args.minutes)
        loaded, n = done.load(), len(self.reference)
        halves = self.dataset.test.split(n)[: self.sizes.draws]
        real = [half for half in halves if len(half) == n]
        samples = self.of_samples(part, loaded, [{}], real)
        return {
            "t_cutoff": training.fields.get("t_cutoff"),
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, self.sizes.rows),
            "sampling": samples["sampling"][0],
            "c2st": samples["c2st"],
        }

    def about(self) -> dict[str, Any]:
        return {
            "data": Path(self.data).stem,
            "n": len(self.reference),
            "draws": self.sizes.draws,
            "minutes": self.args.minutes,
            "energy_distance_floor": energy_floor(self.reference, len(self.reference)),
        }


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "dinof_sweep")
    made.add_argument("--sets", nargs="+", default=list(SETS), help="names or paths of tables")
    made.add_argument("--cutoffs", nargs="+", type=float, default=list(CUTOFFS))
    made.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    args = parse(made, words)
    torch.set_num_threads(1)
    for data in args.sets:
        sweep = Sweep(data, args)
        sweep.run(sweep.parts)


if __name__ == "__main__":
    main()
