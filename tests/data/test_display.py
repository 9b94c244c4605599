"""Data in a line and in HTML: short whatever they hold, and with escaped texts."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.data.dataset import given_labels, split_images
from diffflow_ext.data.display import title_of

RNG = np.random.default_rng(0)
EVIL = "<script>alert('&')</script>"


class Cells(HTMLParser):
    """Collects the cells of tables; fails at any other element than those of a table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.title = ""
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("div", "p", "b", "table", "tr", "td", "th")
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.title += data


@pytest.fixture(scope="module")
def mixed() -> Dataset:
    n = 200
    frame = pd.DataFrame(
        {
            EVIL: RNG.normal(size=n),
            "count": RNG.poisson(500, n),
            "word": RNG.choice(["a" * 1000, "<b>", "c"], n),
            "half": RNG.integers(0, 60, n) / 2,
        }
    )
    return open_dataset(frame, condition="word")


def test_a_table(mixed: Dataset) -> None:
    assert len(repr(mixed)) < 1500  # A text of a thousand letters is one of the values.
    assert repr(mixed).startswith(
        f"Dataset('rows', train 160, valid 20, test 20, columns {EVIL}, count, half, given word ("
    )
    cells = Cells(mixed._repr_html_())
    assert cells.title == "Dataset rows"
    assert ["train", "160"] in cells.rows
    head = cells.rows.index(["column", "kind", "values in training", "role"])
    (evil, count, half, word) = cells.rows[head + 1 :]
    low, high = mixed.encoding.columns[0].low, mixed.encoding.columns[0].high  # pyright: ignore
    assert evil == [EVIL, "continuous", f"from {low:.4g} to {high:.4g}", "data"]
    assert count[:2] == ["count", "integer"]
    assert half[:2] == ["half", "integer, steps of 0.5"]
    assert word == ["word", "category of 3", f"'<b>', '{'a' * 37}...', 'c'", "given"]


def test_images() -> None:
    pixels = torch.zeros(50, 3, 8, 9, dtype=torch.uint8)
    images = {"train": pixels, "train_labels": torch.arange(50) % 3}
    data = given_labels(split_images(images, name="set"))
    expected = "Dataset('set', train 40, valid 5, test 5, images 3 x 8 x 9, given label (0 to 2))"
    assert repr(data) == expected
    assert ["images", "3 x 8 x 9"] in Cells(data._repr_html_()).rows


def test_a_set_from_a_file_has_the_name_of_the_file_in_titles(tmp_path: Path) -> None:
    pd.DataFrame({"a": RNG.normal(size=60)}).to_csv(tmp_path / "fruit.csv", index=False)
    data = open_dataset(tmp_path / "fruit.csv")
    assert data.name == str(tmp_path / "fruit.csv")
    assert Cells(data._repr_html_()).title == "Dataset fruit.csv"
    titles = {"moons": "moons", "/a/pictures/": "pictures", "t.npy": "t.npy", "/": "/"}
    assert {name: title_of(name) for name in titles} == titles
    # A run may have been trained on another system.
    assert title_of(r"C:\x\clients.csv") == "clients.csv"


def test_many_columns_and_values() -> None:
    frame = pd.DataFrame(RNG.normal(size=(3000, 100)), columns=[f"c{i}" for i in range(100)])
    frame["code"] = RNG.integers(0, 900, 3000).astype(str)
    data = open_dataset(frame, columns={"code": "category"})
    column = data.encoding.columns[-1]  # pyright: ignore[reportOptionalMemberAccess]
    for one in (data, data.encoding, column):
        assert len(repr(one)) < 300
    assert repr(column).startswith("Column('code', category of ")
    text = data._repr_html_()
    assert "and 71 more columns" in text
    assert len(text) < 6000


def test_encodings_and_conditions(mixed: Dataset) -> None:
    assert repr(mixed.encoding) == (
        f"Encoding({EVIL}: continuous, count: integer, half: integer, steps of 0.5)"
    )
    assert repr(mixed.conditions).startswith("Conditions(word (one of '")
