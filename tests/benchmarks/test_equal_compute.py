"""Trainings of equal time take that time, each with its own rate, and their bounds are right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.speed import equal_compute
from benchmarks.speed.equal_compute import Run
from diffflow_ext import DDPM, DiffFlowSDE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_compute, "WIDTH", 8)
    monkeypatch.setattr(equal_compute, "DEPTH", 1)
    monkeypatch.setattr(equal_compute, "TIMESTEPS", 3)


def test_stages_are_shares_of_the_time() -> None:
    run = equal_compute.RUNS["progressive"]
    assert [run.num_steps(share) for share in (0.0, 0.19, 0.2, 0.49, 0.5, 1.1)] == [
        5, 5, 10, 10, 30, 30,
    ]  # fmt: skip
    assert equal_compute.RUNS["diffflow_40"].num_steps(0.0) == 30


def test_rate_rises_and_falls_to_nothing() -> None:
    rates = [equal_compute.rate_at(share / 1000) for share in range(1001)]
    assert 0 < rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates.index(max(rates)) == 50
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert equal_compute.rate_at(1.2) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["diffflow_40", "ddpm"])
def test_bound_is_the_mean_of_the_models_own(name: str) -> None:
    run = equal_compute.RUNS[name]
    model, rows = equal_compute.built(run, 3), torch.randn(50, 2)
    found = equal_compute.bound(model, rows)
    key = equal_compute.EVALUATION
    if isinstance(model, DDPM):
        each = model.elbo(rows, key, timesteps=3)
    else:
        assert isinstance(model, DiffFlowSDE)
        each = model.elbo(rows, equal_compute.grid(30), key)
    assert found["nats"] == pytest.approx(-float(each.detach().mean()), rel=1e-5)
    assert found["error"] == pytest.approx(float(each.detach().std()) / math.sqrt(50), rel=1e-4)


class Clock:
    """A processor on which an update takes a second, and everything else nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, real = 0.0, equal_compute.updates
        monkeypatch.setattr(equal_compute.time, "process_time", lambda: self.now)

        def updates(run: Run, model: nn.Module, data: torch.Tensor) -> Callable[[float], None]:
            update = real(run, model, data)

            def timed(share: float) -> None:
                self.now += 1.0
                update(share)

            return timed

        monkeypatch.setattr(equal_compute, "updates", updates)


@pytest.mark.usefixtures("small")
def test_evaluation_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rows = Clock(monkeypatch), torch.randn(100, 2)

    def slow(model: nn.Module, rows: torch.Tensor) -> dict[str, float]:
        clock.now += 1000.0
        return {"nats": 0.0, "error": 0.0}

    monkeypatch.setattr(equal_compute, "bound", slow)
    points = equal_compute.trained(Run("x", 8, 1e-3, ((0.0, 3),)), 16.0, rows, rows, 0)["points"]
    assert [p["seconds"] for p in points] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert [p["updates"] for p in points] == [1, 2, 4, 8, 16]


@pytest.mark.usefixtures("small")
def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    words = ["--runs", "progressive", "ddpm", "--seconds", "10", "--held-out", "20"]
    equal_compute.main([*words, "--results", str(tmp_path)])
    report = json.loads((tmp_path / "equal_compute_1.json").read_text())
    assert list(report["runs"]) == ["progressive", "ddpm"]
    assert report["entropy"] == pytest.approx(math.log(6))
    assert report["held_out"] == 20
    for run in report["runs"].values():
        assert len(run["points"]) == len(equal_compute.SHARES)
        assert all(point["error"] > 0 for point in run["points"])
    assert report["machine"]["threads"] == 1
