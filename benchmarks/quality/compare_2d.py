"""DiffFlow, DDPM and FFJORD with as many parameters on 2-D sets, at equal steps and equal time.

DiffFlow takes STEPS updates; the others as many, and as many as fit into the time that these took.

    python benchmarks/quality/compare_2d.py                              # all sets, about 20 minutes each
    python benchmarks/quality/compare_2d.py --sets 2-spirals checkerboard     # beside another process

Each set gets benchmarks/results/compare_2d_SET.json and .npz; trainings stay in runs/compare_2d.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset, open_dataset, toy_entropy
from diffflow_ext.training import LoadedRun, TrainConfig

from ..common.runs import (
    QUIET,
    RESULTS,
    WORK,
    Trained,
    command,
    machine,
    once,
    read_samples,
    steps_in,
    trained,
    write_json,
    write_samples,
)
from .measures import energy_floor, energy_ratios, likelihood, tighten, told_apart

SETS = ("2-spirals", "checkerboard", "olympic-rings", "fractal-tree", "sierpinski-carpet")
# DiffFlow's updates in 2.5 minutes of one core of an AMD EPYC.
STEPS, MINUTES, BATCH_SIZE = 3000, 2.5, 120
# 2 x 45,238 and 90,526 parameters.
PAIR_WIDTH, SINGLE_WIDTH, DEPTH = 86, 122, 3
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "diffflow": "DiffFlow",
        "ddpm_steps": "DDPM, equal steps",
        "ddpm_time": "DDPM, equal time",
        "ffjord_time": "FFJORD, equal time",
        "ffjord_steps": "FFJORD, equal steps",
    }
)
# An adaptive solver needs more evaluations as its velocity grows steeper in training.
FFJORD_GROWTH = 1.3


@dataclass(frozen=True)
class Sizes:
    """How much is measured: as committed, or just enough to see that it runs."""

    n: int = 10_000
    draws: int = 3
    rows: int = 5000
    paths: int = 16
    shown: int = 4000
    pilot: int = 60
    steps: tuple[int, ...] = (5, 10, 30)
    ddim_steps: tuple[int, ...] = (5, 10, 30, 100)
    ddpm_steps: tuple[int, ...] = (5, 10, 30, 100, 1000)
    width: int | None = None


SMOKE = Sizes(
    n=60,
    draws=1,
    rows=40,
    paths=2,
    shown=30,
    pilot=2,
    steps=(2,),
    ddim_steps=(2,),
    ddpm_steps=(2,),
    width=4,
)


def config_of(data: str, model: str, steps: int, sizes: Sizes) -> TrainConfig:
    """What is trained: the defaults, but for sizes, time features and FFJORD's solver."""
    kind = model.partition("_")[0]
    width = sizes.width or (PAIR_WIDTH if kind == "diffflow" else SINGLE_WIDTH)
    # 1 / t_end: the network sees the sines that DDPM's sees.
    options: dict[str, Any] = {"time_scale": 20.0} if kind == "diffflow" else {}
    if kind == "ffjord":
        # Slow sines and looser tolerances: fast ones make the equation stiff (docs/training.md).
        options = {"time_scale": 0.05, "rtol": 1e-3, "atol": 1e-3}
    return TrainConfig(
        data=data, model=kind, steps=steps, batch_size=BATCH_SIZE, width=width, depth=DEPTH,
        **options, **QUIET,
    )  # fmt: skip


class Comparison:
    """All models on one set."""

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, self.args, self.folder = data, args, args.out / data
        self.sizes: Sizes = SMOKE if args.smoke else Sizes()
        self.dataset: Dataset = open_dataset(data)
        real = torch.cat([self.dataset.test, self.dataset.valid])
        self.parts = real.split(self.sizes.n)[: self.sizes.draws]

    def run(self) -> None:
        for model in self.args.models:
            print(f"{self.data}: {TITLES[model]}", flush=True)
            once(self.folder / model / "result.json", lambda model=model: self._model(model))
            self.report()

    def _model(self, model: str) -> dict[str, Any]:
        done = self._trained(model)
        loaded = tighten(done.load())
        samples, sampling = _SAMPLING[loaded.config.model](self, loaded)
        write_samples(self.folder / model / "samples.npz", {model: samples[: self.sizes.shown]})
        rows, paths = self.sizes.rows, self.sizes.paths
        return {
            "title": TITLES[model],
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, rows, num_paths=paths),
            "sampling": sampling,
            "c2st": told_apart(samples, self.parts[0]),
        }

    def _trained(self, model: str) -> Trained:
        folder, cap = self.folder / model, None
        config = config_of(self.data, model, self.args.steps, self.sizes)
        if model.endswith("_time"):
            minutes = self._minutes()
            growth = FFJORD_GROWTH if model == "ffjord_time" else 1.0
            config = replace(
                config, steps=steps_in(config, minutes, folder, self.sizes.pilot, growth)
            )
            cap = 1.3 * minutes
        if model == "ffjord_steps":
            cap = self.args.cap_minutes
            fitting = steps_in(config, cap, folder, self.sizes.pilot, FFJORD_GROWTH)
            # A run that ends its schedule earlier is better than one that is cut off.
            config = replace(config, steps=min(config.steps, fitting))
            cap = 1.3 * cap
        return trained(config, folder, cap)

    def _minutes(self) -> float:
        """The time that DiffFlow took, if it was trained."""
        result = self.folder / "diffflow" / "result.json"
        if not result.exists():
            return self.args.minutes
        return once(result, dict)["train_cpu_seconds"] / 60

    # --- samples ---------------------------------------------------------------------------------

    def diffflow(self, loaded: LoadedRun) -> tuple[Tensor, list[dict[str, Any]]]:
        ways = [{"num_steps": n} for n in self.sizes.steps]
        return self._ways(loaded, [{"num_steps": ways[-1]["num_steps"], "stochasticity": 0.0},
                                   *ways])  # fmt: skip

    def ddpm(self, loaded: LoadedRun) -> tuple[Tensor, list[dict[str, Any]]]:
        ddim = [{"num_steps": n, "sampler": "ddim"} for n in self.sizes.ddim_steps]
        ancestral = [{"num_steps": n, "sampler": "ancestral"} for n in self.sizes.ddpm_steps]
        return self._ways(loaded, [*ddim, *ancestral])

    def ffjord(self, loaded: LoadedRun) -> tuple[Tensor, list[dict[str, Any]]]:
        return self._ways(loaded, [{}])

    def _ways(
        self, loaded: LoadedRun, ways: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Measures each way to sample; the last one gives the samples for all else."""
        samples, found = torch.empty(0), []
        for way in ways:
            draws = 1 if way.get("num_steps") == 1000 else self.sizes.draws
            samples, numbers = energy_ratios(loaded, self.parts, draws, **way)
            found.append(numbers)
        return samples, found

    # --- report ----------------------------------------------------------------------------------

    def report(self) -> None:
        """Writes what is finished, of this process and of others."""
        results, samples = {}, {"data": self.dataset.test[: self.sizes.shown].numpy()}
        for model in TITLES:
            path = self.folder / model / "result.json"
            if path.exists():
                results[model] = once(path, dict)
                samples |= read_samples(path.with_name("samples.npz"))
        name = f"compare_2d_{self.data}"
        report = {
            "benchmark": "compare_2d",
            "command": command("compare_2d.py", self.args.words),
            "machine": machine(),
            "data": self.data,
            "fingerprint": self.dataset.fingerprint,
            "entropy": toy_entropy(self.data),
            "energy_distance_floor": energy_floor(torch.cat(list(self.parts)), self.sizes.n),
            "n": self.sizes.n,
            "draws": self.sizes.draws,
            "minutes": self.args.minutes,
            "models": results,
            "samples": f"{name}.npz",
        }
        write_samples(self.args.results / f"{name}.npz", samples)
        write_json(self.args.results / f"{name}.json", report)


_SAMPLING: dict[str, Callable[..., tuple[Tensor, list[dict[str, Any]]]]] = {
    "diffflow": Comparison.diffflow,
    "ddpm": Comparison.ddpm,
    "ffjord": Comparison.ffjord,
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--out", type=Path, default=WORK / "compare_2d")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of equal steps")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time, without diffflow")
    parser.add_argument("--cap-minutes", type=float, default=4.0, help="of ffjord_steps")
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
