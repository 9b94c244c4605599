"""The training curve as numbers: what a picture and a report say of it is the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the plot extra")

from diffflow_ext.training import configure, load_run, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.evaluation.curve import training_curve
from diffflow_ext.training.evaluation.pictures import figure_of_curve
from diffflow_ext.training.evaluation.report import report_page
from diffflow_ext.training.recipes.build import build_recipe

RNG = np.random.default_rng(1)
TINY: dict[str, Any] = {"threads": 1, "warmup": 1, "batch_size": 16, "width": 8, "depth": 1}


def trained(folder: Path, progressive: str, **options: Any) -> Path:
    table = {"a": RNG.normal(size=200), "b": RNG.normal(size=200), "c": RNG.integers(0, 3, 200)}
    pd.DataFrame(table).to_csv(folder / "t.csv", index=False)
    options = {"data": str(folder / "t.csv"), "num_steps": 4, "steps": 9, **TINY, **options}
    config = configure("diffflow", progressive=progressive, **options)
    train(config, folder / "run", progress=False)
    return folder / "run"


def test_picture_and_page_name_the_steps_at_which_n_changes(tmp_path: Path) -> None:
    """They lie between lines of the log, so a log alone doesn't say them."""
    folder = trained(tmp_path, "0:1,2:1,4:2,5:4", log_every=3)
    run = load_run(folder)
    curve = training_curve(run, None)
    assert curve is not None
    assert list(curve.steps) == [3, 6, 9]
    assert curve.counts == [(1, 1), (5, 2), (6, 4)]
    panel = figure_of_curve(run, curve).axes[0]
    drawn = [(text.xy[0], text.get_text()) for text in panel.texts]  # pyright: ignore
    assert drawn == [(1, "N = 1"), (5, "N = 2"), (6, "N = 4")]
    page = " ".join(report_page(folder, device="cpu").split())
    assert "N is 1 at first, 2 from step 5 on, 4 from step 6 on." in page
    first, last = curve.values[0], curve.values[-1]
    assert f"training step: {first:.4g} at step 3, {last:.4g} at step 9" in page


def test_counts_are_those_of_the_log(tmp_path: Path) -> None:
    run = load_run(trained(tmp_path, "0:1,2:2,5:4", log_every=1))
    found = dict[int, int]()
    for line in run.history():
        found.setdefault(line["num_steps"], line["step"])
    curve = training_curve(run, None)
    assert curve is not None
    assert curve.counts == [(step, n) for n, step in found.items()]


@pytest.mark.parametrize("progressive", ["off", "0:4", "0:4,9:5"])
def test_one_number_is_no_change(tmp_path: Path, progressive: str) -> None:
    """A stage after the last step was not trained."""
    curve = training_curve(load_run(trained(tmp_path, progressive, log_every=3)), None)
    assert curve is not None
    assert curve.counts == []


def test_the_gaussian_knows_no_conditions(tmp_path: Path) -> None:
    run = load_run(trained(tmp_path, "off", log_every=3, condition="c"))
    curve = training_curve(run, {"gaussian_nll": 2.5})
    assert curve is not None
    assert (curve.gaussian, curve.is_given) == (2.5, True)
    labels = [str(line.get_label()) for line in figure_of_curve(run, curve).axes[0].lines]
    assert "Gaussian that knows no conditions, on test data: 2.5" in labels
    for unknown in (None, float("nan"), "3"):
        found = training_curve(run, {"gaussian_nll": unknown})
        assert found is not None
        assert found.gaussian is None


@pytest.mark.parametrize(
    ("flow", "weight", "label"),
    [
        ("none", "variance", "mean square error of the predicted noise"),
        ("none", "likelihood", "weighted mean square error of the predicted noise"),
        ("spline", "variance",
         "mean square error of the predicted noise + -log p of the flow [nats]"),
    ],
)  # fmt: skip
def test_the_loss_of_dinof_is_called_what_it_is(flow: str, weight: str, label: str) -> None:
    config = configure("dinof", data="moons", flow=flow, loss_weight=weight)
    config = resolve(config, is_image=False)
    recipe = build_recipe(config, (2,))
    assert recipe.curve.label == label


def test_without_a_log(tmp_path: Path) -> None:
    folder = trained(tmp_path, "off", log_every=3)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 3}) + "\n")
    assert training_curve(load_run(folder), None) is None
    assert re.search("The run has no log", report_page(folder, device="cpu"))


def test_numbers_of_a_damaged_log_are_left_out(tmp_path: Path) -> None:
    folder = trained(tmp_path, "off", log_every=3)
    wrong = ['"abc"', "null", "true", "[1]", "1e308", "-Infinity", "NaN", "1" + "0" * 400]
    lines = [json.dumps({"step": 3, "bound": 2.5})]
    lines += [f'{{"step": {4 + i}, "bound": {value}}}' for i, value in enumerate(wrong)]
    lines.append(f'{{"step": 1{"0" * 400}, "bound": 2.5, "elapsed": 1{"0" * 400}}}')
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curve = training_curve(load_run(folder), {"gaussian_nll": 10**400})
    assert curve is not None
    assert (list(curve.steps), list(curve.values), curve.gaussian) == ([3], [2.5], None)
    assert "2.5 at step 3" in report_page(folder, device="cpu")
