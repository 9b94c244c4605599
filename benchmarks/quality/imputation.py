"""Missing values of a table: one value of each held-out row is hidden and drawn given the others.

    python -m benchmarks.quality.imputation

MAGIC, 10 columns, in standardised units. The draws are compared with the hidden value by the
continuous ranked probability score, E|X - y| - E|X - X'| / 2, which is least in the mean if they
have the true conditional distribution, and by how often the middle 80 % of the draws hold it.
Beside the models stand scikit-learn's IterativeImputer (Bayesian ridge regressions that are drawn
from) and values of random training rows. Draws of models are weighed by their density, but those
of a DDPM that was trained with masks. Writes imputation_magic.json; trainings stay in
runs/imputation.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffflow_ext.data import open_dataset

from ..common.machine import cpu_seconds
from ..common.reports import parse
from .compare_tables import CHOICES
from .comparison import Comparison, Sizes, comparison_parser
from .measures import mean_error
from .trainings import Training

DATA, MINUTES, CANDIDATES, STEPS = "magic", 3.0, 512, 100
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "marginal": "values of random training rows",
        "iterative": "IterativeImputer of scikit-learn",
        "spline": "spline flow",
        "diffflow": "DiffFlow",
        "masks": "DDPM trained with masks",
    }
)
#: Models and what differs from their defaults.
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "spline": CHOICES["spline"], "diffflow": CHOICES["diffflow"],
        "masks": ("ddpm", {"condition": "masks"}),
    }
)  # fmt: skip
FULL = Sizes(n=50, rows=500)
SMOKE = Sizes(n=3, rows=6, pilot=2, tiny=True)


class Imputation(Comparison):
    """All parts on one table."""

    program = "imputation"

    def __init__(self, args: argparse.Namespace) -> None:
        sizes = SMOKE if args.smoke else FULL
        super().__init__(DATA, args, sizes, open_dataset(DATA), list(TITLES))
        generator = torch.Generator().manual_seed(0)
        self.rows = self.dataset.test[: sizes.rows]
        hidden = torch.randint(self.dataset.dim, (len(self.rows), 1), generator=generator)
        self.hidden, self.truth = hidden, self.rows.gather(1, hidden)[:, 0]
        self.gaps = self.rows.scatter(1, hidden, math.nan)

    def measure(self, part: str) -> dict[str, Any]:
        draw, found = self._model(part) if part in MODELS else (getattr(self, part), {})
        start = cpu_seconds()
        draws = draw()
        seconds = cpu_seconds() - start
        scores = crps(draws, self.truth)
        low, high = torch.quantile(draws, torch.tensor([0.1, 0.9]), dim=0)
        inside = ((low <= self.truth) & (self.truth <= high)).double()
        return {
            "title": TITLES[part], **found, "impute_cpu_seconds": seconds,
            "crps": mean_error(scores.tolist()), "within_80": float(inside.mean()),
        }  # fmt: skip

    def _model(self, part: str) -> tuple[Callable[[], Tensor], dict[str, Any]]:
        model, choices = MODELS[part]
        small: dict[str, Any] = {}
        if self.sizes.tiny:
            small = {"flow_hidden": "4"} if model == "flow" else {"width": 4}
        training = Training(model, {"data": DATA, **choices, **small})
        done = self.trained_for(part, training, self.args.minutes)
        run, encoding = done.load(), self.dataset.encoding
        assert encoding is not None
        rows = encoding.decoded(self.gaps)
        options = {"candidates": 4 if self.sizes.tiny else CANDIDATES}
        if part == "masks":
            options = {"num_steps": 3 if self.sizes.tiny else STEPS}

        def draw() -> Tensor:
            filled = torch.stack(run.impute(rows, self.sizes.n, **options))
            mean, std = (torch.tensor([getattr(c, n) for c in encoding.columns])
                         for n in ("mean", "std"))  # fmt: skip
            return self._hidden((filled - mean) / std)

        return draw, {**done.head(), **options}

    def _hidden(self, filled: Tensor) -> Tensor:
        """Returns what was drawn for the hidden values, (n, rows)."""
        index = self.hidden.expand(len(filled), -1, -1)
        return filled.float().gather(2, index)[..., 0]

    def marginal(self) -> Tensor:
        """Draws from the training rows, whatever the others of the row are."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.sizes.n, len(self.rows))
        index = torch.randint(len(self.dataset.train), shape, generator=generator)
        return self._hidden(self.dataset.train[index])

    def iterative(self) -> Tensor:
        """Draws from regressions of each column on the others, fitted to the training rows."""
        # The next import needs it.
        from sklearn.experimental import enable_iterative_imputer  # noqa: F401
        from sklearn.impute import IterativeImputer

        model = IterativeImputer(sample_posterior=True, random_state=0)
        model.fit(self.dataset.train.numpy())
        gaps = self.gaps.numpy()
        drawn = [model.transform(gaps) for _ in range(self.sizes.n)]
        return self._hidden(torch.from_numpy(np.stack(drawn)))

    def about(self) -> dict[str, Any]:
        return {"data": DATA, "rows": len(self.rows), "n": self.sizes.n,
                "minutes": self.args.minutes}  # fmt: skip


def crps(draws: Tensor, truth: Tensor) -> Tensor:
    """Returns the score of each row: draws (n, rows), of which all pairs are compared."""
    draws = draws.double()
    n = len(draws)
    order = 2.0 * torch.arange(1, n + 1).double() - n - 1.0
    # The mean of |X - X'| over pairs of different draws, from sorted ones.
    spread = (order[:, None] * draws.sort(0).values).sum(0) / (n * (n - 1) / 2)
    return (draws - truth.double()).abs().mean(0) - spread / 2


def main(words: Sequence[str] | None = None) -> None:
    made = comparison_parser(__doc__, "imputation")
    made.add_argument("--models", nargs="+", default=list(TITLES), choices=list(TITLES))
    made.add_argument("--minutes", type=float, default=MINUTES, help="of each training")
    args = parse(made, words)
    torch.set_num_threads(1)
    Imputation(args).run(args.models)


if __name__ == "__main__":
    main()
