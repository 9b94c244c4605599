"""Costs of NFDM beside DDPM: what is timed, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages.speed import denoising as page
from benchmarks.speed import denoising
from benchmarks.speed.denoising import SIZES, models


@pytest.mark.parametrize("size", SIZES)
def test_models_have_about_as_many_parameters(size: str) -> None:
    sizes = [sum(p.numel() for p in model.parameters()) for model in models(size).values()]
    assert max(sizes) < 1.1 * min(sizes)


def test_the_report_has_a_ratio_of_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny: dict[str, Any] = {"unet_mults": "1", "unet_blocks": 1, "unet_attention": "off"}
    tiny["unet_base"] = 8
    sizes = {
        "points": ((2,), 8, {"width": 8}, {"width": 8}),
        "images": ((1, 4, 4), 2, tiny, tiny),
    }
    monkeypatch.setattr(denoising, "SIZES", sizes)
    monkeypatch.setattr("benchmarks.speed.paired.seconds", lambda step: step() or 0.5)
    denoising.main(["--rounds", "2", "--results", str(tmp_path)])
    report = json.loads((tmp_path / "denoising_1.json").read_text())
    assert list(report["cases"]) == ["points, float32", "images, float32", "images, bf16"]
    for case in report["cases"].values():
        assert {one["ratio"]["median"] for one in case["variants"].values()} == {1.0}
    assert "| NFDM, learned process | " in page(report)
