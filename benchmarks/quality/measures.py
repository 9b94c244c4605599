"""What the comparisons measure of a trained model, each number with its error or its floor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import NFDM
from diffflow_ext.data import Dataset
from diffflow_ext.flows import FFJORD
from diffflow_ext.metrics import c2st, energy_distance, sliced_wasserstein, with_floor
from diffflow_ext.nets import FourierMLP, UNet
from diffflow_ext.training import LoadedRun
from diffflow_ext.training.evaluation.likelihoods import likelihoods
from diffflow_ext.training.recipes.base import EvaluationSettings

from ..common.machine import cpu_seconds

FIRST_SEED = 100
#: Samples whose evaluations are counted.
COUNTED = 100
TIGHT = 1e-5


def likelihood(
    loaded: LoadedRun,
    dataset: Dataset,
    rows: int,
    *,
    num_paths: int = 1,
    ode_n: int | None = None,
    num_steps: int | None = None,
) -> dict[str, Any]:
    """-log p of the first held-out rows by each estimator of a model, nats and for images bits."""
    settings = EvaluationSettings(num_steps, num_paths, rows if ode_n is None else ode_n)
    found = likelihoods(loaded, dataset, rows, settings, seed=7)
    fields = {"nats": "", "error": "_error", "n": "_n", "median": "_median", "bits": "_bits",
              "bits_error": "_bits_error", "step_error": "_step_error"}  # fmt: skip
    return {
        name: {"title": title}
        | {field: found[name + end] for field, end in fields.items() if name + end in found}
        for name, title in found["estimators"].items()
    }


def tighten(loaded: LoadedRun) -> LoadedRun:
    """Solves FFJORD's equation as exactly as others are: training may be content with less."""
    for part in loaded.model.modules():
        if isinstance(part, FFJORD):
            part.rtol = part.atol = TIGHT
    return loaded


class Counter:
    """Counts evaluations: one is that of all parameters of a model's networks for one sample.

    Networks are its perceptrons and U-Nets, and the forward network of NFDM; flows are none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.nets = [part for part in model.modules() if isinstance(part, FourierMLP | UNet)]
        forward = model.forward_process.net if isinstance(model, NFDM) else None
        if forward is not None and not {*forward.modules()} & {*self.nets}:
            self.nets.append(forward)
        self.work = 0
        self.whole = sum(map(_size, self.nets))

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [net.register_forward_hook(self._note) for net in self.nets]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, net: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.work += len(output) * _size(net)

    def per_sample(self, n: int) -> float:
        return self.work / (max(self.whole, 1) * n)


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def drawn(
    loaded: LoadedRun,
    n: int,
    seed: int,
    num_steps: int | None = None,
    given: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Samples, perhaps of a given class each, what 10,000 cost, and the evaluations of one."""
    options |= {"seed": seed, "num_steps": num_steps, "units": "training"}
    start = cpu_seconds()
    samples = loaded.sample(n, given=given, **options)
    spent = cpu_seconds() - start
    # Compiled code does not take networks that have hooks.
    counter, few = Counter(loaded.model), min(n, COUNTED)
    with counter.watching():
        loaded.sample(few, given=None if given is None else given[:few], **options)
    cost = {"evaluations": counter.per_sample(few), "cpu_seconds_per_10000": spent * 10_000 / n}
    return samples, cost


def energy_floor(data: Tensor, n: int) -> float:
    """What the energy distance of two sets of n real data is on average, 2 E|X - X'| / n."""
    half = len(data) // 2
    pairs = torch.cdist(data[:half].double(), data[half : 2 * half].double())
    return 2 * float(pairs.mean()) / n


def energy_ratios(
    loaded: LoadedRun,
    parts: Sequence[Tensor],
    draws: int,
    num_steps: int | None = None,
    **options: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """Energy distances of independent draws to held-out data over their floor.

    Returns the first draw too.
    """
    n, ratios, first, cost = len(parts[0]), [], None, {}
    floor = energy_floor(torch.cat(list(parts)), n)
    for draw in range(draws):
        samples, cost_now = drawn(loaded, n, FIRST_SEED + draw, num_steps, **options)
        ratios.append(energy_distance(samples, parts[draw % len(parts)]) / floor)
        if first is None:
            first, cost = samples, cost_now
    assert first is not None
    return first, {
        "num_steps": num_steps, "options": options, **cost, "ratios": ratios, **mean_error(ratios)
    }  # fmt: skip


def mean_error(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error; None for a single value."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return {"mean": statistics.fmean(values), "error": error}


def told_apart(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """The two-sample test: 0.5 is best."""
    found = c2st(samples, reference)
    return {"accuracy": found.accuracy, "error": found.error, "n": found.n}


def sliced(samples: Tensor, reference: Tensor, real: Tensor) -> dict[str, float]:
    """The sliced Wasserstein distance beside what as many real data have."""
    found = with_floor(sliced_wasserstein, samples, reference, real)
    return {
        "value": found.value["value"],
        "floor": found.floor["value"],
        "floor_spread": found.spread["value"],
    }
