"""Likelihoods and samples of seven models on two tables, each within the same processor time.

    python benchmarks/quality/compare_tables.py                 # both tables, about half an hour each
    python benchmarks/quality/compare_tables.py --sets magic --models spline ffjord ddpm

Everything is measured in standardised units on held-out rows. Sizes and rates were chosen by short
trials on the validation split (docs/results.md). Each set gets
benchmarks/results/compare_tables_SET.json; trainings stay in runs/compare_tables.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.metrics import energy_distance
from diffflow_ext.training import TrainConfig

from ..common.runs import (
    QUIET,
    RESULTS,
    WORK,
    command,
    cpu_seconds,
    machine,
    once,
    steps_in,
    trained,
    write_json,
)
from .measures import FIRST_SEED, drawn, energy_floor, likelihood, mean_error, sliced, tighten
from .measures import told_apart as c2st_of

SETS = ("magic", "hipparcos")
MINUTES = 3.0
GMM_COMPONENTS, GMM_ROWS = 10, 10_000
FFJORD_GROWTH = 1.3
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "gaussian": "Gaussian, full covariance",
        "gmm": f"Gaussian mixture, {GMM_COMPONENTS} components",
        "spline": "spline flow",
        "ffjord": "FFJORD",
        "ddpm": "DDPM",
        "diffflow": "DiffFlow",
        "dinof": "DiNof",
    }
)
FLOW = {"batch_size": 512, "flow_transforms": 5, "flow_hidden": "128,128"}
# What differs from the defaults, chosen on the validation split.
CHOICES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "spline": {"model": "flow", **FLOW},
        "ffjord": {"model": "ffjord", "time_scale": 0.05, "rtol": 1e-3, "atol": 1e-3},
        "ddpm": {"model": "ddpm"},
        "diffflow": {"model": "diffflow", "batch_size": 128, "diffusion_start": 1.0,
                     "time_scale": 20.0},
        "dinof": {"model": "dinof", "t_cutoff": 0.2, **FLOW},
    }
)  # fmt: skip
# Steps after which the validation split saw no gain, where they are fewer than the time allows.
MOST_STEPS: Mapping[tuple[str, str], int] = MappingProxyType({})


@dataclass(frozen=True)
class Sizes:
    """How much is measured: as committed, or just enough to see that it runs."""

    n: int = 5000
    draws: int = 3
    rows: int = 5000
    paths: int = 16
    pilot: int = 60
    tiny: bool = False


SMOKE = Sizes(n=60, draws=1, rows=40, paths=2, pilot=2, tiny=True)


def config_of(data: str, model: str, sizes: Sizes) -> TrainConfig:
    options = {"data": data, **CHOICES[model], **QUIET}
    if sizes.tiny:
        options |= {"flow_hidden": "4"} if model in ("spline", "dinof") else {}
        options |= {"width": 4} if model != "spline" else {}
    return TrainConfig(**options)


class Comparison:
    """All models on one table."""

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, self.args, self.name = data, args, Path(data).stem
        self.folder: Path = args.out / self.name
        self.sizes: Sizes = SMOKE if args.smoke else Sizes()
        self.dataset: Dataset = open_dataset(data)
        self.reference = self.dataset.test[: self.sizes.n]

    def run(self) -> None:
        for model in self.args.models:
            print(f"{self.data}: {TITLES[model]}", flush=True)
            once(self.folder / model / "result.json", lambda model=model: self._model(model))
            self.report()

    def _model(self, model: str) -> dict[str, Any]:
        closed = {"gaussian": self._gaussian, "gmm": self._mixture}
        found = closed[model]() if model in closed else self._trained(model)
        return {"title": TITLES[model], **found}

    # --- models ----------------------------------------------------------------------------------

    def _trained(self, model: str) -> dict[str, Any]:
        folder, sizes = self.folder / model, self.sizes
        config = config_of(self.data, model, sizes)
        growth = FFJORD_GROWTH if model == "ffjord" else 1.0
        steps = steps_in(config, self.args.minutes, folder, sizes.pilot, growth)
        most = MOST_STEPS.get((self.name, model), steps)
        config = replace(config, steps=min(steps, most))
        done = trained(config, folder, 1.3 * self.args.minutes)
        loaded = tighten(done.load())
        draw = partial(drawn, loaded, len(self.reference))
        return {
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, sizes.rows, num_paths=sizes.paths),
            **self._quality(draw),
        }

    def _gaussian(self) -> dict[str, Any]:
        train = self.dataset.train.double()
        model = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov(correction=0))

        def draw(seed: int) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return model.sample((len(self.reference),)).float()

        return self._closed_form(model.log_prob(self._rows().double()), draw, 0.0)

    def _mixture(self) -> dict[str, Any]:
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        start = cpu_seconds()
        with threadpool_limits(1):
            model = GaussianMixture(GMM_COMPONENTS, max_iter=500, random_state=0)
            model.fit(self.dataset.train[:GMM_ROWS].double().numpy())
            spent = cpu_seconds() - start
            nats = torch.from_numpy(model.score_samples(self._rows().double().numpy()))

        def draw(seed: int) -> Tensor:
            model.random_state = seed
            return torch.from_numpy(model.sample(len(self.reference))[0]).float()

        return self._closed_form(nats, draw, spent) | {
            "fitted_rows": min(GMM_ROWS, len(self.dataset.train)),
            "iterations": int(model.n_iter_),
        }

    def _closed_form(
        self, log_prob: Tensor, draw: Callable[[int], Tensor], spent: float
    ) -> dict[str, Any]:
        n = len(log_prob)
        exact = {"title": "density", "nats": -float(log_prob.mean()), "n": n,
                 "error": float(log_prob.std()) / math.sqrt(n)}  # fmt: skip
        return {
            "train_cpu_seconds": spent,
            "likelihood": {"exact": exact},
            **self._quality(lambda seed: (draw(seed), {})),
        }

    def _rows(self) -> Tensor:
        return self.dataset.test[: self.sizes.rows]

    # --- samples ---------------------------------------------------------------------------------

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
            "c2st": c2st_of(samples, self.reference),
        }

    # --- report ----------------------------------------------------------------------------------

    def report(self) -> None:
        """Writes what is finished, of this process and of others."""
        paths = {model: self.folder / model / "result.json" for model in TITLES}
        n = len(self.reference)
        real = self.dataset.train[:n]
        report = {
            "benchmark": "compare_tables",
            "command": command("compare_tables.py", self.args.words),
            "machine": machine(),
            "data": self.data,
            "fingerprint": self.dataset.fingerprint,
            "rows": {
                part: len(getattr(self.dataset, part)) for part in ("train", "valid", "test")
            },
            "dim": self.dataset.dim,
            "log_abs_scale": self.dataset.log_abs_scale,
            "n": n,
            "draws": self.sizes.draws,
            "minutes": self.args.minutes,
            "energy_distance_floor": energy_floor(self.reference, n),
            "c2st_of_training_rows": c2st_of(real, self.reference),
            "models": {m: once(path, dict) for m, path in paths.items() if path.exists()},
        }
        write_json(self.args.results / f"compare_tables_{self.name}.json", report)


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="names or paths of tables")
    parser.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--out", type=Path, default=WORK / "compare_tables")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers, to see that it runs")
    args = parser.parse_args(words)
    args.words = list(words)
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse(sys.argv[1:] if words is None else words)
    torch.set_num_threads(1)
    for data in args.sets:
        Comparison(data, args).run()


if __name__ == "__main__":
    main()
