"""Kinds of columns: found from values, or said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from diffflow_ext.data import open_dataset, read_rows, split_table
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.formats.tables import Table, table_of
from diffflow_ext.data.kinds import columns_text, grid_step, parse_columns, parsed_kind

N = 400
RNG = np.random.default_rng(5)
#: Values, the kind that is found, and what is recorded of it.
FOUND = {
    "normal": (RNG.normal(3.0, 2.0, N), "continuous", {}),
    "large": (1e8 + RNG.normal(size=N), "continuous", {}),
    "tiny": (1e-9 * RNG.normal(size=N), "continuous", {}),
    "truth": (RNG.integers(0, 2, N), "category", {"values": (0.0, 1.0)}),
    "few": (RNG.integers(1, 6, N) / 2, "category", {"values": (0.5, 1.0, 1.5, 2.0, 2.5)}),
    "whole": (RNG.permutation(N) * 7, "integer", {"step": 7.0, "low": 0.0, "high": 7.0 * (N - 1)}),
    "prices": (RNG.integers(100, 999, N), "integer", {"step": 1.0}),
    "tenths": (np.round(RNG.normal(60.0, 1.5, N), 1), "integer", {"step": 0.1}),
    "decimals": (np.round(RNG.normal(60.0, 1.5, N), 6), "continuous", {}),
    "ids beyond float32": (RNG.integers(0, 1 << 40, N), "continuous", {}),
    "cauchy": (RNG.standard_cauchy(N), "heavy", {}),
    "lognormal": (RNG.lognormal(0.0, 2.0, N), "heavy", {}),
    "exponential": (RNG.exponential(size=N), "continuous", {}),
    "thousands": (RNG.integers(1, 5000, N) * 10_000, "integer", {"step": 10_000.0}),
    "counts": (np.floor(RNG.lognormal(3.0, 2.0, N)), "integer", {"step": 1.0}),
}


@pytest.mark.parametrize("name", FOUND)
def test_kinds_are_found(name: str) -> None:
    values, kind, more = FOUND[name]
    data = split_table(Table(values.reshape(-1, 1).astype(float), ["x"], "t"), columns={})
    assert data.encoding is not None
    (column,) = data.encoding.columns
    assert column.kind == kind
    for field, value in more.items():
        assert getattr(column, field) == pytest.approx(value)
    heavy = name in ("cauchy", "lognormal", "counts")
    assert bool(column.spread) == heavy
    if kind != "category":
        noise = torch.randn((len(data.train), 1), generator=torch.Generator().manual_seed(0))
        x = data.encoding.inputs(data.train, noise)
        assert float(x.mean()) == pytest.approx(0.0, abs=0.02)
        assert float(x.std()) == pytest.approx(1.0, abs=0.05)


CENTS = np.round(RNG.lognormal(2.0, 0.5, 4000), 2)
#: Values of a grid and its step, stored in float32.
GRIDS = {
    "cents": (CENTS, 0.01),
    "large cents": (np.round(RNG.normal(90_000.0, 1.0, 4000), 2), 0.01),
    "quarters": (np.round(120.0 * RNG.normal(size=4000)) / 4.0 + 0.05, 0.25),
    "tenths": (np.round(RNG.normal(60.0, 10.0, 4000), 1), 0.1),
    "whole": (np.round(RNG.normal(60.0, 100.0, 4000)), 1.0),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_float32_are_those_of_float64(name: str, tmp_path: Path) -> None:
    values, step = GRIDS[name]
    frame = pandas.DataFrame({"x": values, "other": RNG.normal(size=4000)})
    short = frame.astype({"x": "float32"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    read = read_rows(tmp_path / "t.csv", ["x", "other"])
    array = frame.to_numpy(np.float32)
    for source in (frame, short, array):
        encoding = open_dataset(source).encoding
        assert encoding is not None
        column = encoding.columns[0]
        assert (column.kind, column.step) == ("integer", pytest.approx(step))
        assert (column.low, column.high) == (values.min(), values.max())
        number = np.rint((values - values.min()) / step)
        tables = [table_of(rows) for rows in (frame, short, array)]
        for table in (read, *tables):
            one = Encoding((replace(column, name=table.columns[0]),))
            stored = one.stored(table.of_columns([0]))
            assert np.array_equal(stored[:, 0].numpy(), number)
        away = pandas.DataFrame({"x": (values + step / 3).astype("float32"), "other": 0.0})
        one = Encoding((replace(column, name="x"),))
        with pytest.raises(ValueError, match=f"steps of {step:g} from there"):
            one.stored(table_of(away).of_columns([0]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("center", [0.0, 1.0, 100.0, 3e4, 1e6])
def test_numbers_of_float32_are_on_no_grid_by_chance(center: float, scale: float) -> None:
    """Also where its numbers are so far apart that they are often the same."""
    values = (center + scale * RNG.normal(size=20_000)).astype(np.float32)
    step = grid_step(values.astype(float), dtype="float32")
    # Between 2^23 and 2^24 all are whole, and between 2^19 and 2^20 on a grid of 1/16.
    assert step is None


def test_categories_of_float32_have_decimal_values() -> None:
    values = RNG.choice([0.1, 0.25, 17.35], N).astype("float32")
    data = open_dataset(pandas.DataFrame({"x": values, "y": RNG.normal(size=N)}))
    assert data.encoding is not None
    assert data.encoding.columns[0].values == (0.1, 0.25, 17.35)


def test_steps_of_grids() -> None:
    assert grid_step(np.array([1.0, 2.0, 2.0, 5.0])) == 1.0
    assert grid_step(np.array([100.0, 350.0, 350.0, 600.0])) == 250.0
    assert grid_step(np.repeat([0.25, 0.5, 1.75], 3)) == pytest.approx(0.25)
    assert grid_step(np.array([0.1, 0.2, 0.4])) is None
    assert grid_step(np.array([0.1, 0.2, 0.4]), surely=True) == pytest.approx(0.1)
    assert grid_step(np.array([0.0, 2.0**24 - 1.0])) == 2.0**24 - 1.0
    assert grid_step(np.array([0.0, 1.0, 2.0**24])) is None
    assert grid_step(np.array([0.0, 1e7, 1e12])) == 1e7
    assert grid_step(np.array([3.0, 3.0])) is None


FRAME = pandas.DataFrame(
    {
        "id": np.arange(N),
        "name": [f"person {i}" for i in range(N)],
        "colour": RNG.choice(["red", "green", "blue"], N),
        "ok": RNG.integers(0, 2, N).astype(bool),
        "same": 1.0,
        "length": RNG.normal(size=N),
    }
)


def test_what_tells_nothing_of_a_row_is_left_out(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    for source in (FRAME, tmp_path / "t.csv"):
        data = open_dataset(source)
        assert data.columns == ["colour", "ok", "length"]
        assert set(data.notes) >= {
            "id (counts the rows)", "name (another text in most rows)", "same (one value alone)",
        }  # fmt: skip
        assert data.encoding is not None
        assert data.encoding.columns[0].values == ("blue", "green", "red")
        assert data.encoding.columns[1].values == ("False", "True")
        assert data.encoding.dim == 3


def test_shares_are_those_of_the_training_rows() -> None:
    data = open_dataset(FRAME[["colour", "length"]])
    assert data.encoding is not None
    column = data.encoding.columns[0]
    counts = torch.bincount(data.train[:, 0].long(), minlength=3).double() + 0.5
    assert column.shares == pytest.approx((counts / counts.sum()).tolist())


def test_a_value_of_the_test_alone_has_a_share() -> None:
    values = np.zeros(N)
    order = np.argsort(np.random.Philox(key=np.array([211007579, 0], np.uint64)).random_raw(N))
    values[order[-1]] = 1.0
    data = split_table(Table(values.reshape(-1, 1), ["x"], "t"), columns={})
    assert data.encoding is not None
    assert data.encoding.columns[0].shares[1] == pytest.approx(0.5 / (0.8 * N + 1.0))


def test_kinds_are_said() -> None:
    frame = FRAME[["length", "ok"]].assign(n=RNG.integers(0, 3, N), code=["07", "12"] * (N // 2))
    data = open_dataset(frame, columns="length=bounded -9 9, n=integer, code=category, ok=drop")
    assert data.encoding is not None
    assert [column.kind for column in data.encoding.columns] == ["bounded", "integer", "category"]
    assert "ok (by drop_columns)" in data.notes
    dated = frame[["length", "ok"]].assign(day=pandas.Timestamp("2020-01-01"))
    assert open_dataset(dated, columns="day=drop").columns == ["length", "ok"]
    with pytest.warns(UserWarning, match="with few values, each many times"):
        data = open_dataset(frame[["length", "n"]], columns="continuous")
    assert data.encoding is not None
    assert {column.kind for column in data.encoding.columns} == {"continuous"}
    mapping = open_dataset(frame[["length", "n"]], columns={"n": "heavy"}).encoding
    assert mapping is not None
    assert [column.kind for column in mapping.columns] == ["continuous", "heavy"]
    numbers = open_dataset(frame[["length", "n"]], columns="n=category").encoding
    assert numbers is not None
    assert numbers.columns[1].values == (0.0, 1.0, 2.0)
    positive = open_dataset(frame[["n"]] + 0.5, columns="positive").encoding
    assert positive is not None
    assert positive.columns[0].mean == pytest.approx(0.22, abs=0.1)  # (ln 0.5 + ln 1.5 + ln 2.5)/3
    long = pandas.DataFrame({"a": RNG.permutation(3000)})
    with pytest.raises(ValueError, match=r"2 to 1,000 values of a category, .*'a' .* has 3,000"):
        open_dataset(long, columns="category")


def test_codes_in_text_files_stay_texts_if_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,zip\n" + "".join(f"{i * i},0{i % 3}\n" for i in range(60)))
    data = open_dataset(tmp_path / "t.csv", columns={"zip": "category"})
    assert data.encoding is not None
    assert data.encoding.columns[1].values == ("00", "01", "02")


def test_missing_numbers_are_refused_or_masked(tmp_path: Path) -> None:
    frame = FRAME[["length", "ok"]].copy()
    frame.loc[::5, "length"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, tmp_path / "t.csv"):
        with pytest.raises(ValueError, match="--missing=mask"):
            open_dataset(source)
        data = open_dataset(source, missing="mask")
        assert data.encoding is not None
        assert data.encoding.coordinates == ("length", "ok", "length missing")
        assert data.event_shape == (3,)
        absent = data.train[:, 0].isnan()
        share = (float(absent.sum()) + 0.5) / (len(absent) + 1.0)
        assert data.encoding.columns[0].shares == pytest.approx((1.0 - share, share))
        assert float(data.train[:, 0][~absent].mean()) == pytest.approx(0.0, abs=1e-6)


def test_values_that_many_rows_have_among_others_are_said() -> None:
    values = RNG.normal(size=(N, 1))
    values[::5] = 0.0
    with pytest.warns(
        UserWarning, match=r"many rows have among different others .0 in 20 % of x1"
    ):
        open_dataset(values)


def test_one_hot_columns_are_categories() -> None:
    data = open_dataset(np.eye(3)[RNG.integers(0, 3, N)])
    assert data.encoding is not None
    assert [column.kind for column in data.encoding.columns] == ["category"] * 3


def test_rows_that_begin_with_a_mark_are_rows(tmp_path: Path) -> None:
    colours = RNG.choice(["#ff0000", "#00ff00", "blue"], N)
    lines = [f"{colour},{RNG.normal()}" for colour in colours]
    text = "# of mine\ncolour,x\n# all,7\n" + "\n".join(lines)
    (tmp_path / "t.csv").write_text(text)
    with pytest.warns(UserWarning, match=r"as many numbers as the rows were left out.* \(1\)"):
        data = open_dataset(tmp_path / "t.csv")
    assert len(data.train) + len(data.valid) + len(data.test) == N
    assert data.encoding is not None
    assert data.encoding.columns[0].values == ("#00ff00", "#ff0000", "blue")


def test_a_header_with_numbers_among_its_names_is_doubtful(tmp_path: Path) -> None:
    lines = [f"{'ab'[i % 2]},{RNG.normal()},{RNG.normal()}" for i in range(60)]
    (tmp_path / "t.csv").write_text("region,2019,2020\n" + "\n".join(lines))
    with pytest.warns(UserWarning, match="read as a row, though its texts .'region'. stand in no"):
        open_dataset(tmp_path / "t.csv")


def test_texts_of_kinds() -> None:
    kinds = {"a b": "integer", "c,d": "bounded 0 1", "*": "continuous", "e=f": "drop"}
    assert parse_columns(columns_text(kinds)) == kinds
    assert parse_columns("") == {}
    assert parse_columns("heavy") == {"*": "heavy"}
    for text in (
        "float",
        "bounded",
        "bounded 1 0",
        "bounded 0 nan",
        "integer 3",
        "=",
        "a=",
        "drop x",
    ):
        with pytest.raises(ValueError, match=r"expected a kind: continuous, .* got"):
            parse_columns(text)
    with pytest.raises(ValueError, match="expected kinds with commas between them"):
        parse_columns("a=integer\nb=integer")
    with pytest.raises(ValueError, match="'refuse' or 'mask', got True"):
        open_dataset(FRAME, missing=True)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"expected a kind: continuous, .*got '3'"):
        open_dataset(FRAME, columns={"a": 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected one kind for 'a', got two"):
        parse_columns("a=integer,a=heavy")
    assert parsed_kind("bounded  0   2") == "bounded 0 2"


WRONG = {
    "lenght=heavy": "got 'lenght'; did you mean 'length'",
    "colour=integer": "numbers in the column 'colour' .*to be integer, got texts; say category",
    "length=integer": "a grid in the column 'length'.*say continuous",
    "length=positive": r"row \d+ .*column 'length' .*expected a number greater than 0, got -",
    "length=bounded 0 1": "row . .*column 'length'.*between the bounds 0 and 1, got",
    "drop": "a column that varies",
}


@pytest.mark.parametrize("columns", WRONG)
def test_kinds_that_can_not_be(columns: str) -> None:
    frame = FRAME[["colour", "length"]]
    with pytest.raises(ValueError, match=WRONG[columns]):
        open_dataset(frame, columns=columns)
