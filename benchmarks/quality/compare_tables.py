"""Likelihoods and samples of nine models on two tables, each within the same processor time.

    python -m benchmarks.quality.compare_tables                 # both tables, 40 minutes each
    python -m benchmarks.quality.compare_tables --sets magic --models spline ffjord ddpm

Everything is measured in standardised units on held-out rows. Sizes and rates were chosen by short
trials on the validation split. Each set gets compare_tables_SET.json; trainings
stay in runs/compare_tables.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import data_home, open_dataset
from diffflow_ext.metrics import energy_distance

from ..common.machine import cpu_seconds
from ..common.reports import parse
from .comparison import Comparison, Sizes, comparison_parser
from .measures import (
    FIRST_SEED,
    drawn,
    energy_floor,
    likelihood,
    mean_error,
    sliced,
    tighten,
    told_apart,
)
from .trainings import Training

#: Hipparcos is the table that `python -m benchmarks.quality.fetch hipparcos` makes.
SETS = ("magic", str(data_home() / "hipparcos" / "hipparcos.csv"))
#: As in the literature: densities, also of numbers that are on a grid.
COLUMNS = "continuous"
MINUTES = 3.0
#: Components, and rows that they are fitted to if there are more.
MIXTURES = {"gaussian": (1, None), "gmm": (10, 10_000)}
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "gaussian": "Gaussian, full covariance",
        "gmm": "Gaussian mixture, 10 components",
        "spline": "spline flow",
        "ffjord": "FFJORD",
        "ddpm": "DDPM",
        "linear": "NFDM, linear process",
        "learned": "NFDM, learned process",
        "diffflow": "DiffFlow",
        "dinof": "DiNof",
    }
)
FLOW = {"batch_size": 512, "flow_transforms": 5, "flow_hidden": "128,128"}
#: Model, and what differs from the defaults, chosen on the validation split.
CHOICES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "spline": ("flow", FLOW),
        "ffjord": ("ffjord", {"time_scale": 0.05, "rtol": 1e-3, "atol": 1e-3}),
        "ddpm": ("ddpm", {}),
        "linear": ("nfdm", {"forward": "linear"}),
        "learned": ("nfdm", {"width": 118}),
        "diffflow": ("diffflow", {"batch_size": 128, "diffusion_start": 1.0, "time_scale": 20.0}),
        "dinof": ("dinof", {"t_cutoff": 0.2, **FLOW}),
    }
)
FULL = Sizes(n=5000, rows=5000)
SMOKE = Sizes(n=60, rows=40, draws=1, paths=2, pilot=2, tiny=True)


def training_of(data: str, part: str, sizes: Sizes, columns: str | None) -> Training:
    model, choices = CHOICES[part]
    small: dict[str, Any] = {}
    if sizes.tiny:
        small |= {"flow_hidden": "4"} if "flow_hidden" in choices else {}
        small |= {"width": 4} if model != "flow" else {}
    return Training(model, {"data": data, "columns": columns, **choices, **small})


class ComparisonOfTables(Comparison):
    """All models on one table."""

    program = "compare_tables"

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, sizes = data, SMOKE if args.smoke else FULL
        dataset = open_dataset(data, columns=COLUMNS)
        super().__init__(Path(data).stem, args, sizes, dataset, list(TITLES))
        self.reference = self.dataset.test[: sizes.n]

    def measure(self, part: str) -> dict[str, Any]:
        found = self._mixture(*MIXTURES[part]) if part in MIXTURES else self._model(part)
        return {"title": TITLES[part], **found}

    def _model(self, part: str) -> dict[str, Any]:
        training, sizes = training_of(self.data, part, self.sizes, COLUMNS), self.sizes
        done = self.trained_for(part, training, self.args.minutes)
        loaded = tighten(done.load())
        return {
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, sizes.rows, num_paths=sizes.paths),
            **self._quality(partial(drawn, loaded, len(self.reference))),
        }

    def _mixture(self, components: int, most_rows: int | None) -> dict[str, Any]:
        """A mixture of Gaussians; of one component the best Gaussian."""
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        start, test = cpu_seconds(), self.dataset.test[: self.sizes.rows].double().numpy()
        with threadpool_limits(1):
            model = GaussianMixture(components, max_iter=500, random_state=0)
            model.fit(self.dataset.train[:most_rows].double().numpy())
            spent = cpu_seconds() - start
            nats = -model.score_samples(test)

        def draw(seed: int) -> tuple[Tensor, Mapping[str, float]]:
            model.random_state = seed
            return torch.from_numpy(model.sample(len(self.reference))[0]).float(), {}

        exact = {"title": "density", "nats": float(nats.mean()), "n": len(nats),
                 "error": float(nats.std(ddof=1)) / math.sqrt(len(nats))}  # fmt: skip
        return {"train_cpu_seconds": spent, "likelihood": {"exact": exact}, **self._quality(draw)}

    def _quality(
        self, draw: Callable[[int], tuple[Tensor, Mapping[str, float]]]
    ) -> dict[str, Any]:
        """Distances of independent draws to one set of held-out rows."""
        pairs = [draw(FIRST_SEED + i) for i in range(self.sizes.draws)]
        floor = energy_floor(self.reference, len(self.reference))
        ratios = [energy_distance(samples, self.reference) / floor for samples, _ in pairs]
        samples, cost = pairs[0]
        return {
            "sampling": dict(cost),
            "energy_distance": {"ratios": ratios, **mean_error(ratios)},
            "sliced_wasserstein": sliced(samples, self.reference, self.dataset.train),
            "c2st": told_apart(samples, self.reference),
        }

    def about(self) -> dict[str, Any]:
        parts, n = ("train", "valid", "test"), len(self.reference)
        encoding = self.dataset.encoding
        assert encoding is not None
        return {
            "data": Path(self.data).stem,
            "rows": {part: len(getattr(self.dataset, part)) for part in parts},
            "dim": self.dataset.dim,
            "log_abs_scale": sum(math.log(column.std) for column in encoding.columns),
            "n": n,
            "draws": self.sizes.draws,
            "minutes": self.args.minutes,
            "energy_distance_floor": energy_floor(self.reference, n),
            "c2st_of_training_rows": told_apart(self.dataset.train[:n], self.reference),
        }


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "compare_tables")
    made.add_argument("--sets", nargs="+", default=list(SETS), help="names or paths of tables")
    made.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    made.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    args = parse(made, words)
    torch.set_num_threads(1)
    for data in args.sets:
        ComparisonOfTables(data, args).run(args.models)


if __name__ == "__main__":
    main()
