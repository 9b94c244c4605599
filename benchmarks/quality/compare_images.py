"""DiffFlow, DDPM and DiNof on MNIST at 16 x 16 pixels: likelihood, and samples against steps N.

DiffFlow takes a fixed number of updates; the others get the time that these took.

    python benchmarks/quality/compare_images.py                        # three models in turn
    python benchmarks/quality/compare_images.py --models diffflow      # beside another process
    python benchmarks/quality/compare_images.py --make-extractor       # trains the features anew

Digits of 28 x 28 are padded to 32 and halved. Everything is measured on the 10,000 test images,
shuffled. Results are benchmarks/results/compare_images_mnist16.json and .npz; trainings stay in
runs/compare_images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.likelihood import quantise
from diffflow_ext.metrics import frechet_distance, precision_recall, with_floor
from diffflow_ext.metrics.features import DigitExtractor, load_extractor
from diffflow_ext.training import LoadedRun, TrainConfig
from diffflow_ext.training.evaluation.extractor import make_extractor

from ..common.runs import (
    QUIET,
    RESULTS,
    WORK,
    command,
    machine,
    once,
    read_samples,
    steps_in,
    trained,
    write_json,
    write_samples,
)
from .measures import FIRST_SEED, drawn, likelihood

SET, SIZE, NAME = "mnist", 16, "compare_images_mnist16"
# What DiffFlow's updates take on one core of an AMD EPYC.
MINUTES = 65.0
EXTRACTOR = RESULTS / "extractor_mnist16.safetensors"
TITLES: Mapping[str, str] = MappingProxyType(
    {"diffflow": "DiffFlow", "ddpm": "DDPM", "dinof": "DiNof"}
)
COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "data": SET, "image_size": SIZE, "net": "unet", "unet_mults": "1,2", "unet_blocks": 1,
        "unet_attention": "off", "autocast": "bf16", **QUIET,
    }
)  # fmt: skip
# 2 x 159,697 parameters, 300,763, and 159,697 of the score with 152,704 of the flow.
CHOICES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "diffflow": {
            "unet_base": 16,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "warmup": 100,
            "steps": 3800,
            "progressive": "0:3,1800:6,3000:12,3650:30",
        },
        "ddpm": {"unet_base": 22, "batch_size": 64, "learning_rate": 1e-3},
        "dinof": {
            "unet_base": 16,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "t_cutoff": 0.4,
            "glow_levels": 2,
        },
    }
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured: as committed, or just enough to see that it runs."""

    n: int = 2000
    rows: int = 500
    ode_rows: int = 64
    shown: int = 16
    pilot: int = 20
    steps: tuple[int, ...] = (5, 10, 20, 30, 50)
    many: int = 200
    dinof_steps: tuple[int, ...] = (20, 50, 400)
    tiny: bool = False


SMOKE = Sizes(
    n=80, rows=8, ode_rows=2, shown=2, pilot=1, steps=(1, 2), many=3, dinof_steps=(2,), tiny=True
)


def config_of(model: str, tiny: bool) -> TrainConfig:
    small: dict[str, Any] = {}
    if tiny:
        small = {"unet_base": 4, "unet_mults": "1", "limit": 200}
        small |= {"glow_blocks": 1, "glow_hidden": 4} if model == "dinof" else {}
        small |= {"steps": 3, "progressive": "0:1,1:2"} if model == "diffflow" else {}
    return TrainConfig(**{**COMMON, "model": model, **CHOICES[model], **small})


def shuffled(rows: Tensor) -> Tensor:
    """The first half of MNIST's test images is cleaner than the second."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


class Comparison:
    """All models on one set of images."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.out
        self.sizes: Sizes = SMOKE if args.smoke else Sizes()
        data = open_dataset(SET, image_size=SIZE)
        self.dataset: Dataset = replace(data, test=shuffled(data.test), labels=None)
        self.extractor: DigitExtractor = load_extractor(args.extractor)
        n = self.sizes.n
        self.reference = self.extractor.features(self.dataset.test[:n])
        # For the floor: other training images, and for that of training itself.
        self.real = self.extractor.features(self.dataset.train[: 5 * n])

    def run(self) -> None:
        for model in self.args.models:
            print(TITLES[model], flush=True)
            once(self.folder / model / "result.json", lambda model=model: self._model(model))
            self.report()

    def _model(self, model: str) -> dict[str, Any]:
        folder = self.folder / model
        config, cap = config_of(model, self.sizes.tiny), None
        if model != "diffflow":
            minutes = self._minutes()
            config = replace(config, steps=steps_in(config, minutes, folder, self.sizes.pilot))
            cap = 1.3 * minutes
        done = trained(config, folder, cap)
        loaded, sizes = done.load(), self.sizes
        bounds = likelihood(loaded, self.dataset, sizes.rows, ode_n=sizes.ode_rows)
        ways = [self._way(folder, loaded, way) for way in self._ways(model)]
        shown = {
            name: rows for way in ways for name, rows in read_samples(folder / way["file"]).items()
        }
        write_samples(folder / "samples.npz", shown)
        return {
            "title": TITLES[model],
            **done.head(),
            "likelihood": bounds,
            "bound_by_steps": self._bounds(folder, loaded) if model == "diffflow" else {},
            "sampling": ways,
        }

    def _minutes(self) -> float:
        """The time that DiffFlow took, if it was trained and no other is asked for."""
        result = self.folder / "diffflow" / "result.json"
        if self.args.minutes is not None or not result.exists():
            return self.args.minutes or MINUTES
        return once(result, dict)["train_cpu_seconds"] / 60

    def _ways(self, model: str) -> list[dict[str, Any]]:
        """The ways to sample that are measured, the best last."""
        sizes = self.sizes
        if model == "diffflow":
            return [{"num_steps": n, "last_step": "mean"} for n in sizes.steps]
        if model == "dinof":
            return [{"num_steps": n} for n in sizes.dinof_steps]
        ddim = [{"num_steps": n, "sampler": "ddim"} for n in sizes.steps]
        return ddim + [{"num_steps": n} for n in (*sizes.steps, sizes.many)]

    def _way(self, folder: Path, loaded: LoadedRun, way: dict[str, Any]) -> dict[str, Any]:
        """Features of samples against those of held-out images, measured once."""
        label = "-".join(str(value) for value in way.values())
        images = folder / f"way-{label}.npz"

        def measure() -> dict[str, Any]:
            samples, cost = drawn(loaded, self.sizes.n, FIRST_SEED, **way)
            levels = quantise(samples)
            write_samples(images, {f"{loaded.config.model}-{label}": levels[: self.sizes.shown]})
            features = self.extractor.features(levels)
            options = {name: value for name, value in way.items() if name != "num_steps"}
            return {
                "num_steps": way["num_steps"], "options": options, **cost, "file": images.name,
                "key": f"{loaded.config.model}-{label}", **self._quality(features),
            }  # fmt: skip

        return once(folder / f"way-{label}.json", measure)

    def _quality(self, features: Tensor) -> dict[str, float]:
        found = precision_recall(features, self.reference)
        return {"fd": frechet_distance(features, self.reference), **found._asdict()}

    def _bounds(self, folder: Path, loaded: LoadedRun) -> dict[str, Any]:
        """DiffFlow's bound with other numbers of steps than it was trained with."""

        def measure(n: int) -> dict[str, Any]:
            rows = self.sizes.rows
            return likelihood(loaded, self.dataset, rows, ode_n=0, num_steps=n)["bound"]

        return {
            str(n): once(folder / f"bound-{n}.json", lambda n=n: measure(n))
            for n in self.sizes.steps
        }

    # --- report ----------------------------------------------------------------------------------

    def _floors(self) -> dict[str, Any]:
        """What real images reach: training ones against test ones, and against one another."""
        n = self.sizes.n
        report: dict[str, Any] = {}
        against = {"test": self.reference, "train": self.real[:n]}
        for name, reference in against.items():
            real = self.real[n:]
            distance = with_floor(frechet_distance, real[:n], reference, real)
            balls = with_floor(precision_recall, real[:n], reference, real, draws=1)
            report[name] = {"fd": distance.floor["value"], "fd_spread": distance.spread["value"],
                            "draws": distance.draws, **balls.floor}  # fmt: skip
        return report

    def report(self) -> None:
        """Writes what is finished, of this process and of others."""
        results: dict[str, Any] = {}
        samples: dict[str, Any] = {"data": self.dataset.test[: self.sizes.shown].numpy()}
        for model in TITLES:
            path = self.folder / model / "result.json"
            if path.exists():
                results[model] = once(path, dict)
                samples |= read_samples(path.with_name("samples.npz"))
        report = {
            "benchmark": "compare_images",
            "command": command("compare_images.py", self.args.words),
            "machine": machine(),
            "data": SET,
            "size": SIZE,
            "fingerprint": self.dataset.fingerprint,
            "label": self.extractor.label(self.sizes.n),
            "n": self.sizes.n,
            "floors": once(self.folder / "floors.json", self._floors),
            "models": results,
            "samples": f"{NAME}.npz",
        }
        write_samples(self.args.results / f"{NAME}.npz", samples)
        write_json(self.args.results / f"{NAME}.json", report)


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--out", type=Path, default=WORK / "compare_images")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--minutes", type=float, help="of the trainings but DiffFlow's; else what that took"
    )
    parser.add_argument("--extractor", type=Path, default=EXTRACTOR, help="file of the features")
    parser.add_argument("--make-extractor", action="store_true", help="train it, then end")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers, to see that it runs")
    args = parser.parse_args(words)
    args.words = list(words)
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse(sys.argv[1:] if words is None else words)
    torch.set_num_threads(1)
    if args.make_extractor:
        args.extractor.parent.mkdir(parents=True, exist_ok=True)
        print(make_extractor(SET, args.extractor, image_size=SIZE, epochs=5))
        return
    Comparison(args).run()


if __name__ == "__main__":
    main()
