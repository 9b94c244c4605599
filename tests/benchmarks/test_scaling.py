"""Exponents are slopes of logarithms; points of an axis differ in its field alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import scaling
from benchmarks.speed.problem import Problem

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Problem(batch=8, num_steps=2, width=8, depth=1)


def test_exponents_of_time_and_memory() -> None:
    values = [1, 2, 4, 8]
    points = [
        {"ratio": {"median": 3.0 if v < 4 else 0.75 * v}, "mebibytes": 0.01 if v < 8 else 2.0}
        for v in values
    ]
    found = scaling.exponents(values, points)
    assert found["time"]["last"] == pytest.approx(scaling.slope([2, 4, 8], [3.0, 3.0, 6.0]))
    assert found["time"]["all"] < found["time"]["last"]
    # Below a mebibyte is as one.
    assert found["memory"]["last"] == pytest.approx(0.5)


@pytest.mark.parametrize(("cost", "rounds"), [(0.25, 3), (1.5, 2)])
def test_times_are_those_of_the_step_over_the_reference(
    cost: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow steps are timed twice, fast ones as often as asked for."""
    calls: list[int] = []
    costs = {calls.clear: cost, calls.copy: 0.125}
    monkeypatch.setattr(scaling, "seconds", lambda step: costs[step])
    found = scaling.timed(calls.clear, calls.copy, most_rounds=3)
    assert found["ratio"]["all"] == [cost / 0.125] * rounds
    assert found["seconds"]["median"] == cost


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak(problem: Problem, name: str | None, threads: int, steps: int = 3) -> float:
        asked.append((problem, name))
        return 100.0 if name is None else 100.0 + problem.batch

    monkeypatch.setattr(scaling, "peak_mebibytes", peak)
    monkeypatch.setattr(scaling, "REFERENCE", TINY)
    monkeypatch.setitem(scaling.AXES, "batch", (TINY, "batch", (8, 16, 32)))
    scaling.main(["--axes", "batch", "--rounds", "2", "--results", str(tmp_path)])
    report = json.loads((tmp_path / "scaling_1.json").read_text())
    found = report["axes"]["batch"]
    assert found["values"] == [8, 16, 32]
    assert set(found["points"]) == set(scaling.ENGINES)
    assert [p["mebibytes"] for p in found["points"]["fused"]] == [8.0, 16.0, 32.0]
    assert found["exponents"]["adjoint"]["memory"]["all"] == pytest.approx(1.0)
    assert {problem.width for problem, _ in asked} == {8}
