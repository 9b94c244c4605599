"""The twins of single ops compute what the ops compute, and their report says how long it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor

from benchmarks.speed import op_variants, ops
from benchmarks.speed.op_variants import KEY, OPS, STEP
from diffflow_ext import functional

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn_by(op: str) -> Any:
    """The noise that the fused op draws, for its twin."""
    purpose = {"reverse_step": "reverse", "perturb": "dsm"}.get(op, "forward")
    step = 0 if op == "perturb" else STEP

    def draw(x: Tensor) -> Tensor:
        return functional.normal(tuple(x.shape), KEY, purpose=purpose, step=step)

    return draw


@pytest.mark.parametrize("op", list(OPS))
def test_twin_computes_the_same(op: str) -> None:
    given = op_variants.inputs((50, 3))
    fused, twin = OPS[op]
    torch.testing.assert_close(fused(given), twin(given, drawn_by(op)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", ["em_step", "perturb"])
def test_twin_draws_anew(op: str) -> None:
    given, call = op_variants.inputs((50, 3)), op_variants.variant(op, "eager")
    first, second = (torch.as_tensor(one[0] if op == "perturb" else one)
                     for one in (call(given), call(given)))  # fmt: skip
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_compiled_twin_computes_the_same() -> None:
    given = op_variants.inputs((50, 3))
    one = op_variants.variant("backward_residual", "compiled")(given)
    torch.testing.assert_close(one, OPS["backward_residual"][0](given), rtol=1e-5, atol=1e-5)


def entry(way: str, median: float) -> dict[str, Any]:
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "rounds": 7}
    return {"params": {"op": "em_step", "size": "2000x2", "way": way}, "stats": stats}


def test_report_is_condensed() -> None:
    found = ops.condensed({"benchmarks": [entry("fused", 2.0), entry("eager", 5.0)]})
    assert len(found) == 1
    assert found[0]["over_fused"] == {"eager": 2.5}
    assert found[0]["shape"] == (2000, 2)
    assert found[0]["seconds"]["fused"]["quartiles"] == [1.8, 2.2]


def test_report_is_read(tmp_path: Path) -> None:
    source = tmp_path / "benchmark.json"
    source.write_text(json.dumps({"benchmarks": [entry("fused", 2.0)]}))
    ops.main(["--read", str(source), "--results", str(tmp_path)])
    report = json.loads((tmp_path / "ops_1.json").read_text())
    assert report["benchmark"] == "ops"
    assert report["ops"][0]["over_fused"] == {}


def test_pytest_benchmark_runs(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    words = ["--seconds", "0.01", "--only", "2000x2 and em_step and not compiled"]
    ops.main([*words, "--results", str(tmp_path)])
    report = json.loads((tmp_path / "ops_1.json").read_text())
    assert [one["op"] for one in report["ops"]] == ["em_step"]
    assert set(report["ops"][0]["seconds"]) == {"fused", "eager"}
    assert 0 < report["ops"][0]["seconds"]["fused"]["median"] < 0.1


def test_what_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="expected pytest to succeed"):
        ops.main(["--only", "no_such_op", "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_times_are_not_part_of_the_tests() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'testpaths = ["tests"]' in text
    assert (ROOT / "benchmarks" / "test_ops.py").exists()
