"""Histograms of one number in two groups."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the plot extra")

from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from diffflow_ext.figures.histogram import histograms

RNG = np.random.default_rng(0)


def drawn(figure: Figure) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the heights and edges of each group."""
    data = [p.get_data() for p in figure.axes[0].patches if isinstance(p, StepPatch)]
    return [(np.asarray(one.values), np.asarray(one.edges)) for one in data]


def test_heights_are_densities_and_lines_are_means() -> None:
    groups = {"test data": RNG.normal(size=2000), "samples": RNG.normal(1.0, 2.0, 500)}
    figure = histograms(groups, "log p [nats]")
    axes = figure.axes[0]
    inside = 0
    for (heights, edges), some in zip(drawn(figure), groups.values(), strict=True):
        expected, _ = np.histogram(some, edges)
        assert heights * np.diff(edges) * len(some) == pytest.approx(expected)
        inside += expected.sum()
    assert 0.99 * 2500 - 2 <= inside < 2500
    assert axes.get_xlabel() == "log p [nats]"
    means = [np.asarray(line.get_xdata())[0] for line in axes.lines]
    assert means == pytest.approx([some.mean() for some in groups.values()])
    legend = axes.get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert said == [f"{name}: mean {some.mean():.4g}" for name, some in groups.items()]


def test_the_mean_is_on_the_axis_where_one_value_is_far_out() -> None:
    values = np.append(RNG.normal(size=999), -1e6)
    low, high = histograms({"a": values}, "x").axes[0].get_xlim()
    assert low < values.mean() < high


def test_equal_values_and_few() -> None:
    ((heights, edges),) = drawn(histograms({"a": [2.0, 2.0]}, "x"))
    assert edges[0] < 2.0 < edges[-1]
    assert (heights * np.diff(edges)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "expected one group or two, got 0"),
        ({"a": [1.0], "b": [1.0], "c": [1.0]}, "expected one group or two, got 3"),
        ({"a": [np.inf]}, "expected finite group 'a'"),
        ({"a": []}, "expected group 'a' with 1 axes and at least one value"),
    ],
)
def test_refused(values: dict[str, list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^histograms: {said}"):
        histograms(values, "x")
