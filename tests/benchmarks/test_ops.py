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
    found = ops.variant(op, "fused")(given)
    torch.testing.assert_close(found, ops.twin(op, given, draw), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", ["em_step", "perturb"])
def test_twin_draws_anew(op: str) -> None:
    given, call = ops.inputs((50, 3)), ops.variant(op, "eager")
    first, second = (call(given) for _ in range(2))
    assert not torch.equal(first[0], second[0])


@pytest.mark.slow
def test_compiled_twin_computes_the_same() -> None:
    given = ops.inputs((50, 3))
    one, fused = (ops.variant("backward_residual", way)(given) for way in ("compiled", "fused"))
    torch.testing.assert_close(one, fused, rtol=1e-5, atol=1e-5)


def test_report_has_the_medians_of_the_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([[1.0, 2.0, 5.0], [4.0, 5.0, 9.0]])

    class Timer:
        def __init__(self, statement: str, globals: dict[str, Any]) -> None:
            assert torch.is_tensor(eval(statement, globals))

        def blocked_autorange(self, min_run_time: float) -> Any:
            assert min_run_time == 0.25
            return type("Measurement", (), {"times": next(seconds)})

    monkeypatch.setattr(ops, "Timer", Timer)
    words = ["--seconds", "0.25", "--ops", "em_step", "--sizes", "2000x2"]
    ops.main([*words, "--ways", "fused", "eager", "--results", str(tmp_path)])
    (one,) = json.loads((tmp_path / "ops_1.json").read_text())["ops"]
    assert one["seconds"]["fused"] == {"median": 2.0, "quartiles": [1.5, 3.5], "rounds": 3}
    assert one["over_fused"] == {"eager": 2.5}
    assert (one["op"], one["shape"]) == ("em_step", [2000, 2])


def test_ops_are_timed(tmp_path: Path) -> None:
    words = ["--seconds", "0.001", "--ops", "normal", "--sizes", "2000x2", "--ways", "eager"]
    ops.main([*words, "--results", str(tmp_path)])
    (one,) = json.loads((tmp_path / "ops_1.json").read_text())["ops"]
    assert one["seconds"]["eager"]["median"] > 0
    assert one["over_fused"] == {}
