"""The ways to compute a step that are compared: those that claim to be exact are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import step_variants
import steps
import torch
from paired import paired, spread
from step_variants import VARIANTS, Pair, Problem
from torch import Tensor

from diffflow_ext import DiffFlowSDE, NoiseKey
from diffflow_ext.functional import normal

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Problem(dim=3, batch=7, num_steps=4, width=8, depth=1)
KEY = NoiseKey(5)


def double_pair() -> Pair:
    pair = Pair(SMALL)
    pair.drift.double(), pair.score.double()
    pair.data = pair.data.double()
    shape = tuple(pair.data.shape)
    pair.noise = [
        normal(shape, KEY, purpose="forward", step=i, dtype=torch.float64)
        for i in range(SMALL.num_steps)
    ]
    return pair


def gradient(pair: Pair) -> Tensor:
    return torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None])


def test_plain_variants_have_the_gradient_of_the_package() -> None:
    pair = double_pair()
    sde = DiffFlowSDE(pair.drift, pair.score, SMALL.g)
    sde.mean_loss(pair.data, SMALL.grid(), KEY, engine="autograd").backward()
    expected = gradient(pair)
    graph = double_pair()
    step_variants.loop_loss(graph).backward()
    torch.testing.assert_close(gradient(graph), expected, rtol=1e-8, atol=1e-10)
    release = double_pair()
    step_variants.release_gradients(release)
    torch.testing.assert_close(gradient(release), expected, rtol=1e-8, atol=1e-10)


def test_torchsde_adjoint_has_another_gradient() -> None:
    pytest.importorskip("torchsde")
    assert step_variants.torchsde_gradient_error(SMALL) > 0.3


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "compiled"])
def test_every_variant_takes_steps(name: str) -> None:
    if not steps.usable(name):
        pytest.skip("not possible here")
    step = VARIANTS[name][0](SMALL)
    step()
    step()


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.PROBLEMS, "2d", SMALL)
    monkeypatch.setattr(steps, "product_rate", lambda: 1.0)
    words = ["--results", str(tmp_path), "--rounds", "2", "--variants", "fused", "adjoint"]
    steps.main(words)
    report = json.loads((tmp_path / "steps_2d_1.json").read_text())
    assert set(report["variants"]) == {"ddpm", "fused", "adjoint"}
    assert report["gradient_error"] < 1e-5
    assert 0 < report["variants"]["fused"]["ratio"]["min"]
    assert set(report["variants"]["fused"]) == {"seconds", "ratio", "title", "mebibytes"}


def test_memory_is_that_of_the_steps_alone() -> None:
    """The graph of every step is what the fused engine does without."""
    problem = Problem(batch=2000, num_steps=10, width=64, depth=2)
    parent = torch.ones(2**26)  # Nor does it count what this process has.
    idle = steps.peak_mebibytes(problem, None, 1)
    graph, fused = (steps.peak_mebibytes(problem, n, 1) - idle for n in ("graph", "fused"))
    assert len(parent)
    assert graph > 40
    assert fused < graph / 2


def test_ratios_are_taken_within_a_round() -> None:
    found = paired({"a": lambda: sum(range(20_000)), "b": lambda: sum(range(80_000))}, "a", 5)
    assert 2 < found["b"]["ratio"]["median"] < 8
    assert 0.5 < found["a"]["ratio"]["median"] < 2
    assert spread([3.0, 1.0, 2.0])["median"] == 2.0
    assert spread([4.0])["quartiles"] == [4.0, 4.0]
