"""DiffFlow, DDPM, NFDM and DiNof on small images: likelihood, and samples against steps N.

    python -m benchmarks.quality.compare_images                        # MNIST, all models in turn
    python -m benchmarks.quality.compare_images --models diffflow      # beside another process
    python -m benchmarks.quality.compare_images --set fashion-mnist --minutes 50

All trainings take the same time of the processor. Images of 28 x 28 are padded to 32 and halved
for `--size 16`. Samples are compared with 2,000 test images, shuffled; bounds are those of the
first 500 of them, densities of ODEs of the first 64. Features are those of
`diffflow extractor SET --image-size SIZE --epochs 5`. Writes compare_images_SETSIZE.json and .npz;
trainings stay in runs/compare_images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import open_dataset
from diffflow_ext.likelihood import quantise
from diffflow_ext.metrics import frechet_distance, precision_recall, with_floor
from diffflow_ext.metrics.features import DigitExtractor, load_extractor
from diffflow_ext.training import LoadedRun
from diffflow_ext.training.parallel.device import slow_in_bfloat16

from ..common.files import RESULTS
from ..common.reports import parse, write_samples
from .comparison import Comparison, Sizes, comparison_parser
from .measures import FIRST_SEED, drawn, likelihood
from .trainings import Trained, Training, once, steps_in, trained

SETS, SIZES = ("mnist", "fashion-mnist"), (16, 28)
MINUTES = 30.0
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "diffflow": "DiffFlow", "ddpm": "DDPM", "linear": "NFDM, linear process",
        "learned": "NFDM, learned process", "straight": "NFDM, learned process, straightness",
        "dinof": "DiNof",
    }
)  # fmt: skip
COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "net": "unet", "unet_mults": "1,2", "unet_blocks": 1, "unet_attention": "off",
    }
)  # fmt: skip
ONE = {"batch_size": 64, "learning_rate": 1e-3}
#: Where it makes an update faster: with AVX-512, and not beside a learned forward process.
BF16 = {"autocast": "off" if slow_in_bfloat16(torch.device("cpu")) else "bf16"}
LEARNED = {"unet_base": 20, **ONE}
# 2 x 159,697 parameters, 300,763, 312,009 of prediction and forward process, and 159,697 of the
# score with 152,704 of the flow.
CHOICES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "diffflow": ("diffflow", {"unet_base": 16, "batch_size": 32, "learning_rate": 4e-3,
                                  "warmup": 100, "checkpoint_every": 0}),
        "ddpm": ("ddpm", {"unet_base": 22, **ONE, **BF16}),
        "linear": ("nfdm", {"unet_base": 22, "forward": "linear", **ONE, **BF16}),
        "learned": ("nfdm", LEARNED),
        "straight": ("nfdm", {"straightness": 0.3, **LEARNED}),
        "dinof": ("dinof", {"unet_base": 16, "t_cutoff": 0.4, "glow_levels": 2, **ONE, **BF16}),
    }
)  # fmt: skip
#: Steps N of DiffFlow by the share of its updates that are done.
STAGES = ((0.0, 3), (0.47, 6), (0.79, 12), (0.96, 30))
#: What differs from that in a trial.
TINY: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "dinof": {"glow_blocks": 1, "glow_hidden": 4},
    }
)

FULL = Sizes(n=2000, rows=500, shown=16, pilot=50)
SMOKE = Sizes(n=80, rows=8, shown=2, pilot=1, tiny=True)
#: Rows whose density by the ODE is measured.
ODE_ROWS = 64
#: Steps N of samplers: of DiffFlow and DDIM, of ancestral sampling too, of DiNof.
STEPS, MANY, DINOF_STEPS = (5, 10, 30), 200, (20, 50, 400)


def training_of(part: str, data: str, size: int, sizes: Sizes) -> Training:
    model, own = CHOICES[part]
    small = {"unet_base": 8, "unet_mults": "1", "limit": 200, **TINY.get(part, {})}
    fields = {"data": data, "image_size": size, **COMMON, **own}
    return Training(model, {**fields, **(small if sizes.tiny else {})})


def stages(steps: int) -> str:
    """N by iteration, for as many updates of DiffFlow."""
    return ",".join(f"{round(share * steps)}:{n}" for share, n in STAGES)


def mean_num_steps() -> float:
    """N of an update on average."""
    ends = [share for share, _ in STAGES[1:]] + [1.0]
    return sum((end - share) * n for (share, n), end in zip(STAGES, ends, strict=True))


def key_of(part: str, way: Mapping[str, Any]) -> str:
    """The name of a model's samples."""
    return "-".join([part, *map(str, way.values())])


def shuffled(rows: Tensor) -> Tensor:
    """The first half of MNIST's test images is cleaner than the second."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


class ComparisonOfImages(Comparison):
    """All models on one set of images."""

    program = "compare_images"

    def __init__(self, args: argparse.Namespace) -> None:
        sizes, name = SMOKE if args.smoke else FULL, f"{args.set}{args.size}"
        data = open_dataset(args.set, image_size=args.size)
        labels = {"test": shuffled((data.labels or {})["test"])}
        data = replace(data, test=shuffled(data.test), labels=labels)
        super().__init__(name, args, sizes, data, list(TITLES))
        self.steps: tuple[int, ...] = (1, 2) if sizes.tiny else STEPS
        self.extractor: DigitExtractor = load_extractor(
            args.extractor or RESULTS / f"extractor_{name}.safetensors"
        )
        n = self.sizes.n
        self.reference = self.extractor.features(self.dataset.test[:n])
        # For the floor: other training images, and for that of training itself.
        self.real = self.extractor.features(self.dataset.train[: 5 * n])

    def measure(self, part: str) -> dict[str, Any]:
        folder, done = self.folder / part, self._trained(part)
        loaded = done.load()
        ode_n = 2 if self.sizes.tiny else ODE_ROWS
        bounds = likelihood(loaded, self.dataset, self.sizes.rows, ode_n=ode_n)
        steps, shown = self.steps if part == "diffflow" else (), {}
        ways = [self._way(part, loaded, way, shown) for way in self.samplers(part)]
        write_samples(folder / "samples.npz", shown)
        return {
            "title": TITLES[part],
            **done.head(),
            "likelihood": bounds,
            "bound_by_steps": {str(n): self._bound(loaded, n) for n in steps},
            "sampling": ways,
        }

    def training(self, part: str) -> Training:
        """What is trained."""
        return training_of(part, self.args.set, self.args.size, self.sizes)

    def _trained(self, part: str) -> Trained:
        training, minutes = self.training(part), self.args.minutes
        if part != "diffflow":
            return self.trained_for(part, training, minutes)
        first = STAGES[0][1]
        pilot = training.having(progressive="off", num_steps=first)
        growth, folder = mean_num_steps() / first, self.folder / part
        steps = steps_in(pilot, minutes, folder, self.sizes.pilot, growth)
        steps = max(steps, len(STAGES) ** 2)
        training = training.having(progressive=stages(steps), num_steps=STAGES[-1][1])
        return trained(training.of_steps(steps), folder, 1.3 * minutes)

    def samplers(self, model: str) -> list[dict[str, Any]]:
        """The ways to sample that are measured."""
        tiny = self.sizes.tiny
        if model == "diffflow":
            return [{"num_steps": n, "last_step": "mean"} for n in self.steps]
        if model == "dinof":
            return [{"num_steps": n} for n in ((2,) if tiny else DINOF_STEPS)]
        if CHOICES[model][0] == "nfdm":
            many = (*self.steps, 3 if tiny else 100)
            return [{"num_steps": n, "stochasticity": k} for k in (0.0, 1.0) for n in many]
        ddim = [{"num_steps": n, "sampler": "ddim"} for n in self.steps]
        return ddim + [{"num_steps": n} for n in (*self.steps, 3 if tiny else MANY)]

    def _way(
        self, part: str, loaded: LoadedRun, way: dict[str, Any], shown: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Features of samples against those of held-out images; some samples go into `shown`."""
        samples, cost = drawn(loaded, self.sizes.n, FIRST_SEED, **way)
        levels, key = quantise(samples), key_of(part, way)
        shown[key] = levels[: self.sizes.shown]
        options = {name: value for name, value in way.items() if name != "num_steps"}
        return {
            "num_steps": way["num_steps"], "options": options, **cost, "key": key,
            **self.scores(levels),
        }  # fmt: skip

    def scores(self, levels: Tensor) -> dict[str, float]:
        """How samples, in bytes, compare with held-out images."""
        features = self.extractor.features(levels)
        return {
            "fd": frechet_distance(features, self.reference),
            **precision_recall(features, self.reference)._asdict(),
        }

    def _bound(self, loaded: LoadedRun, num_steps: int) -> dict[str, Any]:
        """DiffFlow's bound with another number of steps than it was trained with."""
        rows = self.sizes.rows
        return likelihood(loaded, self.dataset, rows, ode_n=0, num_steps=num_steps)["bound"]

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

    def about(self) -> dict[str, Any]:
        return {
            "data": self.args.set,
            "size": self.args.size,
            "label": self.extractor.label(self.sizes.n),
            "n": self.sizes.n,
            "floors": once(self.folder / "floors.json", self._floors),
        }


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "compare_images")
    made.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    made.add_argument("--set", default=SETS[0], choices=SETS)
    made.add_argument("--size", type=int, default=SIZES[0], choices=SIZES)
    made.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    made.add_argument(
        "--extractor",
        type=Path,
        help="made by `diffflow extractor`; default: extractor_SETSIZE.safetensors in "
        "benchmarks/results, where that of mnist16 is",
    )
    args = parse(made, words)
    torch.set_num_threads(1)
    ComparisonOfImages(args).run(args.models)


if __name__ == "__main__":
    main()
