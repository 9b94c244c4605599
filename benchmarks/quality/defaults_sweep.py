"""DiffFlow's defaults, one change at a time: on points, a table and images.

    python -m benchmarks.quality.defaults_sweep                      # all sets, two hours
    python -m benchmarks.quality.defaults_sweep --sets mnist         # beside another process

Every training of a set takes the same updates. Each set gets defaults_sweep_SET.json; trainings
stay in runs/defaults_sweep.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from diffflow_ext.data import open_dataset
from diffflow_ext.likelihood import quantise
from diffflow_ext.metrics import frechet_distance
from diffflow_ext.metrics.features import load_extractor

from ..common.files import RESULTS
from ..common.reports import parse
from .compare_images import COMMON, shuffled
from .comparison import Comparison, Sizes, comparison_parser
from .measures import FIRST_SEED, drawn, energy_ratios, likelihood
from .trainings import Training, trained

POINTS = {"steps": 1000, "learning_rate": 3e-3, "diffusion_start": 0.2}
#: What differs from the defaults but the change, and what a change starts from.
CHOICES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "2-spirals": {**POINTS, "batch_size": 120, "time_scale": 20.0},
        "olympic-rings": {**POINTS, "batch_size": 120, "time_scale": 20.0},
        "magic": POINTS,
        "mnist": {
            **COMMON, "autocast": "bf16", "image_size": 16, "unet_base": 16, "batch_size": 32,
            "steps": 400,
            "warmup": 50, "ema_decay": 0.995, "progressive": "0:3,200:5,340:10",
            "checkpoint_every": 0, "learning_rate": 2e-3, "diffusion_start": 3.0, "power": 0.7,
        },
    }
)  # fmt: skip
T = 0.05
SCALES_OF_1 = {"drift_scale": 1.0, "score_scale": 1.0, "prediction": "score"}
RATE, G = "learning_rate", "diffusion_start"
#: Fields of a variant; a function computes one from that of the set. Scales of the drift are
#: multiples of 1 / T.
OF_VECTORS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "default": {},
        "scales of 1": SCALES_OF_1,
        "drift scale x 0.05": {"drift_scale": 0.05 / T},
        "drift scale x 1": {"drift_scale": 1.0 / T},
        "rate x 0.33": {RATE: lambda rate: rate / 3},
        "rate x 3": {RATE: lambda rate: rate * 3},
        "g x 2": {G: lambda g: g * 2},
        "power 0.45": {"power": 0.45},
    }
)
OF_IMAGES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "default": {},
        "scales of 1": SCALES_OF_1,
        "drift scale x 0.25": {"drift_scale": 0.25 / T},
        "prediction of the score": {"prediction": "score"},
        "rate x 3": {RATE: lambda rate: rate * 3},
        "g x 0.33": {G: lambda g: g / 3},
        "g x 2": {G: lambda g: g * 2},
        "power 0.45": {"power": 0.45},
    }
)
SEEDS_OF_VECTORS, SEEDS_OF_IMAGES = (0, 1, 2), (0,)
FULL = Sizes(n=10_000, rows=5000, draws=3)
IMAGES = Sizes(n=1000, rows=300)
SMOKE = Sizes(n=80, rows=8, draws=1, tiny=True)
#: Steps N of the samples and bounds.
STEPS = (5, 30)


class Sweep(Comparison):
    """All variants on one set."""

    program = "defaults_sweep"
    part_of_report = "variants"

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, self.is_image = data, data == "mnist"
        sizes = SMOKE if args.smoke else IMAGES if self.is_image else FULL
        dataset = open_dataset(data, **({"image_size": 16} if self.is_image else {}))
        if self.is_image:
            dataset = replace(dataset, test=shuffled(dataset.test), labels=None)
            self.extractor = load_extractor(RESULTS / "extractor_mnist16.safetensors")
            self.reference = self.extractor.features(dataset.test[:2000])
        self.changes = OF_IMAGES if self.is_image else OF_VECTORS
        seeds = SEEDS_OF_IMAGES if self.is_image else SEEDS_OF_VECTORS
        self.variants = {
            f"{name}, seed {seed}": (name, seed) for seed in seeds for name in self.changes
        }
        super().__init__(data, args, sizes, dataset, list(self.variants))

    def measure(self, part: str) -> dict[str, Any]:
        (name, seed), fixed = self.variants[part], CHOICES[self.data]
        changes = {
            field: value(fixed[field]) if callable(value) else value
            for field, value in self.changes[name].items()
        }
        fields = {**fixed, "data": self.data, "t_end": T, "seed": seed, **changes}
        if self.sizes.tiny:
            fields |= {"steps": 2, "progressive": "0:2", "limit": 200, "warmup": 1}
        done = trained(Training("diffflow", fields), self.folder / part)
        loaded = done.load()
        bounds = {
            str(n): likelihood(loaded, self.dataset, self.sizes.rows, ode_n=0, num_steps=n)
            for n in STEPS
        }
        samples = {str(n): self._distance(loaded, n) for n in STEPS}
        return {"variant": name, "seed": seed, **done.head(), "bounds": bounds, "samples": samples}

    def _distance(self, loaded: Any, num_steps: int) -> dict[str, Any]:
        if not self.is_image:
            real = self.dataset.test.split(self.sizes.n)[: self.sizes.draws]
            way: dict[str, Any] = {"num_steps": num_steps, "last_step": "mean"}
            return energy_ratios(loaded, real, self.sizes.draws, **way)[1]
        samples, cost = drawn(loaded, self.sizes.n, FIRST_SEED, num_steps, last_step="mean")
        features = self.extractor.features(quantise(samples))
        return {**cost, "fd": frechet_distance(features, self.reference)}

    def about(self) -> dict[str, Any]:
        return {"data": self.data, "n": self.sizes.n, "rows": self.sizes.rows}


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "defaults_sweep")
    made.add_argument("--sets", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    args = parse(made, words)
    torch.set_num_threads(1)
    for data in args.sets:
        sweep = Sweep(data, args)
        sweep.run(sweep.parts)


if __name__ == "__main__":
    main()
