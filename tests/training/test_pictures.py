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
    evaluate(folder, 9, device="cpu", ode_n=2)
    drawn = {"samples": sample_figure(run, n=64), "trajectories": path_figure(run),
             "loss": loss_figure(run)}  # fmt: skip
    for name, figure in drawn.items():
        assert isinstance(figure, Figure)
        expected = (folder / "figures" / f"{name}.png").read_bytes()
        assert save(figure, tmp_path / "own.png").read_bytes() == expected
    words = ["sample", str(folder), "--n", "64", "--out", str(tmp_path / "s.csv")]
    assert main([*words, "--figure", str(tmp_path / "s.png"), "--device", "cpu"]) == 0
    assert (tmp_path / "s.png").read_bytes() == save(
        drawn["samples"], tmp_path / "o.png"
    ).read_bytes()
    assert "64 samples" in drawn["samples"].get_suptitle()
    # A set is called by the name of its file.
    titles = [figure.get_suptitle() for figure in drawn.values()]
    assert titles == ["t.csv: 64 samples", "t.csv: forward and reverse process",
                      "t.csv: training of diffflow"]  # fmt: skip
    assert sample_figure(run, n=5, stochasticity=0.0).get_suptitle().count("5 samples") == 1


def test_axes_have_the_units_and_names_of_the_data(folder: Path) -> None:
    run = load_run(folder)
    values = FRAME["c"].to_numpy()
    figure = sample_figure(run, n=64, columns="c,a")
    assert [panel.get_xlabel() for panel in figure.axes] == ["c", "c"]
    assert [panel.get_ylabel() for panel in figure.axes] == ["a", "a"]
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    table = FRAME[["c", "a"]].to_numpy()
    # Each dot is a row of the table, up to float32.
    assert np.abs(drawn[:, None] - table).max(2).min(1).max() < 1e-5 * np.abs(values).max()
    paths = path_figure(run, columns=["c", "a"])
    assert (paths.get_supxlabel(), paths.get_supylabel()) == ("c", "a")
    start = np.asarray(paths.axes[0].collections[0].get_offsets())
    assert np.abs(start[:, None] - table).max(2).min(1).max() < 1e-5 * np.abs(values).max()
    for call, words in (
        (
            sample_figure,
            "sample_figure: columns: expected names out of a, b, c, each once, got 'z",
        ),
        (path_figure, "path_figure: columns: expected 2 names out of a, b, c, each once, got 'z"),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            call(run, columns="z,a")


def test_the_curve_says_what_it_shows(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    panel = loss_figure(run).axes[0]
    assert panel.get_ylabel() == "bound on -log p [nats per sample]"
    # Four steps: N = 1 for three of them, and then 3.
    assert [(text.get_text(), text.xy[0]) for text in panel.texts] == [("N = 1", 1), ("N = 3", 4)]  # pyright: ignore
    gaussian = evaluate(folder, 9, device="cpu", ode_n=0, figures=False)["gaussian_nll"]
    lines = {str(line.get_label()): line for line in loss_figure(run).axes[0].lines}
    (level,) = (line for label, line in lines.items() if label.startswith("Gaussian, on test"))
    assert (np.asarray(level.get_ydata()) == gaussian).all()
    (folder / "evaluation.json").write_text("[1")
    with pytest.raises(ValueError, match=r"^loss_figure: .* expected an evaluation of this vers"):
        loss_figure(run)
    (folder / "evaluation.json").unlink()
    assert len(loss_figure(run).axes[0].lines) == len(lines) - 1


def test_a_flow_has_no_process_and_ffjord_has_one(tmp_path: Path) -> None:
    pytest.importorskip("torchdiffeq", reason="needs the flows extra")
    small = {"rtol": 1e-1, "atol": 1e-1, "width": 8, "depth": 1}
    for model, own in (("ffjord", small), ("flow", {})):
        train(configure(model, **own, **TINY), tmp_path / model, data=FRAME, progress=False)
    runs = {model: load_run(tmp_path / model) for model in ("ffjord", "flow")}
    figure = path_figure(runs["ffjord"], FRAME)
    assert [panel.get_title() for panel in figure.axes[:6]] == [
        f"t = {t:.3g}" for t in np.linspace(0.0, 1.0, 6)
    ]
    assert loss_figure(runs["flow"]).axes[0].get_ylabel() == "-log p [nats per sample]"
    with pytest.raises(ValueError, match=r"^path_figure: expected runs with a process .* a flow"):
        path_figure(runs, FRAME)


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
    with pytest.raises(
        ValueError, match=r"^sample_figure: columns: expected none, the run has im"
    ):
        sample_figure(run, columns="a")


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
