"""Half pictures: the top half of held-out digits is given, and the bottom drawn several times.

    python -m benchmarks.quality.filling

MNIST of 16 x 16 pixels. A DDPM that was trained with masks stands beside what a user would take
without one: the bottoms of the training images whose tops are nearest, and draws from the normal
distribution of the training images given the top. A classifier says how often a filled picture
shows the digit that it sees in the whole one; the energy score E|X - y| - E|X - X'| / 2 of the
hidden pixels, from 0 to 1, is least in the mean if draws have the true conditional distribution.
Writes filling_mnist16.json and .npz; the training stays in runs/filling.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import open_dataset
from diffflow_ext.data.masks import hidden_half
from diffflow_ext.metrics.features import load_extractor

from ..common.files import RESULTS
from ..common.machine import cpu_seconds
from ..common.reports import parse, write_samples
from .compare_images import shuffled, training_of
from .comparison import Comparison, Sizes, comparison_parser
from .measures import mean_error

DATA, SIZE, HIDDEN, MINUTES, STEPS = "mnist", 16, "bottom", 5.0, 50
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "nearest": "training images with the nearest tops",
        "gaussian": "normal distribution of the training images",
        "ddpm": "DDPM trained with masks",
    }
)
FULL = Sizes(n=10, rows=200, shown=8)
SMOKE = Sizes(n=2, rows=3, shown=2, pilot=1, tiny=True)
#: Of the variance of a pixel, so that those that never vary have some.
JITTER = 1e-3


class Filling(Comparison):
    """All parts on MNIST; draws are pictures in bytes, shape (n, rows, 1, S, S)."""

    program = "filling"

    def __init__(self, args: argparse.Namespace) -> None:
        sizes = SMOKE if args.smoke else FULL
        data = open_dataset(DATA, image_size=SIZE)
        data = replace(data, test=shuffled(data.test), labels=None)
        super().__init__(f"{DATA}{SIZE}", args, sizes, data, list(TITLES))
        self.extractor = load_extractor(RESULTS / f"extractor_{DATA}{SIZE}.safetensors")
        self.rows = data.test[: sizes.rows]
        self.hidden = hidden_half(HIDDEN, SIZE, SIZE)

    def measure(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        run = None
        if part == "ddpm":
            training = training_of(part, DATA, SIZE, self.sizes).having(condition="masks")
            done = self.trained_for(part, training, self.args.minutes)
            found, run = {**done.head(), "num_steps": self.steps}, done.load()
        start = cpu_seconds()
        draws = getattr(self, part)() if run is None else self.filled(run)
        found["fill_cpu_seconds"] = cpu_seconds() - start
        shown = draws[:, : self.sizes.shown].transpose(0, 1)
        write_samples(self.folder / part / "samples.npz", {part: shown.numpy()})
        return {"title": TITLES[part], **found, **self.scores(draws)}

    @property
    def steps(self) -> int:
        return 3 if self.sizes.tiny else STEPS

    def scores(self, draws: Tensor) -> dict[str, Any]:
        """Numbers of a set of draws, each with the standard error over the rows."""
        seen = self.extractor.classify(self.rows)
        of_draws = self.extractor.classify(draws.flatten(0, 1)).reshape(len(draws), -1)
        same = (of_draws == seen).double().mean(0)
        truth, values = (images[..., self.hidden].double() / 255 for images in (self.rows, draws))
        truth, values = truth.flatten(1), values.flatten(2)
        errors = (values - truth).square().mean(2)
        mean = (values.mean(0) - truth).square().mean(1)
        numbers = {
            "same_digit": same, "energy_score": energy_scores(values, truth),
            "mse": errors.mean(0), "mse_best": errors.min(0).values, "mse_of_mean": mean,
        }  # fmt: skip
        return {name: mean_error(each.tolist()) for name, each in numbers.items()}

    def filled(self, run: Any) -> Tensor:
        n = self.sizes.n
        rows, shown = self.rows.repeat(n, 1, 1, 1), ~self.hidden
        images = run.sample(len(rows), given=rows, mask=shown, num_steps=self.steps)
        return images.reshape(n, *self.rows.shape)

    def nearest(self) -> Tensor:
        top = ~self.hidden
        tops, others = (x[..., top].float().flatten(1) for x in (self.rows, self.dataset.train))
        index = torch.cdist(tops, others).topk(self.sizes.n, largest=False).indices.T
        return torch.where(self.hidden, self.dataset.train[index], self.rows)

    def gaussian(self) -> Tensor:
        """Draws from the normal distribution with the moments of training images, given tops."""
        x = self.dataset.train.double().flatten(1) / 255
        mean, covariance = x.mean(0), x.T.cov()
        covariance += JITTER * covariance.diagonal().mean() * torch.eye(len(mean)).double()
        m = self.hidden.flatten()
        gain = torch.linalg.solve(covariance[~m][:, ~m], covariance[~m][:, m]).T
        rest = covariance[m][:, m] - gain @ covariance[~m][:, m]
        rows = self.rows.double().flatten(1) / 255
        middle = mean[m] + (rows[:, ~m] - mean[~m]) @ gain.T
        generator = torch.Generator().manual_seed(1)
        shape = (self.sizes.n, len(rows), int(m.sum()))
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        drawn = rows.repeat(self.sizes.n, 1, 1)
        drawn[..., m] = (middle + noise @ torch.linalg.cholesky(rest).T).clamp(0, 1)
        return (255 * drawn).round().byte().reshape(-1, *self.rows.shape)

    def about(self) -> dict[str, Any]:
        return {
            "data": DATA, "size": SIZE, "hidden": HIDDEN, "rows": len(self.rows),
            "n": self.sizes.n, "minutes": self.args.minutes,
            "classifier": self.extractor.identity,
        }  # fmt: skip


def energy_scores(draws: Tensor, truth: Tensor) -> Tensor:
    """Returns the score of each row: draws (n, rows, d), of which all pairs are compared."""
    n = len(draws)
    error = (draws - truth).norm(dim=2).mean(0)
    pairs = torch.cdist(draws.transpose(0, 1), draws.transpose(0, 1))
    return error - pairs.sum((1, 2)) / (n * (n - 1)) / 2


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "filling")
    made.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    made.add_argument("--minutes", type=float, default=MINUTES, help="of the training")
    args = parse(made, words)
    torch.set_num_threads(1)
    Filling(args).run(args.models)


if __name__ == "__main__":
    main()
