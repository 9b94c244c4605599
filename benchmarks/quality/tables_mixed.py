"""Likelihoods and samples of a table of categories and integers, within the same processor time.

    python -m benchmarks.quality.fetch diamonds
    python -m benchmarks.quality.tables_mixed                   # 20 minutes

All models and baselines see the same columns, encoded by `data.encoding`, so their log-likelihoods
are log-probabilities of the same rows in the units of the data, or bounds of them. The settings of
models are those of compare_tables; nothing was tuned on this table.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import data_home, open_dataset
from diffflow_ext.training import LoadedRun
from diffflow_ext.training.evaluation.sample_file import to_frame
from diffflow_ext.training.evaluation.scoring import log_probs, stored_rows
from diffflow_ext.training.parallel.distributed import World
from diffflow_ext.training.recipes.base import EvaluationSettings
from diffflow_ext.training.store.dataset import DatasetRecord

from ..common.machine import cpu_seconds
from ..common.reports import parse
from . import compare_tables
from .baselines import Baseline, Gaussian, Independent, Kernels, encoding_of, noisy
from .comparison import Comparison, Sizes, comparison_parser
from .measures import FIRST_SEED, drawn, told_apart
from .trainings import once

TABLE = data_home() / "diamonds" / "diamonds.csv"
#: Deviations beyond which a value is far out: a row of these may outweigh all others in a mean.
FAR_OUT = 10.0
#: What a regression predicts the logarithm of.
TARGET = "price"
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "independent": "independent columns",
        "gaussian": "Gaussian, full covariance",
        "kernels": "kernel density",
        **{name: compare_tables.TITLES[name] for name in ("spline", "ddpm", "linear", "diffflow")},
    }
)


@dataclass(frozen=True, kw_only=True)
class MixedSizes(Sizes):
    """How much is measured.

    Arguments:
        seeds: Seeds of the noise of likelihoods.
        ode_rows: Held-out rows of the density of an ODE, with one seed.
        kernels: Training rows of the kernel density; None for all.
        tried: Validation rows that its width is chosen by.
    """

    seeds: int = 3
    ode_rows: int = 1000
    kernels: int | None = None
    tried: int = 1000


FULL = MixedSizes(n=5394, rows=5394)
SMOKE = MixedSizes(
    n=60, rows=40, paths=2, pilot=2, tiny=True, seeds=2, ode_rows=5, kernels=100, tried=20
)
LogProb = Callable[[Tensor, int], Tensor]


class ComparisonOfMixedTables(Comparison):
    """All models and baselines on one table."""

    program = "tables_mixed"
    sizes: MixedSizes

    def __init__(self, data: Path, args: argparse.Namespace) -> None:
        self.data, sizes = data, SMOKE if args.smoke else FULL
        super().__init__(data.stem, args, sizes, open_dataset(data), list(TITLES))
        self.encoding = encoding_of(self.dataset)
        self.target = self.encoding.names.index(TARGET)

    def measure(self, part: str) -> dict[str, Any]:
        found = self._model(part) if part in compare_tables.CHOICES else self._baseline(part)
        return {"title": TITLES[part], **found}

    def _model(self, part: str) -> dict[str, Any]:
        training = compare_tables.training_of(str(self.data), part, self.sizes, None)
        done = self.trained_for(part, training, self.args.minutes)
        loaded = done.load()
        samples, cost = drawn(loaded, self.sizes.n, FIRST_SEED)
        return {
            **done.head(),
            "likelihood": self._likelihoods(loaded),
            "sampling": cost,
            **self._quality(samples),
        }

    def _likelihoods(self, loaded: LoadedRun) -> dict[str, Any]:
        settings, found = EvaluationSettings(None, self.sizes.paths, self.sizes.ode_rows), {}
        for one in loaded.recipe.estimators(settings):

            def log_prob(stored: Tensor, seed: int, one: Any = one) -> Tensor:
                parts = log_probs(loaded.recipe, one, self.encoding, stored, seed, World())
                return parts[0] + parts[1]

            seeds = 1 if one.limit else self.sizes.seeds
            found[one.name] = {"title": one.title, **self._nats(log_prob, one.limit, seeds)}
        return found

    def _baseline(self, part: str) -> dict[str, Any]:
        from threadpoolctl import threadpool_limits

        sizes = self.sizes
        kernels = partial(Kernels, rows=sizes.kernels, tried=sizes.tried)
        kinds = {"independent": Independent, "gaussian": Gaussian, "kernels": kernels}
        with threadpool_limits(1):
            start = cpu_seconds()
            model: Baseline = kinds[part](self.dataset)
            fitted = cpu_seconds()
            samples = model.draw(sizes.n, FIRST_SEED)
            sampled = cpu_seconds()
            nats = self._nats(model.log_prob, None, 1 if model.exact else sizes.seeds)
        return {
            **model.about,
            "train_cpu_seconds": fitted - start,
            "likelihood": {"exact": {"title": model.title, **nats}},
            "sampling": {"cpu_seconds_per_10000": (sampled - fitted) * 10_000 / sizes.n},
            **self._quality(samples),
        }

    def _nats(self, log_prob: LogProb, limit: int | None, seeds: int) -> dict[str, Any]:
        """-log p of held-out rows, a mean over seeds of the noise, and how the seeds scatter."""
        rows = self.dataset.test[: min(self.sizes.rows, limit or self.sizes.rows)]
        draws = torch.stack([-log_prob(rows, FIRST_SEED + i) for i in range(seeds)])
        nats, means = draws.mean(0), draws.mean(1).tolist()
        centres = self.encoding.inputs(rows, torch.zeros(len(rows), self.encoding.dim))
        return {
            **_mean(nats),
            "median": float(nats.median()),
            "near": _mean(nats[centres.abs().amax(1) <= FAR_OUT]),
            "seeds": seeds,
            "scatter_of_seeds": statistics.stdev(means) if seeds > 1 else None,
        }

    # --- samples ---------------------------------------------------------------------------------

    def _quality(self, samples: Tensor) -> dict[str, Any]:
        """What samples are worth once they are rows of the table, as discrete as it is."""
        frame = to_frame(self.encoding, self.encoding.decoded(samples))
        return self._compared(stored_rows(DatasetRecord.of(self.dataset), frame))

    def _compared(self, stored: Tensor) -> dict[str, Any]:
        test = self.dataset.test[: self.sizes.n]
        # Noise of its own for each: that of one seed would pair their rows.
        pair = [noisy(self.encoding, rows, seed) for seed, rows in enumerate((stored, test))]
        return {"c2st": told_apart(*pair), "regression_r2": self._regression(stored, test)}

    def _regression(self, train: Tensor, test: Tensor) -> float:
        """R^2 on held-out rows of a regression of the target's logarithm on all other columns."""
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits

        others = [i for i in range(len(self.encoding.columns)) if i != self.target]
        kinds: Any = [self.encoding.columns[i].kind == "category" for i in others]
        x, held_out = train[:, others].numpy(), test[:, others].numpy()
        with threadpool_limits(1):
            model = HistGradientBoostingRegressor(categorical_features=kinds, random_state=0)
            model.fit(x, self._targets(train))
            return float(model.score(held_out, self._targets(test)))

    def _targets(self, stored: Tensor) -> Any:
        column = self.encoding.columns[self.target]
        return (column.low + column.step * stored[:, self.target].double()).log().numpy()

    def about(self) -> dict[str, Any]:
        sizes, train, parts = self.sizes, self.dataset.train, ("train", "valid", "test")
        return {
            "data": self.data.stem,
            "rows": {part: len(getattr(self.dataset, part)) for part in parts},
            "columns": {column.name: column.kind for column in self.encoding.columns},
            "dim": self.encoding.dim,
            "n": sizes.n,
            "minutes": self.args.minutes,
            "training_rows": once(
                self.folder / "training_rows.json", lambda: self._compared(train[: sizes.n])
            ),
        }


def _mean(nats: Tensor) -> dict[str, Any]:
    error = float(nats.std()) / math.sqrt(len(nats))
    return {"nats": float(nats.mean()), "error": error, "n": len(nats)}


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "tables_mixed")
    made.add_argument("--data", type=Path, default=TABLE, help="path of the table")
    made.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    made.add_argument("--minutes", type=float, default=3.0, help="of each training")
    args = parse(made, words)
    torch.set_num_threads(1)
    ComparisonOfMixedTables(args.data, args).run(args.models)


if __name__ == "__main__":
    main()
