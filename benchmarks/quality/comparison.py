"""What the comparisons share: parts that are trained and measured one after the other, reports."""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset
from diffflow_ext.training import LoadedRun

from ..common.files import WORK
from ..common.machine import machine
from ..common.reports import parser, read_samples, write_report, write_samples
from .measures import energy_ratios, told_apart
from .trainings import Trained, Training, once, steps_in, trained

#: FFJORD's adaptive solver needs more evaluations as its velocity grows steeper in training.
FFJORD_GROWTH = 1.3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Arguments:
        n: Samples of a draw, and held-out rows that it is compared with.
        rows: Held-out rows whose likelihood is measured.
        draws: Independent draws of samples.
        paths: Paths of the importance-weighted bound.
        shown: Samples that are kept for pictures.
        pilot: Steps from which the cost of a step is known.
        tiny: Whether networks are as small as can be, to see that everything runs.
    """

    n: int
    rows: int
    draws: int = 3
    paths: int = 16
    shown: int = 0
    pilot: int = 60
    tiny: bool = False


class Comparison(ABC):
    """All parts on one set; trainings and finished parts stay in args.out/NAME.

    Arguments:
        name: Of the folder and the report.
        parts: Those that a report may have, in its order.
    """

    program: str
    part_of_report = "models"

    def __init__(
        self,
        name: str,
        args: argparse.Namespace,
        sizes: Sizes,
        data: Dataset,
        parts: Sequence[str],
    ) -> None:
        self.args, self.sizes, self.dataset, self.parts = args, sizes, data, parts
        self.folder: Path = args.out / name
        self.report_name = f"{self.program}_{name}"

    @abstractmethod
    def measure(self, part: str) -> dict[str, Any]:
        """Trains a part, if that needs it, and returns what the report says of it."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the report says of the set."""

    def run(self, parts: Sequence[str]) -> None:
        """Measures some parts, and writes the report after each."""
        for part in parts:
            print(f"{self.report_name}: {part}", flush=True)
            self._require_same(self.folder / part / "arguments.json")
            once(self.folder / part / "result.json", partial(self._measured, part))
            self.report()

    def _measured(self, part: str) -> dict[str, Any]:
        """What `measure` says, and where: parts of a report may come from different machines."""
        return {**self.measure(part), "machine": machine()}

    def _require_same(self, path: Path) -> None:
        """Refuses a part that was begun with other arguments, because its numbers are others."""
        now = {name: getattr(self.args, name, None) for name in ("minutes", "smoke")}
        begun = once(path, lambda: now)
        if begun != now:
            raise ValueError(
                f"{path.parent}: expected a part with {now}, found one with {begun}; give those, "
                "or another folder (--out FOLDER)"
            )

    def report(self) -> None:
        """Writes what is finished, of this process and of others, and samples for pictures."""
        results = {
            part: json.loads(path.read_text())
            for part in self.parts
            if (path := self.folder / part / "result.json").exists()
        }
        about = {"fingerprint": self.dataset.fingerprint, **self.about()}
        if self.sizes.shown:
            samples = {"data": self.dataset.test[: self.sizes.shown].numpy()}
            for part in results:
                samples |= read_samples(self.folder / part / "samples.npz")
            about["samples"] = f"{self.report_name}.npz"
            write_samples(self.args.results / about["samples"], samples)
        content = {**about, self.part_of_report: results}
        write_report(self.args, f"quality.{self.program}", self.report_name, **content)

    # --- parts of a part -------------------------------------------------------------------------

    def trained_for(self, part: str, training: Training, minutes: float) -> Trained:
        """Trains for some minutes of the processor, and stops at 1.3 times as many.

        A run that ends its schedule earlier is better than one that is cut off.
        """
        growth = FFJORD_GROWTH if training.model == "ffjord" else 1.0
        steps = steps_in(training, minutes, self.folder / part, self.sizes.pilot, growth)
        return trained(training.of_steps(steps), self.folder / part, 1.3 * minutes)

    def of_samples(
        self, part: str, loaded: LoadedRun, ways: Sequence[dict[str, Any]], real: Sequence[Tensor]
    ) -> dict[str, Any]:
        """Measures each way to sample; samples of the last one are shown and told apart."""
        found, samples = [], torch.empty(0)
        for way in ways:
            draws = 1 if way.get("num_steps") == 1000 else self.sizes.draws
            samples, numbers = energy_ratios(loaded, real, draws, **way)
            found.append(numbers)
        write_samples(self.folder / part / "samples.npz", {part: samples[: self.sizes.shown]})
        return {"sampling": found, "c2st": told_apart(samples, real[0])}


def comparison_parser(doc: str | None, program: str) -> argparse.ArgumentParser:
    """Arguments of every comparison."""
    made = parser(doc)
    made.add_argument(
        "--out", type=Path, default=WORK / program, help="folder of the trainings; they go on"
    )
    made.add_argument("--smoke", action="store_true", help="tiny numbers, to see that it runs")
    return made
