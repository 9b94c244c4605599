"""DDPM and DiffFlow given the class of a digit: whether samples are of it, for some guidance.

    python -m benchmarks.quality.digits_by_class

MNIST at 16 x 16, models as in compare_images; a tenth of the samples is trained without its label.
Each of 2,000 samples is asked to be of the class of a test image. The classifier of compare_images
names the class that it sees; its verdict on the test images is the most that can be expected.
Writes digits_by_class_mnist16.json and .npz; trainings stay in runs/digits_by_class.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.likelihood import quantise
from diffflow_ext.training import LoadedRun

from ..common.reports import parse, write_samples
from .compare_images import TITLES, ComparisonOfImages, key_of
from .comparison import comparison_parser
from .measures import FIRST_SEED, drawn
from .trainings import Training

MODELS = ("ddpm", "diffflow")
MINUTES = 8.0
NUM_STEPS = 30
#: Weights w: no condition, the condition as it is, and two that strengthen it.
GUIDANCE = (0.0, 1.0, 2.0, 4.0)
#: Samples of each class that are kept for the picture.
SHOWN = 4


class DigitsByClass(ComparisonOfImages):
    """Both models, each with every guidance."""

    program = "digits_by_class"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.asked = (self.dataset.labels or {})["test"][: self.sizes.n]

    def training(self, part: str) -> Training:
        return super().training(part).having(condition="label", label_dropout=0.1)

    def measure(self, part: str) -> dict[str, Any]:
        done = self._trained(part)
        loaded = done.load()
        # The report takes "data" from here: the same number of each class.
        shown = {"data": self.by_class(self.dataset.test[: self.sizes.n])}
        ways = [self._way(part, loaded, way, shown) for way in self.samplers(part)]
        write_samples(self.folder / part / "samples.npz", shown)
        return {"title": TITLES[part], **done.head(), "sampling": ways}

    def samplers(self, model: str) -> list[dict[str, Any]]:
        own = {"last_step": "mean"} if model == "diffflow" else {"sampler": "ddim"}
        steps = 2 if self.sizes.tiny else NUM_STEPS
        return [{"num_steps": steps, **own, "guidance": weight} for weight in GUIDANCE]

    def _way(
        self, part: str, loaded: LoadedRun, way: dict[str, Any], shown: dict[str, Tensor]
    ) -> dict[str, Any]:
        samples, cost = drawn(loaded, self.sizes.n, FIRST_SEED, given=self.asked, **way)
        levels, key = quantise(samples), key_of(part, way)
        shown[key] = self.by_class(levels)
        return {**way, **cost, "key": key, **self.verdict(levels), **self.scores(levels)}

    def verdict(self, levels: Tensor) -> dict[str, Any]:
        """The share of images that the classifier assigns to the class asked for, and by class."""
        right = (self.extractor.classify(levels) == self.asked).double()
        classes = [float(right[self.asked == label].mean()) for label in self.asked.unique()]
        return {"of_class": float(right.mean()), "of_each_class": classes}

    def by_class(self, levels: Tensor) -> Tensor:
        """The first images of each class, one class after the other."""
        classes = self.asked.unique()
        return torch.cat([levels[self.asked == label][:SHOWN] for label in classes])

    def about(self) -> dict[str, Any]:
        return {**super().about(), "held_out": self.verdict(self.dataset.test[: self.sizes.n])}


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "digits_by_class")
    made.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    made.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    made.set_defaults(set="mnist", size=16, extractor=None)
    args = parse(made, words)
    torch.set_num_threads(1)
    DigitsByClass(args).run(args.models)


if __name__ == "__main__":
    main()
