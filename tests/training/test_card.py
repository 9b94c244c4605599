"""Model cards: the header as the Hub reads it, and texts of others that stay texts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from diffflow_ext.data.column import Column
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.training import DatasetRecord, configure, format_table
from diffflow_ext.training.config.fields import CONFIGS
from diffflow_ext.training.evaluation.card import model_card

NUMBERS: dict[str, Any] = {
    "package": "0.1.0", "data": "points", "model": "diffflow", "step": 7, "seed": 0, "n": 100,
    "num_steps": 5, "sampler": {}, "estimators": {"bound": "bound", "ode": "ODE"},
    "gaussian_nll": 2.5, "bound": 2.0, "bound_error": 0.1, "bound_n": 100, "bound_median": 2.0,
    "bound_data_units": 2.0, "bound_minus_gaussian": -0.5, "ode": None, "ode_error": None,
    "ode_n": 100, "ode_data_units": None, "ode_minus_gaussian": None, "entropy": None,
    "energy_distance": 0.5, "energy_distance_floor": 0.25, "energy_distance_floor_spread": None,
    "energy_distance_ratio": 2.0,
}  # fmt: skip


def record(*columns: Column, name: str = "points") -> DatasetRecord:
    return DatasetRecord(name, Encoding(columns), "hash", (len(columns),))


POINTS = record(Column("x", "continuous"), Column("y", "continuous", low=-1.0, high=2.0))


def test_the_header_is_what_the_hub_reads() -> None:
    ModelCard = pytest.importorskip("huggingface_hub").ModelCard
    card = ModelCard(model_card(configure(), POINTS, 7, 99, license="cc-by-4.0"))
    assert (card.data.library_name, card.data.license) == ("diffflow_ext", "cc-by-4.0")
    assert {"diffflow_ext", "diffflow", "tabular"} <= {*card.data.tags}
    assert card.text.strip().startswith("# DiffFlow of points\n")
    plain = ModelCard(model_card(configure("ddpm"), POINTS, 7, 99))
    assert plain.data.license is None
    assert "ddpm" in plain.data.tags


@pytest.mark.parametrize("license", ["", "MIT", "mit\ntags: [x]", "all rights", 3, "-mit"])
def test_a_license_is_an_identifier(license: Any) -> None:
    with pytest.raises(ValueError, match=r"license=.*: expected an identifier such as 'mit'"):
        model_card(configure(), POINTS, 7, 99, license=license)


@pytest.mark.parametrize("model", CONFIGS)
def test_what_was_trained_and_how(model: str) -> None:
    text = model_card(configure(model, steps=7), POINTS, 7, 1234, description="Ours, *all*.")
    assert "\n\nOurs, *all*.\n\n" in text
    assert "Trained for 7 steps; its 1,234 numbers" in " ".join(text.split())
    assert f'name = "{model}"' in text
    assert "It has not been evaluated." in text
    assert "| y | continuous | from -1 to 2 |" in text


def test_numbers_are_those_of_the_evaluation() -> None:
    """Also those that weren't finite, which JSON has as null."""
    text = model_card(configure(), POINTS, 7, 99, NUMBERS)
    finite = {**NUMBERS, **dict.fromkeys([n for n in NUMBERS if n.startswith("ode")], math.nan)}
    assert format_table({**finite, "ode_n": 100}) in text
    assert "nan ± nan" in text
    assert "2.0000 ± 0.1000" in text
    assert "It has not been evaluated." not in text


def test_texts_of_the_data_are_no_markdown() -> None:
    kinds = ("<script>alert(1)</script>", "a | b", "```\n# title", "[x](http://y)", "*", "\n---\n")
    name = "![x](y)\n# other"
    columns = [Column(kind, "continuous") for kind in kinds]
    columns += [Column("c", "category", values=("`", "|"), shares=(0.5, 0.5))]
    config = configure(columns={"```": "integer", "a```": "integer"})
    text = model_card(config, record(*columns, name=name), 7, 99)
    assert "<script>" not in text
    assert "\n# other" not in text
    assert "\n# title" not in text
    assert "](http" not in text.replace("](https://arxiv.org", "").replace("\\](", "")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(columns)
    assert all(line.replace("\\|", "").count("|") == 4 for line in rows)
    (fence,) = {line for line in text.splitlines() if line.strip("`") == "toml"}
    assert len(fence) > len("```toml")


def test_a_table_of_texts_is_drawn_as_a_frame() -> None:
    texts = record(Column("kind", "category", values=("a", "b"), shares=(0.5, 0.5)))
    for data, draw, file in ((texts, "sample_frame", "csv"), (POINTS, "sample", "npy")):
        text = model_card(configure(), data, 7, 99)
        assert f"run.{draw}(1000)" in text
        assert f"--out samples.{file}`" in text


@pytest.mark.parametrize(
    ("column", "has_ends"),
    [
        (Column("x", "continuous"), False),
        (Column("x", "continuous", low=-1.0, high=2.0), True),
        (Column("x", "category", values=(1.0, 2.0), shares=(0.5, 0.5)), False),
    ],
)
def test_what_files_give_away_is_what_they_hold(column: Column, has_ends: bool) -> None:
    text = " ".join(model_card(configure(), record(column), 7, 99).split())
    assert "They do hold their name and shape;" in text
    assert ("the smallest and the largest value in training;" in text) is has_ends


def test_of_many_columns_the_first_are_listed() -> None:
    many = record(*(Column(f"c{i}", "continuous") for i in range(1000)))
    text = model_card(configure(), many, 7, 99)
    assert "points: 1,000 columns." in text
    assert "and 970 more columns" in text
