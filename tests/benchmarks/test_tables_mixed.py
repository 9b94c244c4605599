"""The comparison on mixed tables runs; its baselines are what they say; its rows stay rows."""

from __future__ import annotations

import itertools
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.pages import quality, write
from benchmarks.quality import fetch, tables_mixed, trainings
from benchmarks.quality.baselines import Gaussian, Independent, Kernels, encoding_of, noisy
from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.training.evaluation.sample_file import to_frame
from diffflow_ext.training.evaluation.scoring import stored_rows
from diffflow_ext.training.store.dataset import DatasetRecord

pytestmark = pytest.mark.usefixtures("one_thread")
N = 1000
MODELS = ["independent", "gaussian", "kernels", "spline", "diffflow"]


def mixed() -> pd.DataFrame:
    """Returns a table of every discrete kind, in which the price follows from the others."""
    rng = np.random.default_rng(3)
    grade, level = rng.integers(0, 3, N), rng.integers(1, 5, N)
    weight = rng.normal(2.0 + grade, 0.3).clip(0.5).round(2)
    price = np.rint(np.exp(weight + 0.2 * level + rng.normal(0.0, 0.05, N)) * 100).astype(int)
    return pd.DataFrame(
        {"cut": np.array(["a", "b", "c"])[grade], "level": level, "weight": weight, "price": price}
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "stones.csv"
    mixed().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def dataset(table: Path) -> Dataset:
    return open_dataset(table)


@pytest.fixture(scope="module")
def words(table: Path) -> list[str]:
    """What the comparison was run with."""
    pytest.importorskip("zuko")
    where = ["--out", str(table.parent / "out"), "--results", str(table.parent / "results")]
    given = ["--smoke", *where, "--data", str(table), "--minutes", "0.005", "--models", *MODELS]
    before = torch.get_num_threads()
    tables_mixed.main(given)
    torch.set_num_threads(before)
    return given


def read(table: Path) -> dict[str, Any]:
    return json.loads((table.parent / "results" / "tables_mixed_stones.json").read_text())


# --- the report ----------------------------------------------------------------------------------


def test_report_has_every_model_and_measure(words: list[str], table: Path) -> None:
    report, sizes = read(table), tables_mixed.SMOKE
    assert list(report["models"]) == MODELS
    assert set(report["columns"].values()) == {"category", "integer"}
    for one in report["models"].values():
        assert 0.0 <= one["c2st"]["accuracy"] <= 1.0
        assert one["regression_r2"] <= 1.0
        assert one["train_cpu_seconds"] > 0.0
        for found in one["likelihood"].values():
            assert 0 < found["near"]["n"] <= found["n"] <= sizes.rows
    paths = report["models"]["diffflow"]["likelihood"]
    assert set(paths) == {"bound", "importance_weighted", "ode"}
    assert [paths[name]["n"] for name in paths] == [sizes.rows, sizes.rows, sizes.ode_rows]
    assert paths["bound"]["scatter_of_seeds"] > 0.0
    # The price follows from the other columns, which a regression on few rows finds in part.
    assert report["training_rows"]["regression_r2"] > 0.5


def test_finished_parts_are_found_again(
    words: list[str], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(table)
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(tables_mixed, "told_apart", lambda *_: pytest.fail("measured again"))
    tables_mixed.main(words)
    assert read(table)["models"] == before["models"]


def test_page_shows_the_report(words: list[str], table: Path) -> None:
    report = read(table)
    text = quality.tables_mixed(report)
    for one in report["models"].values():
        assert text.count(f"| {one['title']} ") >= 1
        assert f"{one['regression_r2']:.3f}".replace("-", "\N{MINUS SIGN}") in text
    bound = report["models"]["diffflow"]["likelihood"]["bound"]
    assert re.search(rf"\| DiffFlow, bound \| (\*\*)?{bound['nats']:.2f} ± ", text)
    results = write.read_results(table.parent / "results")
    assert "tables_mixed_stones.json" in quality.BLOCKS["conditions"](results)


# --- baselines -----------------------------------------------------------------------------------


def test_independent_columns_have_shares_of_training_rows(dataset: Dataset) -> None:
    model, stored = Independent(dataset), dataset.train
    counts = [
        np.bincount(stored[:, i].long(), minlength=len(p)) for i, p in enumerate(model.shares)
    ]
    expected = torch.zeros(len(dataset.test), dtype=torch.float64)
    for i, count in enumerate(counts):
        p = (count + 0.5) / (len(stored) + 0.5 * len(count))
        assert p.sum() == pytest.approx(1.0)
        expected += torch.from_numpy(np.log(p[dataset.test[:, i].long()]))
    torch.testing.assert_close(model.log_prob(dataset.test, 0), expected)


def test_samples_of_independent_columns_have_these_shares(dataset: Dataset) -> None:
    model, encoding = Independent(dataset), encoding_of(dataset)
    frame = to_frame(encoding, encoding.decoded(model.draw(20_000, 1)))
    found = frame.cut.value_counts(normalize=True).sort_index().to_numpy()
    assert found == pytest.approx(model.shares[0].numpy(), abs=0.015)
    # Columns are drawn apart: the price no longer follows the weight.
    assert abs(np.corrcoef(frame.weight, frame.price)[0, 1]) < 0.03


def test_probabilities_of_a_gaussian_of_categories_are_those_of_independent_ones(
    tmp_path: Path,
) -> None:
    """In the scale of categories a standard normal is the product of the shares."""
    rng = np.random.default_rng(0)
    columns = {"a": rng.choice(["x", "y", "z"], 20_000), "b": rng.integers(0, 4, 20_000)}
    data = open_dataset(pd.DataFrame(columns))
    exact = Independent(data).log_prob(data.test, 0)
    bound = Gaussian(data).log_prob(data.test, 0)
    assert float(bound.mean()) == pytest.approx(float(exact.mean()), abs=2e-3)


def test_probabilities_of_baselines_sum_to_one_at_most(tmp_path: Path) -> None:
    """Over all rows that there are, as means over the noise; 1 but for what lies beyond."""
    rng = np.random.default_rng(1)
    a = rng.choice(["x", "y"], 3000)
    data = open_dataset(pd.DataFrame({"a": a, "b": 10 * (a == "y") + rng.binomial(12, 0.5, 3000)}),
                        columns="b=integer")  # fmt: skip
    column = encoding_of(data).columns[1]
    values = range(1 + int(column.high - column.low))
    rows = torch.tensor(list(itertools.product(range(2), values)), dtype=torch.float32)
    for model in (Independent(data), Gaussian(data), Kernels(data, 500, 100)):
        draws = torch.stack([model.log_prob(rows, seed).exp() for seed in range(300)])
        assert 0.9 < float(draws.mean(0).sum()) < 1.02


def test_width_of_kernels_is_that_of_the_least_validation(dataset: Dataset) -> None:
    about = Kernels(dataset, 300, 50).about
    nats = about["validation_nats"]
    assert nats[str(about["bandwidth"])] == min(nats.values())
    assert (about["rows"], about["validation_rows"]) == (300, 50)


def test_tables_of_other_columns_are_refused() -> None:
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=100)})
    with pytest.raises(ValueError, match="'x' of kind continuous"):
        Independent(open_dataset(frame))


# --- rows ----------------------------------------------------------------------------------------


def test_rows_stay_as_they_are_through_inputs_and_frames(dataset: Dataset) -> None:
    encoding, stored = encoding_of(dataset), dataset.train
    frame = to_frame(encoding, encoding.decoded(noisy(encoding, stored, 5)))
    assert torch.equal(stored_rows(DatasetRecord.of(dataset), frame), stored)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"other bytes", b"the table"])
def test_diamonds_are_taken_from_the_package_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def download(command: list[str], cwd: Path, check: bool) -> SimpleNamespace:
        assert "plotnine==0.15.9" in command
        with zipfile.ZipFile(cwd / "plotnine.whl", "w") as archive:
            archive.writestr("plotnine/data/diamonds.csv", content)
        return SimpleNamespace(returncode=0)

    digest = "9b8a7ea28aa8d3ca0f6c7d0b4a4a4c0d"
    monkeypatch.setattr(fetch.subprocess, "run", download)
    if content == b"the table":
        digest = fetch.hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(fetch, "DIAMONDS", {"diamonds.csv": digest})
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path / "sets"))
    if content == b"the table":
        fetch.main(["diamonds"])
        assert (tmp_path / "sets/diamonds/diamonds.csv").read_bytes() == content
    else:
        with pytest.raises(ValueError, match="got other bytes"):
            fetch.main(["diamonds"])
