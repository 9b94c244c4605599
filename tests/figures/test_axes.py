"""Axes: where values lie, which numbers stand at them, and cells of discrete values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="needs the plot extra")

from diffflow_ext.figures import Axis
from diffflow_ext.figures.axes import MOST_CELLS, TICKS, axes_of, round_ticks, shortened
from diffflow_ext.figures.panels import new_figure

AXES = {
    "linear": (Axis("y"), lambda y: y),
    "log": (Axis("y", "log"), math.log),
    "asinh": (Axis("y", "asinh", center=2.0, spread=3.0), lambda y: math.asinh((y - 2.0) / 3.0)),
    "logit": (Axis("y", "logit", low=-1.0, high=9.0), lambda y: math.log((y + 1) / (9 - y))),
}


@pytest.mark.parametrize("scale", AXES)
@given(y=st.floats(0.01, 8.9))
def test_places_are_those_of_the_formulas_and_back(scale: str, y: float) -> None:
    axis, formula = AXES[scale]
    place = axis.place(np.array([y, np.nan]))
    assert place[0] == pytest.approx(formula(y), rel=1e-9, abs=1e-9)
    assert axis.value(place)[0] == pytest.approx(y, rel=1e-6)
    assert np.isnan(place[1])


def test_no_value_leaves_the_axis() -> None:
    ends = np.array([-np.inf, -1.0, 0.0, 9.0, np.inf])
    for axis, _ in AXES.values():
        assert np.isfinite(axis.place(ends)).all()


@pytest.mark.parametrize("scale", ["log", "asinh", "logit"])
@given(low=st.floats(-9, 4), length=st.floats(0.05, 5))
def test_ticks_are_short_numbers_at_their_places(scale: str, low: float, length: float) -> None:
    axis, _ = AXES[scale]
    limits = (low, low + length)
    places, texts = round_ticks(axis, limits)
    assert 1 <= len(places) <= 2 * TICKS
    assert places == sorted(places)
    values = [_number(text) for text in texts]
    assert np.allclose(axis.place(np.array(values)), places, atol=1e-3 * length)
    assert all(limits[0] - 0.2 * length <= place <= limits[1] + 0.2 * length for place in places)


def _number(text: str) -> float:
    return 10.0 ** int(text[5:-2]) if text.startswith("$") else float(text)


@pytest.mark.parametrize(
    ("axis", "limits"),
    [
        (Axis("y", "asinh", center=1e12), (-3.0, 3.0)),
        (Axis("y", "log"), (math.log(1e9 + 1), math.log(1e9 + 100))),
        (Axis("y", "logit", low=1e9, high=1e9 + 1), (-4.0, 4.0)),
        (Axis("y", "logit"), (-30.0, 30.0)),
    ],
)
def test_ticks_stand_at_their_numbers_far_from_zero(
    axis: Axis, limits: tuple[float, float]
) -> None:
    places, texts = round_ticks(axis, limits)
    assert len({*texts}) == TICKS
    assert np.allclose(axis.place(np.array([*map(float, texts)])), places, rtol=1e-14)
    assert np.allclose(np.diff(places), np.diff(places)[0], rtol=0.6)


def test_ticks_of_decades_and_of_zero() -> None:
    log, _ = AXES["log"]
    assert round_ticks(log, (math.log(0.5), math.log(2e4)))[1] == [
        "1",
        "10",
        "100",
        "1000",
        "10000",
    ]
    heavy = Axis("y", "asinh", spread=10.0)
    _, texts = round_ticks(heavy, (-4.0, 4.5))
    assert "0" in texts
    assert {text.strip("-") for text in texts if text[0] == "-"} <= {*texts}


def test_cells_hold_one_value_each() -> None:
    count = Axis("n", step=2.0)
    values = np.array([4.0, 10.0, 6.0])
    assert np.array_equal(count.cells(values), [3.0, 5.0, 7.0, 9.0, 11.0])
    assert count.limits(values) == (3.0, 11.0)
    assert count.cells(np.array([0.0, 2.0 * (MOST_CELLS + 1)])) is None
    assert count.cells(np.array([np.nan])) is None
    assert Axis("y").cells(values) is None
    word = Axis("w", step=1.0, labels=("a", "b", "c"))
    assert word.limits(np.array([1.0])) == (-0.5, 2.5)


def test_values_are_spread_within_the_part_of_their_cell() -> None:
    axis, values = Axis("n", step=2.0), np.repeat([4.0, 6.0], 500)
    spread = axis.spread_out(values, 0, (0.1, 0.5)) - values
    assert 0.0 < spread.min() < spread.max() < 1.0
    assert np.ptp(spread) > 0.5
    # Two columns are not spread alike.
    other = axis.spread_out(values, 1, (0.1, 0.5)) - values
    assert abs(np.corrcoef(spread, other)[0, 1]) < 0.2
    assert np.array_equal(Axis("y").spread_out(values, 0), values)


def test_marks_of_categories() -> None:
    panel = new_figure(4.0, 3.0).subplots()
    labels, edges = ("apple", "a rather long word", "fig"), (-0.5, 1.0)
    axis = Axis("fruit", "normal", labels=labels, edges=edges)
    panel.set_xlim(-3.0, 3.0)
    axis.mark(panel.xaxis, (-3.0, 3.0))
    texts = [text.get_text() for text in panel.get_xticklabels()]
    assert texts == ["apple", "a rather long\N{HORIZONTAL ELLIPSIS}", "fig"]
    lines = sorted(line.get_xdata()[0] for line in panel.lines)
    assert lines == [-0.5, 1.0]
    below, inside, above = panel.get_xticks()
    assert below < -0.5 < inside < 1.0 < above
    assert axis.label == "fruit\n(normal quantiles)"


def test_names() -> None:
    assert shortened("abcdef", 4) == "abc\N{HORIZONTAL ELLIPSIS}"
    assert [axis.name for axis in axes_of("op", None, 2)] == ["x1", "x2"]
    assert Axis("a$b").label == r"a\$b"
    with pytest.raises(ValueError, match=r"^op: expected 3 column names, got 2"):
        axes_of("op", ["a", Axis("b")], 3)
