"""Figures of runs, as functions for notebooks; the program draws the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from training_runs import write_images

pytest.importorskip("matplotlib", reason="needs the plot extra")

from matplotlib.figure import Figure

from diffflow_ext.cli import main
from diffflow_ext.figures import save
from diffflow_ext.training import (
    configure,
    evaluate,
    film_of_paths,
    load_run,
    loss_figure,
    path_figure,
    sample_figure,
    train,
)
from diffflow_ext.training.evaluation.loaded_run import run_of
from diffflow_ext.training.store.runs import read_run

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {"a": RNG.normal(size=90), "b": RNG.normal(size=90), "c": RNG.normal(size=90)}
)
TINY: dict[str, Any] = {"steps": 4, "log_every": 1, "threads": 1, "warmup": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    FRAME.to_csv(out / "t.csv", index=False)
    config = configure("diffflow", data=str(out / "t.csv"), width=8, depth=1, num_steps=3, **TINY)
    train(config, out / "run", progress=False)
    return out / "run"


def test_a_figure_in_one_line_is_that_of_the_program(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    evaluate(folder, 9, out=tmp_path / "evaluation", device="cpu", ode_n=2)
    drawn = {"samples": sample_figure(run, n=64), "trajectories": path_figure(run),
             "loss": loss_figure(run)}  # fmt: skip
    for name, figure in drawn.items():
        assert isinstance(figure, Figure)
        expected = (tmp_path / "evaluation" / "figures" / f"{name}.png").read_bytes()
        assert save(figure, tmp_path / "own.png").read_bytes() == expected
    words = ["sample", str(folder), "--n", "64", "--out", str(tmp_path / "s.csv")]
    assert main([*words, "--figure", str(tmp_path / "s.png"), "--device", "cpu"]) == 0
    assert (tmp_path / "s.png").read_bytes() == save(
        drawn["samples"], tmp_path / "o.png"
    ).read_bytes()
    assert "64 samples" in drawn["samples"].get_suptitle()
    assert sample_figure(run, n=5, stochasticity=0.0).get_suptitle().count("5 samples") == 1


def test_data_in_memory_and_conditions(tmp_path: Path) -> None:
    frame = FRAME.assign(word=RNG.choice(["x", "y"], 90))
    config = configure("ddpm", timesteps=4, width=8, condition="word", **TINY)
    train(config, tmp_path / "run", data=frame, progress=False)
    run = load_run(tmp_path / "run")
    assert "7 samples" in sample_figure(run, frame, n=7).get_suptitle()
    with pytest.raises(FileNotFoundError, match="which does not name them: they were in memory"):
        sample_figure(run)
    assert len(path_figure(run, frame).axes) == 2 * 5  # Times 0 to 4 of the chain.
    assert "bound" not in loss_figure(run).axes[0].get_ylabel()
    in_memory = run_of(read_run(tmp_path / "run"), "cpu", "an estimator")
    with pytest.raises(ValueError, match=r"^loss_figure: expected a run with a log, metrics.jso"):
        loss_figure(in_memory)


def test_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 8)
    config = configure("ddpm", data=str(tmp_path / "images"), timesteps=3, unet_base=8,
                       unet_mults="1", **TINY)  # fmt: skip
    train(config, tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    assert sample_figure(run, n=9).get_suptitle().endswith("9 samples")
    rows = [text.get_text() for text in path_figure({"a": run}).axes[0].texts]
    assert [row.split(":")[0] for row in rows] == ["a, forward", "a, reverse"]
    with pytest.raises(ValueError, match=r"^film_of_paths: expected a run of two columns or more"):
        film_of_paths(run, tmp_path / "f.gif")


def test_paths_of_one_column_and_of_no_run(tmp_path: Path) -> None:
    config = configure("diffflow", width=8, depth=1, num_steps=3, **TINY)
    train(config, tmp_path / "run", data=FRAME[["a"]], progress=False)
    run = load_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^path_figure: expected runs with two columns or more"):
        path_figure(run, FRAME[["a"]])
    with pytest.raises(ValueError, match=r"^path_figure: expected at least one run, got none"):
        path_figure({})
    train(config, tmp_path / "other", data=FRAME[["b"]], progress=False)
    both = {"one": run, "two": load_run(tmp_path / "other")}
    with pytest.raises(ValueError, match=r"^path_figure: expected runs of the same data, 'two' a"):
        path_figure(both, FRAME[["a"]])
