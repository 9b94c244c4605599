"""What the graph saves is counted right, and peaks are taken where they can be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.speed import memory
from benchmarks.speed.problem import Problem

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Problem(dim=3, batch=500, num_steps=6, width=32, depth=2)


def test_graph_saves_two_tensors_a_layer_and_evaluation() -> None:
    """The input of each activation and its output, for 2 N + 1 evaluations, and the states.

    Residuals are kept for their squares, and little else.
    """
    found = memory.saved_by_autograd(SMALL)
    p = SMALL
    layers = 4 * (2 * p.num_steps + 1) * p.batch * 2 * (p.depth + 1) * p.width
    rows = 4 * p.batch * p.dim
    states, residuals = (p.num_steps + 1) * rows, p.num_steps * rows
    assert found["state_bytes"] == states == found["saved_state_bytes"]
    assert found["saved_bytes"] == pytest.approx(layers + states + residuals, rel=0.01)


def test_weights_are_not_counted() -> None:
    one = memory.saved_by_autograd(Problem(dim=2, batch=1, num_steps=1, width=256, depth=3))
    assert one["saved_bytes"] < 4 * 256**2


def test_peaks_and_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {None: 1.0, "graph": 9.0, "adjoint": 5.0, "fused": 2.0}
    monkeypatch.setattr(memory, "peak_mebibytes", lambda problem, name, *_: peaks[name])
    found = memory.case(SMALL, 1, 1000.0)["mebibytes"]
    assert found == {"graph": 8.0, "adjoint": 4.0, "fused": 1.0}
    few = memory.case(SMALL, 1, 0.5)
    assert set(few["mebibytes"]) == {"adjoint", "fused"}
    assert "MiB" in few["left_out"]["graph"]
    image = memory.case(Problem(side=4, batch=2, num_steps=2, width=4, depth=1), 1, 1000.0)
    assert "vectors" in image["left_out"]["fused"]
    large = memory.case(replace(SMALL, batch=5000), 1, 1000.0)
    assert large["state_bytes"] == 10 * memory.case(SMALL, 1, 1000.0)["state_bytes"]


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One case with its processes, whose peaks do not count what this process has."""
    parent = torch.ones(2**26)
    monkeypatch.setitem(memory.PROBLEMS, "2d", Problem(num_steps=10, width=64, depth=2))
    monkeypatch.setattr(memory, "CASES", (("2d", 2000),))
    monkeypatch.setattr(memory, "VARIANTS_HERE", ("graph", "fused"))
    memory.main(["--results", str(tmp_path)])
    assert len(parent)
    found = json.loads((tmp_path / "memory_1.json").read_text())["cases"]["2d, B = 2,000"]
    peaks = found["mebibytes"]
    assert peaks["fused"] < peaks["graph"] / 2
    assert peaks["graph"] == pytest.approx(found["saved_bytes"] / 2**20, rel=0.6)
