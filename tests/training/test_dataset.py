"""What a run reads: the words about it, and the options that reach the reader."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffflow_ext.training import configure
from diffflow_ext.training.store.dataset import DatasetRecord, describe_data, open_data

RNG = np.random.default_rng(0)


def test_all_that_was_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = np.column_stack([RNG.normal(size=(300, 2)), RNG.integers(0, 2, 300)])
    lines = [f"{i},{x},{y},{int(flag)},word" for i, (x, y, flag) in enumerate(rows)]
    path.write_text("# mine\n,length,width,flag,kind\n" + "\n".join(lines))
    config = configure(data=str(path), drop_columns="kind", limit=100)
    data = open_data(config)
    assert describe_data(data) == [
        "t.csv: 160 rows, 3 columns: length, width, flag",
        "split: 100 training, 30 validation, 30 test",
        "kinds: continuous: length, width; category: flag (2)",
        "left out: 1 comment line; the first column (an index without a name); kind (by "
        "drop_columns)",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_data(config, warn=False).fingerprint == data.fingerprint


def test_many_columns_and_other_sets(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", RNG.normal(size=(50, 1000)))
    lines = describe_data(open_data(configure(data=str(tmp_path / "t.npy"))))
    assert lines[0].endswith("1000 columns: x1, x2, x3, x4, x5, x6, x7, x8 and 992 more")
    assert lines[1:] == ["split: 40 training, 5 validation, 5 test", "kinds: all continuous"]
    assert describe_data(open_data(configure(data="moons"))) == [
        "moons: 230,000 rows, 2 columns: x1, x2",
        "split: 200,000 training, 10,000 validation, 20,000 test",
        "kinds: all continuous",
    ]
    images = RNG.integers(0, 256, (40, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", a=images, b=images[:20], labels=np.arange(40))
    assert describe_data(open_data(configure(data=str(tmp_path / "i.npz"), key="b"))) == [
        "i.npz: 20 images of 1 x 5 x 6",
        "split: 16 training, 2 validation, 2 test",
        "left out: the arrays a, labels",
    ]


def test_kinds_of_columns_may_be_a_mapping(tmp_path: Path) -> None:
    """As in the table [columns] of a file, and the same as the text of the flag."""
    kinds = {"*": "continuous", "a, b": "bounded -9 9", "n": "drop"}
    config = configure(columns=kinds)
    assert config == configure(columns='continuous,"a, b=bounded -9 9",n=drop')
    assert config == configure().replaced(columns=kinds)
    assert configure(columns={}) == configure()
    rows = pd.DataFrame(RNG.normal(size=(50, 3)).round(1), columns=["a, b", "n", "c"])
    encoding = open_data(config, rows).encoding
    assert encoding is not None
    found = {column.name: column.kind for column in encoding.columns}
    assert found == {"a, b": "bounded", "c": "continuous"}
    with pytest.raises(ValueError, match=r"columns: expected a kind: continuous, .*got 'whole'"):
        configure(columns={"a": "whole"})


def test_runs_of_versions_without_ranges_go_on() -> None:
    """Their records have no smallest and largest value of continuous columns."""
    rows = pd.DataFrame({"a": RNG.normal(size=90), "b": np.exp(RNG.normal(0, 3, 90))})
    data = open_data(configure(columns="continuous,b=heavy"), rows)
    record = DatasetRecord.of(data)
    meta = record.to_meta()
    assert [column["low"] < column["high"] for column in meta["columns"]] == [True, True]
    for column in meta["columns"]:
        column["low"] = column["high"] = 0.0
    DatasetRecord.from_meta(meta).require(data)
    meta["columns"][0]["mean"] += 1.0
    with pytest.raises(ValueError, match="its values have changed"):
        DatasetRecord.from_meta(meta).require(data)
