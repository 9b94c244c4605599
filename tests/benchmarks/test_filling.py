"""The benchmark of half pictures: its scores, its baselines and its table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pages import missing
from benchmarks.quality import filling
from diffflow_ext.data import split_images


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (200, 1, 16, 16), dtype=torch.uint8)
    images[:, :, 8:] = 255 - images[:, :, :8]
    data = split_images({"train": images[:150], "test": images[150:]}, name="mnist")
    monkeypatch.setattr(filling, "open_dataset", lambda *args, **options: data)


@pytest.mark.usefixtures("digits")
def test_baselines_and_their_table(tmp_path: Path) -> None:
    where = ["--smoke", "--minutes", "0.001", "--out", str(tmp_path / "out")]
    filling.main([*where, "--results", str(tmp_path), "--models", "nearest", "gaussian"])
    report = json.loads((tmp_path / "filling_mnist16.json").read_text())
    assert [*report["models"]] == ["nearest", "gaussian"]
    with np.load(tmp_path / report["samples"]) as samples:
        shown = {name: samples[name] for name in samples.files}
    assert shown["nearest"].shape == (2, 2, 1, 16, 16)
    for draws in (shown["nearest"], shown["gaussian"]):
        assert np.array_equal(draws[:, 0, :, :8], shown["data"][:, :, :8])
    # The bottoms are linear in the tops, which the normal distribution knows.
    assert report["models"]["gaussian"]["mse"]["mean"] < report["models"]["nearest"]["mse"]["mean"]
    text = missing.filling(report)
    assert "| training images with the nearest tops |" in text


def test_energy_scores_are_those_of_normals() -> None:
    """For one dimension, y = 0 and draws of N(0, 1) it is (sqrt(2) - 1) / sqrt(pi)."""
    draws = torch.randn(200, 500, 1, generator=torch.Generator().manual_seed(0)).double()
    scores = filling.energy_scores(draws, torch.zeros(500, 1).double())
    assert float(scores.mean()) == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi), abs=4e-3)
