"""DiNof between a diffusion and a flow: quality, likelihood and time against the cutoff.

    python benchmarks/quality/dinof_sweep.py                     # both sets, about forty minutes each
    python benchmarks/quality/dinof_sweep.py --sets magic        # beside another process

One score network that is trained up to time 1 could serve every cutoff. Here each cutoff has a
training of its own, as `diffflow train --model dinof --t-cutoff T` does it: score and flow side by
side, the score only up to the cutoff, all within the same processor time. So a curve shows what a
user gets, with the advantage of a short diffusion that its network has less to learn. At the ends
stand a flow alone and a diffusion alone. Each set gets benchmarks/results/dinof_sweep_SET.json.
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

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.training import TrainConfig

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
from .measures import energy_floor, energy_ratios, likelihood, told_apart

SETS = ("2-spirals", "magic")
CUTOFFS = (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
MINUTES = 2.0
# What differs from the defaults: the ends of the sweep.
ENDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "flow": {"model": "flow"},
        "diffusion": {"model": "dinof", "t_cutoff": 1.0, "flow": "none"},
    }
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured: as committed, or just enough to see that it runs."""

    n: int = 10_000
    draws: int = 3
    rows: int = 5000
    shown: int = 2000
    pilot: int = 60
    tiny: bool = False


SMOKE = Sizes(n=60, draws=1, rows=20, shown=20, pilot=2, tiny=True)


def config_of(data: str, part: str, sizes: Sizes) -> TrainConfig:
    """What is trained: a cutoff, or one of the ends."""
    options = ENDS[part] if part in ENDS else {"model": "dinof", "t_cutoff": float(part)}
    small: dict[str, Any] = {}
    if sizes.tiny:
        small |= {"width": 4} if part != "flow" else {}
        small |= {"flow_hidden": "4"} if part != "diffusion" else {}
    return TrainConfig(data=data, **{**options, **small, **QUIET})


class Sweep:
    """All cutoffs on one set."""

    def __init__(self, data: str, args: argparse.Namespace) -> None:
        self.data, self.args, self.name = data, args, Path(data).stem
        self.folder: Path = args.out / self.name
        self.sizes: Sizes = SMOKE if args.smoke else Sizes()
        self.dataset: Dataset = open_dataset(data)
        self.reference = self.dataset.test[: self.sizes.n]
        self.parts = ["flow", *(f"{cutoff:g}" for cutoff in args.cutoffs), "diffusion"]

    def run(self) -> None:
        for part in self.parts:
            print(f"{self.data}: {part}", flush=True)
            once(self.folder / part / "result.json", lambda part=part: self._part(part))
            self.report()

    def _part(self, part: str) -> dict[str, Any]:
        folder, sizes, minutes = self.folder / part, self.sizes, self.args.minutes
        config = config_of(self.data, part, sizes)
        config = replace(config, steps=steps_in(config, minutes, folder, sizes.pilot))
        done = trained(config, folder, 1.3 * minutes)
        loaded = done.load()
        halves = self.dataset.test.split(len(self.reference))[: sizes.draws]
        whole = [half for half in halves if len(half) == len(self.reference)]
        samples, sampling = energy_ratios(loaded, whole, sizes.draws)
        write_samples(folder / "samples.npz", {part: samples[: sizes.shown]})
        return {
            "t_cutoff": None if part == "flow" else loaded.config.t_cutoff,
            **done.head(),
            "likelihood": likelihood(loaded, self.dataset, sizes.rows),
            "sampling": sampling,
            "c2st": told_apart(samples, self.reference),
        }

    def report(self) -> None:
        """Writes what is finished."""
        done = [part for part in self.parts if (self.folder / part / "result.json").exists()]
        samples = {"data": self.dataset.test[: self.sizes.shown].numpy()}
        for part in done:
            samples |= read_samples(self.folder / part / "samples.npz")
        name = f"dinof_sweep_{self.name}"
        report = {
            "benchmark": "dinof_sweep",
            "command": command("dinof_sweep.py", self.args.words),
            "machine": machine(),
            "data": self.data,
            "fingerprint": self.dataset.fingerprint,
            "n": len(self.reference),
            "draws": self.sizes.draws,
            "minutes": self.args.minutes,
            "energy_distance_floor": energy_floor(self.reference, len(self.reference)),
            "parts": {part: once(self.folder / part / "result.json", dict) for part in done},
        }
        if self.dataset.dim == 2:  # Others are not drawn.
            report["samples"] = f"{name}.npz"
            write_samples(self.args.results / f"{name}.npz", samples)
        write_json(self.args.results / f"{name}.json", report)


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="names or paths of tables")
    parser.add_argument("--cutoffs", nargs="+", type=float, default=list(CUTOFFS))
    parser.add_argument("--out", type=Path, default=WORK / "dinof_sweep")
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
        Sweep(data, args).run()


if __name__ == "__main__":
    main()
