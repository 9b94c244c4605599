"""Log-densities of single rows: a density in the units of the data, rows by name, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import FAST, write_points
from torch import Tensor
from training_runs import write_images

from diffflow_ext.cli import main
from diffflow_ext.training import LoadedRun, load_run
from diffflow_ext.training.evaluation import scoring
from diffflow_ext.training.store.dataset import DatasetRecord

pytest.importorskip("zuko")


def trained(folder: Path, model: str, data: Path, *words: str) -> LoadedRun:
    out = folder / model
    assert main(["train", model, str(data), "--out", str(out), "--steps=6", *words]) == 0
    return load_run(out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedRun]:
    folder = tmp_path_factory.mktemp("runs")
    data = write_points(folder)
    words = [word for word in FAST if "steps" not in word and "save-every" not in word]
    flow = [word for word in words if "width" not in word and "depth" not in word]
    return {
        "flow": trained(folder, "flow", data, *flow),
        "diffflow": trained(folder, "diffflow", data, *words, "--num-steps=3"),
        "ddpm": trained(folder, "ddpm", data, *words, "--timesteps=5"),
    }


def scales(record: DatasetRecord) -> tuple[Tensor, Tensor]:
    """Returns means and deviations of continuous columns."""
    assert record.encoding is not None
    pairs = [(column.mean, column.std) for column in record.encoding.columns]
    mean, std = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return mean, std


ROWS = torch.tensor([[0.3, 1000.2], [-1.0, 998.0], [2.0, 1003.0]], dtype=torch.float64)


@pytest.mark.parametrize("model", ["flow", "diffflow"])
def test_it_is_a_density_in_the_units_of_the_data(runs: dict[str, LoadedRun], model: str) -> None:
    """It integrates to one over the plane, whose points have mean (0, 1000)."""
    first, second = torch.linspace(-9, 9, 91), torch.linspace(-13, 13, 131) + 1000
    points = torch.cartesian_prod(first.double(), second.double())
    mass = runs[model].log_prob(points).exp().sum() * 0.2 * 0.2
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_it_is_the_models_less_the_scale(runs: dict[str, LoadedRun]) -> None:
    run = runs["flow"]
    mean, std = scales(run.record)
    x = ((ROWS - mean) / std).float()
    expected = run.model.log_prob(x).double() - std.log().sum()  # pyright: ignore
    assert torch.allclose(run.log_prob(ROWS), expected.detach(), atol=1e-6)
    assert run.log_prob(ROWS).dtype == torch.float64


def test_the_mean_over_test_data_is_that_of_the_evaluation(runs: dict[str, LoadedRun]) -> None:
    from diffflow_ext.training.evaluation.likelihoods import likelihoods
    from diffflow_ext.training.evaluation.run_data import open_run_data
    from diffflow_ext.training.recipes.base import EvaluationSettings

    run = runs["diffflow"]
    data = open_run_data(run)
    assert data.encoding is not None
    rows = data.encoding.decoded(data.test)
    found = likelihoods(run, data, len(rows), EvaluationSettings(None, 4, len(rows)), 3)
    for name in ("bound", "importance_weighted", "ode"):
        paths = 4 if name == "importance_weighted" else 1
        scores = run.log_prob(rows, estimator=name, num_paths=paths, seed=3)
        assert -float(scores.mean()) == pytest.approx(found[f"{name}_data_units"], rel=1e-6)


def test_a_row_does_not_depend_on_the_others(runs: dict[str, LoadedRun]) -> None:
    for run in runs.values():
        whole = run.log_prob(ROWS)
        assert torch.allclose(run.log_prob(ROWS[:2]), whole[:2], rtol=1e-5)
        assert torch.equal(run.log_prob(ROWS), whole)
    run = runs["diffflow"]
    bounds = [run.log_prob(ROWS, estimator="bound", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(bounds[0], bounds[1])
    assert not torch.equal(bounds[0], bounds[2])


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(np.longdouble),
        lambda x: x.tolist(),
        lambda x: pd.DataFrame(x.numpy(), columns=["a", "b"]),
        lambda x: pd.DataFrame({"b": x[:, 1], "other": ["?"] * 3, "a": x[:, 0]}),
    ],
)
def test_rows_are_arrays_tensors_or_frames(runs: dict[str, LoadedRun], kind: Any) -> None:
    run = runs["flow"]
    assert torch.equal(run.log_prob(kind(ROWS)), run.log_prob(ROWS))


@pytest.mark.parametrize(
    ("model", "chosen", "options"),
    [
        ("flow", "exact", {}),
        ("diffflow", "ode", {}),
        ("diffflow", "importance_weighted", {"num_paths": 3}),
        ("ddpm", "ode", {}),
    ],
)
def test_the_estimator_of_a_model(
    runs: dict[str, LoadedRun], model: str, chosen: str, options: dict[str, Any]
) -> None:
    run = runs[model]
    named = run.log_prob(ROWS, estimator=chosen, **options)
    assert torch.equal(run.log_prob(ROWS, **options), named)


NAN, FAR = float("nan"), 1e30


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (ROWS[:, :1], {}, ValueError, r"rows of shape \(n, 2\) as in the run, .* got \(3, 1\)"),
        (ROWS[0], {}, ValueError, r"got \(2,\)"),
        (ROWS[:0], {}, ValueError, "expected rows, at least one, got none"),
        (3, {}, ValueError, r"got \(\)"),
        (ROWS > 0, {}, TypeError, r"real numbers, got .* of bool; give"),
        (ROWS * 1j, {}, TypeError, r"real numbers, got .* of complex128; give"),
        ([["a", "b"]], {}, TypeError, "rows of real numbers"),
        ([[0.0, 1000.0], [0.0, NAN]], {}, ValueError, r"got nan in row 1 .*column 'b'"),
        ([[FAR, 1000.0]], {}, ValueError, r"got 1e\+30 in row 0 .*column 'a'"),
        (
            pd.DataFrame({"a": [1.0], "c": [1.0]}),
            {},
            ValueError,
            "which has no 'b'; its columns are a, c",
        ),
        (ROWS, {"estimator": "exact"}, ValueError, "'exact': diffflow has bound, ode; import"),
        (ROWS, {"estimator": "importance_weighted"}, ValueError, "needs num_paths=2 or more"),
        (ROWS, {"estimator": "ode", "num_paths": 2}, ValueError, "num_paths=2: expected 1"),
        (ROWS, {"num_steps": 2}, ValueError, "num_steps=2: 'ode' has steps of its own"),
        (np.ma.masked_less(ROWS.numpy(), 0.0), {}, ValueError, r"got nan in row 1 .*column 'a'"),
        (ROWS, {"num_paths": 0}, ValueError, "num_paths=0: expected at least 1"),
        (ROWS, {"seed": -1}, ValueError, "seed"),
    ],
)
def test_what_does_not_suit(
    runs: dict[str, LoadedRun],
    rows: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        runs["diffflow"].log_prob(rows, **options)


def test_paths_are_of_models_that_have_them(runs: dict[str, LoadedRun]) -> None:
    for name in ("flow", "ddpm"):
        with pytest.raises(ValueError, match="num_paths=2: expected 1, because only importance_w"):
            runs[name].log_prob(ROWS, num_paths=2)


def test_samples_have_the_units_that_are_named(runs: dict[str, LoadedRun]) -> None:
    run = runs["flow"]
    x, rows = run.sample(5, units="training"), run.sample(5)
    assert torch.equal(run.record.in_data_units(x), rows)
    with pytest.raises(ValueError, match="units='foo': expected 'data' or 'training'"):
        run.sample(5, units="foo")  # pyright: ignore[reportArgumentType]


def test_steps_are_of_models_that_have_them(runs: dict[str, LoadedRun]) -> None:
    with pytest.raises(ValueError, match="num_steps=3: the sampler of flow has no options"):
        runs["flow"].log_prob(ROWS, num_steps=3)


@pytest.fixture
def images(tmp_path: Path) -> tuple[LoadedRun, Tensor]:
    data = write_images(tmp_path / "images", 8)
    words = ("--unet-base=8", "--unet-mults=1", "--batch-size=4", "--threads=1", "--device=cpu")
    run = trained(tmp_path, "ddpm", data, "--timesteps=5", *words)
    count = torch.Generator().manual_seed(0)
    shape = (3, *run.record.event_shape)
    return run, torch.randint(256, shape, dtype=torch.uint8, generator=count)


def test_images_are_bytes_and_their_bound_is_the_default(images: tuple[LoadedRun, Tensor]) -> None:
    run, pixels = images
    scores = run.log_prob(pixels)
    assert torch.equal(scores, run.log_prob(pixels, estimator="bound"))
    assert torch.equal(scores, run.log_prob(pixels.numpy()))
    assert torch.equal(scores, run.log_prob(pixels.movedim(1, -1)))
    assert torch.equal(scores, run.log_prob(pixels[:, 0].numpy()))
    # No model of six steps gives noise more than one level in 100.
    assert float(scores.max()) < -pixels[0].numel() * np.log(100)
    with pytest.raises(TypeError, match=r"images in bytes, torch.uint8 .* got torch.float32"):
        run.log_prob(pixels.float())
    with pytest.raises(ValueError, match=r"expected images of shape \(n, "):
        run.log_prob(pixels[:, :, :4])


def test_chunks_make_no_difference(
    runs: dict[str, LoadedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["diffflow"]
    whole = run.log_prob(ROWS, estimator="bound")
    monkeypatch.setattr(scoring, "chunk_size", lambda recipe: 2)
    assert torch.allclose(run.log_prob(ROWS, estimator="bound"), whole, rtol=1e-6)
