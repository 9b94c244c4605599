"""Inputs of a model from rows of a table: densities in data units, probabilities, the way back."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from diffflow_ext.data import Table
from diffflow_ext.data.column import Column
from diffflow_ext.data.encoding import Encoding

LINEAR = Column("x", "continuous", mean=3.0, std=0.5)
HEAVY = Column("x", "heavy", mean=0.3, std=1.7, center=2.0, spread=0.1)
POSITIVE = Column("x", "positive", mean=0.7, std=0.4)
BOUNDED = Column("x", "bounded", mean=-0.4, std=1.3, low=-1.0, high=5.0)
INTEGER = Column("x", "integer", mean=7.0, std=2.5, low=0.0, high=30.0, step=1.0)
GRID = Column("x", "integer", mean=1.0, std=0.4, low=-2.0, high=4.0, step=0.05)
COUNTS = replace(INTEGER, mean=0.2, std=1.1, center=5.0, spread=3.0, high=1000.0)
FEW = Column("x", "category", values=(1.0, 2.5, 4.0), shares=(0.2, 0.5, 0.3))
TEXT = Column("x", "category", values=("blue", "green", "red"), shares=(0.2, 0.5, 0.3))
GAPPED = replace(LINEAR, missing=True, shares=(0.9, 0.1))
GAPPED_FEW = replace(FEW, values=(1.0, 2.5), missing=True)
COLUMNS = {
    "linear": LINEAR, "heavy": HEAVY, "positive": POSITIVE, "bounded": BOUNDED,
    "integer": INTEGER, "grid": GRID,
    "counts": COUNTS, "few": FEW, "text": TEXT, "gapped": GAPPED, "gapped few": GAPPED_FEW,
}  # fmt: skip


def _table(column: Column, values: list[float]) -> Table:
    categories = {"x": ("red", "green", "blue")} if column.is_text else {}
    return Table(np.array(values).reshape(-1, 1), ["x"], "memory", categories=categories)


def _normal(x: Tensor) -> Tensor:
    """Returns the log-density of a model of inputs that is not the standard normal."""
    spread = torch.distributions.Normal(*torch.tensor([0.3, 1.2]).double())
    return spread.log_prob(x.double()).sum(1)


@pytest.mark.parametrize("name", ["linear", "heavy", "positive", "bounded"])
def test_densities_in_data_units_integrate_to_one(name: str) -> None:
    """The density of the model times the weight, integrated by scipy."""
    column = COLUMNS[name]
    encoding = Encoding((column,))

    def density(y: float) -> float:
        # x in float64: what is stored is rounded to float32.
        x = torch.from_numpy(column.stored(np.array([[y]])))
        weight = column.log_weight(x[:, 0], x[:, 0])
        return float((_normal(x) + weight).exp())

    ends = (column.low, column.high) if name == "bounded" else (-math.inf, math.inf)
    ends = (0.0, math.inf) if name == "positive" else ends
    near = {"linear": 3.0, "heavy": 2.0, "positive": 2.0, "bounded": 2.0}[name]
    pieces = [(ends[0], near - 1.0), (near - 1.0, near), (near, near + 1.0), (near + 1.0, ends[1])]
    total = sum(integrate.quad(density, a, b, limit=400)[0] for a, b in pieces)
    assert total == pytest.approx(1.0, abs=1e-6)
    assert not encoding.is_random


@pytest.mark.parametrize("name", ["integer", "grid", "counts"])
def test_integers_have_the_probability_of_their_cell(name: str) -> None:
    """The mean of p(x) e^w over u is the mass of the model in the cell of the integer."""
    column = COLUMNS[name]
    numbers = torch.tensor([3.0, 40.0 if name == "grid" else 8.0]).double()
    # Gauss's rule over u is exact to rounding.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, weights = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    for number in numbers:
        stored = number.expand(len(u))
        x = column.input(stored, u)
        mean = (weights * (_normal(x[:, None]) + column.log_weight(stored, x)).exp()).sum()

        def edge(y: float) -> float:
            return float(column._standardised(np.array([y]))[0])

        middle = column.low + column.step * float(number)
        low, high = edge(middle - column.step / 2), edge(middle + column.step / 2)
        model = stats.norm(0.3, 1.2)
        assert float(mean) == pytest.approx(model.cdf(high) - model.cdf(low), rel=1e-6)


@pytest.mark.parametrize("name", ["few", "text", "gapped few"])
def test_categories_have_their_share_under_a_standard_normal(name: str) -> None:
    """The bound is tight for every u, where the model of inputs is exact."""
    column = COLUMNS[name]
    for code in range(3):
        stored = torch.full((50,), float(code)).double()
        x = column.input(stored, torch.linspace(0.01, 0.99, 50).double())
        known = torch.distributions.Normal(0.0, 1.0).log_prob(x) + column.log_weight(stored, x)
        assert torch.allclose(known, torch.tensor(column.shares[code]).double().log(), atol=1e-12)


def test_bounds_of_a_small_table_lie_below_exact_probabilities() -> None:
    """Two dependent categories and a model that knows of both: all 6 probabilities by sums."""
    pair = (replace(FEW, name="a"), Column("b", "category", values=(0.0, 1.0), shares=(0.4, 0.6)))
    encoding = Encoding(pair)
    model = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), torch.tensor([[1.0, 0.7], [0.7, 1.0]]).double()
    )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((200_000, 2), generator=generator)
    ends = [stats.norm.ppf(np.cumsum([0.0, *column.shares])) for column in pair]
    exact = stats.multivariate_normal([0.0, 0.0], [[1.0, 0.7], [0.7, 1.0]])
    total = 0.0
    for a, b in itertools.product(range(3), range(2)):
        low, high = [ends[0][a], ends[1][b]], [ends[0][a + 1], ends[1][b + 1]]
        clip = [np.clip(side, -9.0, 9.0) for side in (low, high)]
        mass = float(exact.cdf(clip[1], lower_limit=clip[0]))
        stored = torch.tensor([[a, b]]).float().expand(len(noise), 2)
        x = encoding.inputs(stored, noise)
        weight = model.log_prob(x.double()) + encoding.log_weight(stored, x)
        assert float(weight.exp().mean()) == pytest.approx(mass, rel=0.02)
        assert float(weight.mean()) < math.log(mass)
        total += mass
    assert total == pytest.approx(1.0, abs=1e-4)


def test_missing_values_have_the_mass_of_their_mask() -> None:
    encoding = Encoding((GAPPED,))
    assert (encoding.dim, encoding.coordinates) == (2, ("x", "x missing"))
    stored = encoding.stored(_table(GAPPED, [3.5, math.nan]))
    assert stored[0].item() == 1.0
    assert stored[1].isnan()
    noise = torch.randn((2, 2), generator=torch.Generator().manual_seed(1))
    x = encoding.inputs(stored, noise)
    normal = torch.distributions.Normal(0.0, 1.0)
    found = normal.log_prob(x.double()).sum(1) + encoding.log_weight(stored, x)
    present = math.log(0.9) + float(normal.log_prob(torch.tensor(1.0))) - math.log(0.5)
    assert found.tolist() == pytest.approx([present, math.log(0.1)], abs=1e-6)
    back = encoding.decoded(x)
    assert back[0].item() == pytest.approx(3.5)
    assert back[1].isnan()


@pytest.mark.parametrize("name", COLUMNS)
def test_values_come_back(name: str) -> None:
    column = COLUMNS[name]
    encoding = Encoding((column,))
    values = {
        "linear": [1.0, 3.25], "heavy": [-1e6, 2.0, 40.0], "positive": [1e-9, 2.0, 1e12],
        "bounded": [-0.999, 0.0, 4.5],
        "integer": [0.0, 17.0, 30.0], "grid": [-2.0, 0.35, 3.95], "counts": [0.0, 5.0, 900.0],
        "few": [4.0, 1.0, 2.5], "text": [0.0, 1.0, 2.0], "gapped": [2.0, math.nan],
        "gapped few": [1.0, math.nan, 2.5],
    }[name]  # fmt: skip
    stored = encoding.stored(_table(column, values))
    noise = torch.randn((len(values), encoding.dim), generator=torch.Generator().manual_seed(3))
    back = encoding.decoded(encoding.inputs(stored, noise))[:, 0]
    # Red, green and blue are stored in the order of the column's values.
    known = [2.0, 1.0, 0.0] if name == "text" else values
    assert back.tolist() == pytest.approx(known, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", COLUMNS)
def test_records_go_through_json(name: str) -> None:
    encoding = Encoding((COLUMNS[name],))
    plain = json.loads(json.dumps(encoding.to_meta(), allow_nan=False))
    assert Encoding.from_meta(plain) == encoding
    with pytest.raises((TypeError, ValueError)):
        Encoding.from_meta([{**plain[0], "kind": "other"}])
    with pytest.raises((TypeError, ValueError)):
        Encoding.from_meta([{**plain[0], "mean": math.inf}])


def test_samples_stay_within_the_values_of_the_data() -> None:
    x = torch.linspace(-9.0, 9.0, 1001).double()
    for column in (INTEGER, GRID, COUNTS):
        decoded = column.decoded(x)
        assert (decoded.min(), decoded.max()) == (column.low, column.high)
        index = (decoded - column.low) / column.step
        assert torch.allclose(index, index.round(), atol=1e-9)
    assert set(FEW.decoded(x).tolist()) == {1.0, 2.5, 4.0}
    decoded = BOUNDED.decoded(x)
    assert bool(((decoded > -1.0) & (decoded < 5.0)).all())
    decoded = POSITIVE.decoded(1e3 * x)
    assert bool(((decoded > 0.0) & decoded.isfinite()).all())


@pytest.mark.parametrize(
    ("low", "step", "dtype", "decimals"),
    [
        (0.0, 1.0, "int64", 0),
        (0.2, 0.01, "float64", 2),
        (-0.0125, 0.001, "float64", 4),
        (1e9 + 0.25, 0.5, "float64", 2),
        (float(np.float32(0.2)), 0.01, "float32", 2),
        (1 / 3, 1.0, "float64", None),
        (float(np.float32(1 / 3)), 1.0, "float32", None),
    ],
)
def test_decimals_of_a_grid(low: float, step: float, dtype: str, decimals: int | None) -> None:
    assert replace(GRID, low=low, step=step, dtype=dtype).decimals == decimals


BAD = {
    "linear": (
        math.nan,
        "a value, got nan in row 1 .*, column 'x' of 'memory'; fill or",
    ),
    "heavy": (math.inf, "got inf in row 1"),
    "bounded": (5.0, "a number between -1 and 5, got 5"),
    "positive": (0.0, "a number greater than 0, got 0"),
    "integer": (2.5, "0 and steps of 1 from there, got 2.5"),
    "grid": (0.351, "steps of 0.05"),
    "counts": (math.nan, "got nan in row 1.*column had none missing"),
    "few": (3.0, "one of 1, 2.5, 4, got 3"),
    "gapped few": (4.0, "one of 1, 2.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_a_column_does_not_have(name: str) -> None:
    column, (value, said) = COLUMNS[name], BAD[name]
    good = column.low if column.step else 1.0
    with pytest.raises(ValueError, match=rf"score: expected .*{said}"):
        Encoding((column,)).stored(_table(column, [good, value]), "score")


def test_numbers_of_categories_may_have_been_float32_but_not_others() -> None:
    tenths = replace(FEW, values=(0.1, 0.2, 0.3))
    values = np.array([0.1, 0.2, 0.3], np.float32).astype(float)
    assert Encoding((tenths,)).stored(_table(tenths, values.tolist()))[:, 0].tolist() == [0, 1, 2]
    keys = replace(FEW, values=(1e8, 1e8 + 1.0, 1e8 + 9.0))
    assert Encoding((keys,)).stored(_table(keys, [1e8 + 1.0])).item() == 1.0
    for column, value in ((keys, 1e8 + 2.0), (tenths, 0.2001)):
        with pytest.raises(ValueError, match="expected one of"):
            Encoding((column,)).stored(_table(column, [value]))


def test_unknown_texts_are_named() -> None:
    table = Table(np.array([[1.0], [0.0]]), ["x"], "t.csv", categories={"x": ("pink", "red")})
    with pytest.raises(ValueError, match=r"one of 'blue', 'green', 'red', got 'pink' in row 1"):
        Encoding((TEXT,)).stored(table)
    with pytest.raises(ValueError, match="expected texts in the column 'x', got numbers"):
        Encoding((TEXT,)).stored(Table(np.array([[1.0]]), ["x"], "t.csv"))


TRUTHS = {
    "texts": ("False", "True"), "lower": ("false", "true"), "numbers": ("0", "1"),
    "floats": ("0.0", "1.0"),
}  # fmt: skip


@pytest.mark.parametrize("values", [(0.0, 1.0), ("False", "True"), ("", "false", "true")])
def test_false_and_true_are_0_and_1(values: tuple[float, ...] | tuple[str, ...]) -> None:
    column = replace(TEXT, values=values, shares=(1.0,) * len(values))
    expected = [float(len(values) - 1), float(len(values) - 2)]
    tables = [Table(np.array([[1.0], [0.0]]), ["x"], "t")]
    for name, texts in TRUTHS.items():
        if column.is_text or name in ("texts", "lower"):
            own = Table(np.array([[1.0], [0.0]]), ["x"], "t", categories={"x": texts})
            tables.append(own)
    for table in tables:
        assert Encoding((column,)).stored(table)[:, 0].tolist() == expected
    for other in (
        Table(np.array([[2.0]]), ["x"], "t"),
        Table(np.array([[0.0]]), ["x"], "t", categories={"x": ("yes",)}),
    ):
        with pytest.raises(ValueError, match=r"got (2 in row 0|'yes' in row 0|texts such as 'y)"):
            Encoding((column,)).stored(other)


def test_missing_truth_values_stay_missing() -> None:
    column = replace(TEXT, values=("", "False", "True"))
    table = Table(np.array([[math.nan], [1.0]]), ["x"], "t")
    assert Encoding((column,)).stored(table)[:, 0].tolist() == [0.0, 2.0]
    number = replace(FEW, values=(0.0, 1.0), missing=True)
    table = Table(np.array([[0.0], [1.0]]), ["x"], "t", categories={"x": ("", "true")})
    assert Encoding((number,)).stored(table)[:, 0].tolist() == [2.0, 1.0]


def test_truth_values_are_no_prices() -> None:
    table = Table(np.array([[0.0], [1.0]]), ["x"], "t", categories={"x": ("false", "true")})
    with pytest.raises(ValueError, match="expected numbers in the column 'x' of 't', got texts"):
        Encoding((LINEAR,)).stored(table)


def test_noise_far_out_stays_finite() -> None:
    for column in COLUMNS.values():
        encoding = Encoding((column,))
        stored = torch.zeros(2, 1)
        noise = torch.tensor([[-5.77], [5.77]]).expand(2, encoding.dim)
        x = encoding.inputs(stored, noise)
        assert bool(x.isfinite().all())
        assert bool(encoding.log_weight(stored, x).isfinite().all())
