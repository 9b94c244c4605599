"""The twins of single ops compute what the ops compute, and their report says how long it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.speed import ops
from diffflow_ext import functional

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("op", list(ops.OPS))
def test_twin_computes_the_same(op: str) -> None:
    def draw(x: Tensor) -> Tensor:
        """The noise that the fused op draws."""
        purpose: Any = {"reverse_step": "reverse", "perturb": "dsm"}.get(op, "forward")
        step = 0 if op == "perturb" else ops.NOISE["step"]
        return functional.normal(tuple(x.shape), ops.NOISE["key"], purpose=purpose, step=step)

    given = ops.inputs((50, 3))
    found = ops.variant(op, "fused", given)()
    torch.testing.assert_close(found, ops.twin(op, given, draw)(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", ["em_step", "perturb"])
def test_twin_draws_anew(op: str) -> None:
    call = ops.variant(op, "eager", ops.inputs((50, 3)))
    first, second = (call() for _ in range(2))
    assert not torch.equal(first[0], second[0])


@pytest.mark.slow
def test_compiled_twin_computes_the_same() -> None:
    given = ops.inputs((50, 3))
    one, fused = (ops.variant("backward_residual", way, given)() for way in ("compiled", "fused"))
    torch.testing.assert_close(one, fused, rtol=1e-5, atol=1e-5)


def test_report_divides_medians(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="needs the bench extra")
    words = ["--seconds", "0.001", "--results", str(tmp_path)]
    ops.main(["--only", "em_step and 2000x2 and not compiled", *words])
    report = json.loads((tmp_path / "ops_1.json").read_text())
    assert report["imports"]["both"] > report["imports"]["torch"] > 0
    (one,) = report["ops"]
    found = {way: times["median"] for way, times in one["seconds"].items()}
    assert one["ratios"] == {
        "eager": found["eager"] / found["fused"],
        "gradient": found["eager_gradient"] / found["fused_gradient"],
    }
    assert (one["op"], one["shape"]) == ("em_step", [2000, 2])
    alone = {"op": "em_step", "size": "2000x2", "way": "eager"}
    stats = {"median": 1.0, "q1": 1.0, "q3": 1.0, "rounds": 5}
    (one,) = ops.condensed({"benchmarks": [{"params": alone, "stats": stats}]})
    assert one["ratios"] == {}


@pytest.mark.parametrize("op", [op for op in ops.OPS if op != "normal"])
def test_gradients_are_those_of_the_twin(op: str) -> None:
    given = ops.inputs((5, 3))
    found, expected = (
        ops.variant(op, way, given)() for way in ("fused_gradient", "eager_gradient")
    )
    assert len(found) == len(ops.OPS[op][0])
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
