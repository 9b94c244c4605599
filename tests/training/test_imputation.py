"""Missing values drawn given the others: conditional distributions in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from diffflow_ext.data.column import Column
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.training import LoadedRun, configure, load_run, train
from diffflow_ext.training.evaluation.imputation import complete
from diffflow_ext.training.recipes.base import Estimator

NAN = math.nan
MEAN = torch.tensor([0.5, -1.0, 0.0]).double()
COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 1.5]]).double()
MODEL = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
LINEAR = Encoding.linear("abc", [0.0] * 3, [1.0] * 3)


def _log_prob(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
    return MODEL.log_prob(x.double())


EXACT = Estimator("exact", "exact", _log_prob)


def _pool() -> Tensor:
    torch.manual_seed(0)
    # A model's samples are not its density: the proposal may be off.
    return (MODEL.sample((5000,)) * 1.3 + 0.4).float()


@pytest.mark.parametrize("row", [[1.2, NAN, 0.7], [NAN, 0.3, NAN], [NAN, NAN, -2.0]])
def test_conditionals_of_a_gaussian(row: list[float]) -> None:
    stored = torch.tensor([row])
    found = complete(LINEAR, EXACT, _pool(), stored, 20_000, 40_000, seed=1)
    x = found.inputs[:, 0].double()
    a = torch.tensor([i for i in range(3) if math.isnan(row[i])])
    o = torch.tensor([i for i in range(3) if not math.isnan(row[i])])
    gain = COVARIANCE[a][:, o] @ torch.linalg.inv(COVARIANCE[o][:, o])
    mean = MEAN[a] + gain @ (stored[0, o].double() - MEAN[o])
    covariance = COVARIANCE[a][:, a] - gain @ COVARIANCE[o][:, a]
    assert torch.equal(x[:, o], stored[0, o].double().expand(len(x), -1))
    assert torch.allclose(x[:, a].mean(0), mean, atol=0.04)
    assert torch.allclose(x[:, a].T.cov().reshape(len(a), -1), covariance, atol=0.08)
    assert float(found.effective) > 5000


def test_a_category_given_a_number_and_the_other_way_round() -> None:
    """Inputs with correlation 0.8: the probabilities of both are sums over the normal's cells."""
    shares = (0.3, 0.7)
    category = Column("k", "category", values=(0.0, 1.0), shares=shares)
    encoding = Encoding((Column("y", "continuous"), category))
    model = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
    )
    exact = Estimator("exact", "exact", lambda x, key, offset: model.log_prob(x.double()))
    torch.manual_seed(0)
    pool = model.sample((5000,)).float()
    stored = torch.tensor([[0.5, NAN], [NAN, 0.0]])
    found = complete(encoding, exact, pool, stored, 20_000, 40_000, seed=2)
    normal = torch.distributions.Normal(*torch.tensor([0.0, 1.0]).double())
    edge = normal.icdf(torch.tensor(0.3).double())
    below = float(normal.cdf((edge - 0.8 * 0.5) / 0.6))
    codes = encoding.decoded(found.inputs[:, 0])[:, 1]
    assert float((codes == 0).double().mean()) == pytest.approx(below, abs=0.02)
    # The mean of a normal below an edge, times the correlation.
    mean = -0.8 * float(normal.log_prob(edge).exp()) / 0.3
    assert float(found.inputs[:, 1, 0].double().mean()) == pytest.approx(mean, abs=0.03)


def test_a_value_beside_a_mask() -> None:
    """b has correlation 0.9 with the coordinate that says that a is present, as it is here."""
    half = Column("a", "continuous", missing=True, shares=(0.5, 0.5))
    encoding = Encoding((half, Column("b", "continuous")))
    covariance = torch.eye(3).double()
    covariance[1, 2] = covariance[2, 1] = 0.9
    model = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    exact = Estimator("exact", "exact", lambda x, key, offset: model.log_prob(x.double()))
    torch.manual_seed(0)
    pool = model.sample((5000,)).float()
    found = complete(encoding, exact, pool, torch.tensor([[0.3, NAN]]), 20_000, 40_000, seed=5)
    b = found.inputs[:, 0, 1].double()
    # A normal below 0 has the mean -sqrt(2 / pi), and its square the mean 1.
    mean = -0.9 * math.sqrt(2 / math.pi)
    assert float(b.mean()) == pytest.approx(mean, abs=0.03)
    assert float(b.std()) == pytest.approx(math.sqrt(1.0 - mean**2), abs=0.03)


def test_what_is_missing_is_never_drawn_as_missing() -> None:
    category = Column("k", "category", values=(0.0, 1.0), shares=(0.2, 0.3, 0.5), missing=True)
    encoding = Encoding((Column("y", "continuous"), category))
    exact = Estimator("exact", "exact", lambda x, key, offset: -0.5 * x.double().square().sum(1))
    torch.manual_seed(0)
    stored = torch.tensor([[0.5, NAN]])
    found = complete(encoding, exact, torch.randn(5000, 2), stored, 20_000, 40_000, seed=6)
    codes = encoding.decoded(found.inputs[:, 0])[:, 1]
    assert not bool(codes.isnan().any())
    assert float(codes.mean()) == pytest.approx(0.6, abs=0.02)


def test_rows_have_the_density_given_their_own_conditions() -> None:
    """The mean of the model is that of the row's condition: 0, and 3 in each coordinate."""
    candidates, own = 20_000, torch.tensor([[0.0], [3.0]])

    def log_prob(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
        rows = (torch.arange(len(x)) + offset) // candidates
        return MODEL.log_prob(x.double() - own[rows])

    torch.manual_seed(0)
    of_pool = own.repeat(5000, 1)
    pool = (MODEL.sample((10_000,)) + of_pool).float()
    stored = torch.tensor([[NAN, NAN, NAN], [3.5, NAN, NAN]])
    found = complete(
        LINEAR, Estimator("exact", "exact", log_prob), pool, stored, 5000, candidates, seed=1,
        given=(of_pool, own),
    )  # fmt: skip
    x = found.inputs.double()
    assert torch.allclose(x[:, 0].mean(0), MEAN, atol=0.08)
    # 3.5 is the mean of the first coordinate.
    assert torch.allclose(x[:, 1].mean(0), MEAN + 3, atol=0.08)
    # The proposals are near the samples with the row's own condition.
    assert float(found.effective.min()) > 2000


def test_rows_without_a_finite_density_are_named() -> None:
    nowhere = Estimator("exact", "exact", lambda x, key, offset: x.double().sum(1) * math.inf)
    with pytest.raises(ValueError, match=r"a finite density, row 1 .counted from 0.* has none"):
        complete(LINEAR, _after_one(nowhere), _pool(), GAPS, 2, 64, seed=0)


GAPS = torch.tensor([[1.2, NAN, 0.7], [NAN, 0.3, NAN]])


def _after_one(estimator: Estimator) -> Estimator:
    """Returns an estimator that has no finite densities after the first row's 64."""

    def log_prob(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
        return torch.cat([_log_prob(x[:64], key, 0), estimator.log_prob(x[64:], key, 0)])

    return Estimator("exact", "exact", log_prob)


def test_noise_of_a_row_depends_on_its_index_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffflow_ext.training.evaluation import imputation

    stored = torch.tensor([[1.2, NAN, 0.7], [NAN, 0.3, NAN], [0.1, 0.2, 0.3]])
    whole = complete(LINEAR, EXACT, _pool(), stored, 5, 64, seed=3)
    monkeypatch.setattr(imputation, "AT_A_TIME", 64)
    again = complete(LINEAR, EXACT, _pool(), stored, 5, 64, seed=3)
    assert torch.allclose(whole.inputs, again.inputs)
    assert torch.equal(whole.inputs[:, 2], stored[2].expand(5, 3))
    assert not torch.equal(whole.inputs, complete(LINEAR, EXACT, _pool(), stored, 5, 64, 4).inputs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    pytest.importorskip("zuko")
    folder: Path = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(4)
    n = 4000
    first = rng.normal(5.0, 2.0, n)
    frame = pd.DataFrame(
        {
            "a": first,
            "b": 0.5 * first + rng.normal(size=n),
            "word": np.where(first + rng.normal(size=n) > 5.0, "high", "low"),
        }
    )
    values: dict[str, Any] = {
        "steps": 200, "batch_size": 256, "threads": 1, "warmup": 20, "flow_transforms": 2,
        "flow_hidden": "16", "learning_rate": 5e-3,
    }  # fmt: skip
    train(configure("flow", **values), folder / "run", data=frame, progress=False)
    return load_run(folder / "run")


def test_a_trained_run_fills_frames(run: LoadedRun) -> None:
    rows = pd.DataFrame(
        {"word": [None, "low", "high"], "a": [8.0, np.nan, 6.0], "b": [4.0, 2.0, 3.0]}
    )
    filled = run.impute(rows, 200, seed=1)
    assert len(filled) == 200
    assert all([*frame.columns] == ["a", "b", "word"] for frame in filled)
    joined = pd.concat(filled)
    assert not joined.isna().any(axis=None)
    words = joined.loc[0, "word"]
    assert (words == "high").mean() > 0.9
    # a given b = 2: the mean of the regression is about 4.5, and lower words make it less.
    assert 3.0 < joined.loc[1, "a"].mean() < 4.6
    # What was there is as it was, also beyond the values of the data.
    assert (joined.loc[2, "a"] == 6.0).all()
    assert (joined.loc[0, "b"] == 4.0).all()
    assert (joined.loc[2, "word"] == "high").all()
    named = run.impute(rows.set_axis(["x", "y", "z"]), 2, seed=1)
    assert [*named[1].index] == ["x", "y", "z"]
    whole = rows.iloc[2:]
    assert run.impute(whole)[0].equals(whole[["a", "b", "word"]])
    again = run.impute(rows, 200, seed=1)
    assert all(one.equals(other) for one, other in zip(filled, again, strict=True))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"a": [1.0], "b": [2.0]}, {}, "which has no 'word'"),
        (
            {"a": [1.0], "b": [2.0], "word": ["middle"]},
            {},
            "impute: expected one of 'high'",
        ),
        ({"a": [np.inf], "b": [2.0], "word": ["low"]}, {}, "got inf in row 0"),
        ({"a": ["x"], "b": [2.0], "word": ["low"]}, {}, "expected numbers in the column 'a'"),
        ({"a": [1.0], "b": [2.0], "word": ["low"]}, {"n": 0}, "n=0"),
        ({"a": [1.0], "b": [2.0], "word": ["low"]}, {"candidates": 1}, "candidates=1"),
    ],
)
def test_what_does_not_suit(
    run: LoadedRun, rows: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run.impute(pd.DataFrame(rows), **options)


def test_few_candidates_are_said(run: LoadedRun) -> None:
    rows = pd.DataFrame({"a": [30.0], "b": [np.nan], "word": ["low"]})
    with (
        pytest.warns(UserWarning, match="in 1 of 1 rows fewer than 5 candidates count"),
        pytest.warns(UserWarning, match=r"^impute: a=30: far outside of the values of training"),
    ):
        run.impute(rows, 2, candidates=3)
