"""The bound that a second of training buys, by the number of trajectories in an update.

    python -m benchmarks.speed.equal_compute                 # some minutes on one thread
    python -m benchmarks.speed.equal_compute --seconds 120

DiffFlow on checkerboard with 40 to 2000 trajectories an update, once with fewer steps N in the
beginning, and DDPM: each trains for as many seconds of the processor, with a learning rate of its
own that rises for a twentieth of the time and then falls as a cosine to 0 at the end of it. Bounds
are of held-out data on the same noise each time, with N = 30, or with an unbiased draw of 250 of
DDPM's 1000 terms; their evaluation is not counted. One thread. Writes
equal_compute_1.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import DDPM, DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.data import open_dataset, toy_entropy
from diffflow_ext.nets import FourierMLP

from ..common.reports import parse, parser, write_report

DATA, T_END, G, TIME_SCALE, NUM_STEPS = "checkerboard", 0.05, 0.2, 0.4, 30
WIDTH, DEPTH = 128, 3
#: Shares of the time after which the bound is taken, and the share in which the rate rises.
SHARES, RISE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), 0.05
CLIP, HELD_OUT, TIMESTEPS = 1.0, 4000, 250
EVALUATION = NoiseKey(2**40)


@dataclass(frozen=True)
class Run:
    """A training.

    Arguments:
        title: What the page calls it.
        batch: Trajectories, or samples of DDPM, in an update.
        rate: The highest learning rate.
        stages: Shares of the time from which on N is so much; () for DDPM.
    """

    title: str
    batch: int
    rate: float
    stages: tuple[tuple[float, int], ...] = ((0.0, NUM_STEPS),)

    def num_steps(self, share: float) -> int:
        """N after a share of the time."""
        return [n for first, n in self.stages if first <= share][-1]


# Rates: the best after ten seconds of 3e-3, 1e-2, 2e-2, and 3e-2 for 2000 trajectories and DDPM.
RUNS: dict[str, Run] = {
    "diffflow_40": Run("DiffFlow, 40 trajectories", 40, 1e-2),
    "diffflow_120": Run("DiffFlow, 120 trajectories", 120, 2e-2),
    "diffflow_480": Run("DiffFlow, 480 trajectories", 480, 2e-2),
    "diffflow_2000": Run("DiffFlow, 2000 trajectories", 2000, 1e-2),
    "progressive": Run(
        "DiffFlow, 120 trajectories, N = 5, 10, 30", 120, 1e-2, ((0.0, 5), (0.2, 10), (0.5, 30))
    ),
    "ddpm": Run("DDPM, 480 samples", 480, 2e-2, ()),
}


def grid(num_steps: int) -> TimeGrid:
    return TimeGrid.power(num_steps, T_END)


def rate_at(share: float) -> float:
    """The learning rate after a share of the time, over the highest."""
    if share < RISE:
        return (share + RISE / 50) / (RISE + RISE / 50)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - RISE) / (1 - RISE))))


def built(run: Run, seed: int) -> DiffFlowSDE | DDPM:
    torch.manual_seed(seed)
    if not run.stages:
        return DDPM(FourierMLP(2, WIDTH, DEPTH))
    drift, score = (FourierMLP(2, WIDTH, DEPTH, time_scale=TIME_SCALE) for _ in range(2))
    return DiffFlowSDE(drift, score, G)


def loss(model: nn.Module, run: Run, batch: Tensor, share: float) -> Tensor:
    if isinstance(model, DiffFlowSDE):
        return model.mean_loss(batch, grid(run.num_steps(share)), engine="fused")
    assert isinstance(model, DDPM)
    return model.mean_loss(batch, engine="fused")


@torch.no_grad()
def bound(model: nn.Module, held_out: Tensor) -> dict[str, float]:
    """The bound on -log p of held-out data in nats, and its standard error."""
    if isinstance(model, DiffFlowSDE):
        nats = -model.elbo(held_out, grid(NUM_STEPS), EVALUATION).double()
    else:
        assert isinstance(model, DDPM)
        nats = -model.elbo(held_out, EVALUATION, timesteps=TIMESTEPS).double()
    return {"nats": float(nats.mean()), "error": float(nats.std() / math.sqrt(len(nats)))}


def updates(run: Run, model: nn.Module, data: Tensor) -> Callable[[float], None]:
    """One update after a share of the time."""
    adam = torch.optim.Adam(model.parameters(), run.rate)

    def update(share: float) -> None:
        for group in adam.param_groups:
            group["lr"] = run.rate * rate_at(share)
        adam.zero_grad()
        loss(model, run, data[torch.randint(len(data), (run.batch,))], share).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()

    return update


def trained(run: Run, seconds: float, data: Tensor, held_out: Tensor, seed: int) -> dict[str, Any]:
    """Trains for some seconds of the processor, and looks at the bound on the way."""
    model = built(run, seed)
    update, points = updates(run, model, data), []
    count, spent = 0, 0.0
    for share in SHARES:
        while spent < share * seconds:
            start = time.process_time()
            update(spent / seconds)
            spent += time.process_time() - start
            count += 1
        points.append({"seconds": spent, "updates": count, **bound(model, held_out)})
    return {**asdict(run), "points": points}


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    made.add_argument("--seconds", type=float, default=30.0, help="of each training")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--held-out", type=int, default=HELD_OUT, help="points of a bound")
    args = parse(made, words)
    torch.set_num_threads(1)
    data = open_dataset(DATA)
    held_out = data.test[: args.held_out]
    runs = {
        name: trained(RUNS[name], args.seconds, data.train, held_out, args.seed)
        for name in args.runs
    }
    write_report(
        args, "speed.equal_compute", "equal_compute_1",
        data=DATA,
        entropy=toy_entropy(DATA),
        seconds=args.seconds,
        seed=args.seed,
        num_steps=NUM_STEPS,
        held_out=len(held_out),
        timesteps_of_ddpm=TIMESTEPS,
        runs=runs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
