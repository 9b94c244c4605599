"""Estimators as runs: saved, opened by `load_run` and the program, and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import write_points
from sklearn.base import clone
from training_runs import write_images

from diffflow_ext.cli import main
from diffflow_ext.estimators import DDPMDensity, DiffFlowDensity, DiNofDensity
from diffflow_ext.training import CheckpointError, configure, load_run, train

SMALL: dict[str, Any] = {
    "steps": 3, "batch_size": 8, "width": 4, "depth": 1, "device": "cpu", "threads": 1,
    "random_state": 0,
}  # fmt: skip


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(write_points(tmp_path), float_precision="round_trip")


def test_what_is_saved_is_the_run(frame: pd.DataFrame, tmp_path: Path) -> None:
    """The run that `train` makes of the same data, and nothing that could be executed."""
    density = DiffFlowDensity(**SMALL, num_steps=2).fit(frame)
    density.save(tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert np.array_equal(run.log_prob(frame).numpy(), density.score_samples(frame))
    assert np.array_equal(run.sample(9, seed=4).numpy(), density.sample(9, random_state=4))
    assert run.record.columns == ("a", "b")
    values = {name: value for name, value in SMALL.items() if name != "random_state"}
    config = configure(**values, num_steps=2, columns="continuous")
    train(config, tmp_path / "trained", data=frame, progress=False)
    trained = load_run(tmp_path / "trained")
    assert torch.equal(trained.log_prob(frame), run.log_prob(frame))
    assert trained.config == run.config
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name not in ("latest", ".lock")}
    assert kinds == {".toml", ".jsonl", ".safetensors", ".json"}
    assert (tmp_path / "run" / "config.toml").read_text() == (
        tmp_path / "trained" / "config.toml"
    ).read_text()  # fmt: skip


def test_the_program_opens_it(frame: pd.DataFrame, tmp_path: Path) -> None:
    options = {"schedule": "constant", "progressive": "off"}
    density = DiffFlowDensity(**SMALL, num_steps=2, options=options).fit(frame)
    run, data = str(tmp_path / "run"), str(tmp_path / "points.csv")
    density.save(run)
    out = tmp_path / "samples.csv"
    assert main(["sample", run, "--n", "7", "--out", str(out), "--device", "cpu"]) == 0
    samples = pd.read_csv(out, float_precision="round_trip")
    assert [*samples.columns] == ["a", "b"]
    assert np.allclose(samples, density.sample(7, random_state=0))
    assert main(["train", data, "--out", run, "--resume", "--steps=5"]) == 0
    longer = DiffFlowDensity(**{**SMALL, "steps": 5}, num_steps=2, options=options).fit(frame)
    assert np.array_equal(
        DiffFlowDensity.load(run).score_samples(frame), longer.score_samples(frame)
    )


@pytest.mark.parametrize("named", [True, False])
def test_what_is_loaded_is_equal(frame: pd.DataFrame, tmp_path: Path, named: bool) -> None:
    rows = frame if named else frame.to_numpy()
    density = DiffFlowDensity(**SMALL, num_steps=2, options={"log_every": 1}).fit(rows)
    density.save(tmp_path / "run")
    loaded = DiffFlowDensity.load(str(tmp_path / "run"))
    assert loaded.get_params() == density.get_params()
    assert loaded.history_ == density.history_
    assert loaded.n_features_in_ == 2
    assert hasattr(loaded, "feature_names_in_") is named
    if named:
        assert np.array_equal(loaded.feature_names_in_, density.feature_names_in_)
    assert np.array_equal(loaded.score_samples(rows), density.score_samples(rows))
    again = clone(loaded).fit(rows)
    assert np.array_equal(again.score_samples(rows), density.score_samples(rows))


def test_runs_of_the_program_are_loaded(frame: pd.DataFrame, tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "run"), "--steps=3", "--width=8", "--device=cpu",
             "--process=ve", "--flow=none", "--limit=100", "--seed=9"]  # fmt: skip
    assert main(["train", "dinof", str(tmp_path / "points.csv"), *words]) == 0
    density = DiNofDensity.load(tmp_path / "run")
    changed = {name: value for name, value in density.get_params().items()
               if value != DiNofDensity().get_params()[name]}  # fmt: skip
    expected = {"steps": 3, "width": 8, "device": "cpu", "random_state": 9, "process": "ve"}
    ve = {"sigma_min": 0.01, "sigma_max": 50.0}
    assert changed == {**expected, "flow": "none", "options": ve}
    scores = load_run(tmp_path / "run").log_prob(frame)
    assert np.array_equal(density.score_samples(frame), scores.numpy())


def test_what_is_not_saved_or_loaded(frame: pd.DataFrame, tmp_path: Path) -> None:
    density = DDPMDensity(**SMALL, timesteps=3).fit(frame)
    density.save(tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=r"save: expected a new folder, got .* which holds a run"):
        density.save(tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("mine")
    with pytest.raises(ValueError, match="save: expected a new folder"):
        density.save(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["config.toml"]
    with pytest.raises(
        ValueError, match=r"expected a run of diffflow and rows, got .* of ddpm an"
    ):
        DiffFlowDensity.load(tmp_path / "run")
    with pytest.raises(ValueError, match="no run there"):
        DDPMDensity.load(tmp_path / "nothing")
    (weights,) = (tmp_path / "run").rglob("ema.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="expected 1352 bytes, got 1351"):
        DDPMDensity.load(tmp_path / "run")


def test_runs_of_images_are_refused(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 8)
    words = ["--unet-base=8", "--unet-mults=1", "--batch-size=4", "--device=cpu", "--steps=1"]
    assert main(["train", "ddpm", str(data), "--out", str(tmp_path / "run"), *words]) == 0
    with pytest.raises(ValueError, match=r"expected a run of ddpm and rows, got .* and images"):
        DDPMDensity.load(tmp_path / "run")
