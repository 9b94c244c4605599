"""Pictures: they are written, show what they were given in its colours, and refuse bad input."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the plot extra")

from matplotlib import image
from matplotlib.figure import Figure

from diffflow_ext import figures
from diffflow_ext.figures import (
    Axis,
    loss_curve,
    panels,
    samples_beside_data,
    save,
)
from diffflow_ext.figures.panels import turns

RNG = np.random.default_rng(0)
CLOUD = RNG.normal(size=(800, 2))


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(image.imread(path))[:, :, :3]


def _near(picture: np.ndarray, colour: str, within: float = 0.08) -> np.ndarray:
    target = np.array([int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5)])
    return np.abs(picture - target).max(axis=2) < within


def test_two_dimensions_side_by_side(tmp_path: Path) -> None:
    path = save(samples_beside_data(CLOUD, CLOUD + 0.0, "title"), tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    picture = _rgb(path)
    assert picture.shape[:2] == (780, 1350)
    data, samples = _near(picture, panels.BLUE), _near(picture, panels.ORANGE)
    middle = picture.shape[1] // 2
    assert data[:, :middle].sum() > 500
    assert not data[:, middle:].any()
    assert samples[:, middle:].sum() > 500
    assert not samples[:, :middle].any()
    # The same points on the same axes make the same pattern, moved sideways.
    left, right = (np.flatnonzero(mask.any(axis=0)) for mask in (data, samples))
    assert abs((left[-1] - left[0]) - (right[-1] - right[0])) <= 2
    up, down = (np.flatnonzero(mask.any(axis=1)) for mask in (data, samples))
    assert abs(up[0] - down[0]) <= 1
    assert abs(up[-1] - down[-1]) <= 1


def test_rings_stay_round(tmp_path: Path) -> None:
    angle = np.linspace(0.0, 2.0 * np.pi, 3_000)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    wide = np.concatenate([ring, ring + np.array([4.0, 0.0])])
    picture = _rgb(save(samples_beside_data(wide, wide, "rings"), tmp_path / "a.png"))
    mask = _near(picture, panels.BLUE)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    assert (columns[-1] - columns[0]) / (rows[-1] - rows[0]) == pytest.approx(3.0, rel=0.05)


def test_what_a_picture_leaves_out_is_said() -> None:
    titles: list[str] = []
    for dim in (2, 5, 10):
        rows = RNG.normal(size=(90, dim))
        titles.append(samples_beside_data(rows, rows, "title").get_suptitle())
    assert titles == ["title", "title", "title, first 5 of 10 columns"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [([1, 2, 3], "each step"), ([10, 20, 30, 33], "one step in 10"), ([7], "each step")],
)
def test_the_legend_says_which_steps_are_drawn(steps: list[int], said: str) -> None:
    legend = loss_curve(steps, [1.0] * len(steps)).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        said,
        *["smoothed"] * (len(steps) > 40),
    ]


@pytest.mark.parametrize("dim", [1, 3, 7])
def test_other_dimensions_make_a_corner(tmp_path: Path, dim: int) -> None:
    data, samples = RNG.normal(size=(900, dim)), RNG.normal(0.5, 1.0, size=(700, dim))
    names = [f"column {i}" for i in range(dim)]
    picture = _rgb(
        save(samples_beside_data(data, samples, "t", columns=names), tmp_path / "a.png")
    )
    assert picture.shape[1] == pytest.approx(150 * (1.9 * min(max(dim, 2), 5) + 0.5), abs=1.0)
    assert _near(picture, panels.ORANGE).sum() > 200
    if dim > 1:
        height, width = picture.shape[:2]
        corner = picture[int(0.42 * height) : int(0.6 * height), int(0.82 * width) :]
        assert np.all(corner > 0.99), "above the diagonal the paper is white"


def test_nearly_constant_and_outlying_columns(tmp_path: Path) -> None:
    data = np.column_stack([np.full(50, 3.0), RNG.normal(size=50), RNG.normal(size=50)])
    samples = data * 1.0
    samples[0] = [1e9, -1e9, 1e9]
    assert save(samples_beside_data(data, samples, "odd"), tmp_path / "a.png").exists()
    assert save(
        samples_beside_data(data[:, :2], samples[:, :2], "odd"), tmp_path / "b.png"
    ).exists()


def test_loss_curve(tmp_path: Path) -> None:
    steps = np.arange(500)
    losses = 2.0 + np.exp(-steps / 50) + 0.1 * RNG.normal(size=500)
    losses[0], losses[250] = 1e6, np.nan
    picture = _rgb(save(loss_curve(steps, losses), tmp_path / "l.png"))
    smooth = _near(picture, panels.BLUE)
    # The spike does not press the rest of the curve flat: it falls over half of the height.
    rows = np.flatnonzero(smooth[:, 120:-120].any(axis=1)) / len(picture)
    assert np.ptp(rows) > 0.4
    assert save(loss_curve([7], [3.0]), tmp_path / "one.png").exists()


def test_a_curve_has_a_level_and_marks() -> None:
    figure = loss_curve(
        [10, 20, 30], [3.0, 2.0, 1.0], label="bound [nats]", level=("Gaussian", 5.25),
        marks=[(0, "N = 1"), (15, "N = 3")],
    )  # fmt: skip
    panel = figure.axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("training step", "bound [nats]")
    low, high = panel.get_ylim()
    assert low < 1.0 < 5.25 < high
    assert [text.get_text() for text in panel.texts] == ["N = 1", "N = 3"]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in panel.lines}
    assert (lines["Gaussian: 5.25"] == 5.25).all()
    assert {float(line.get_xdata()[0]) for line in panel.lines[-2:]} == {0.0, 15.0}


def test_the_mean_of_a_curve_does_not_reach_across_a_change() -> None:
    raw = np.where(np.arange(1, 201) < 120, 5.0, 3.0)
    figure = loss_curve(np.arange(1, 201), raw, marks=[(120, "N = 9")])
    (mean,) = (line for line in figure.axes[0].lines if line.get_label() == "smoothed")
    assert np.array_equal(np.asarray(mean.get_ydata()), raw)


@pytest.mark.parametrize(("rows", "bins"), [(40, 8), (400, 20), (30_000, 60)])
def test_few_values_have_wide_bins(rows: int, bins: int) -> None:
    points = np.random.default_rng(0).normal(size=(rows, 3))
    figure = samples_beside_data(points, points, "title")
    assert len(figure.axes[0].patches[0].get_data().edges) == bins + 1


def test_colours_go_around_whatever_the_units() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 2)) * [25.0, 0.1]
    shares = np.histogram(turns(points), 8, (0.0, 1.0))[0] / 4000
    assert (np.abs(shares - 1 / 8) < 0.03).all()


def test_a_noisy_curve_is_smoothed() -> None:
    noise = RNG.normal(size=400)
    raw, smooth = loss_curve(np.arange(400), noise).axes[0].lines
    assert raw.get_alpha() == pytest.approx(0.28)
    inner = np.asarray(smooth.get_ydata())[20:-20]
    # A window of 25 averages independent noise to a fifth of it.
    assert inner.std() == pytest.approx(noise.std() / 5.0, rel=0.35)


FRUIT = (
    Axis("kind", step=1.0, labels=("apple", "pear")),
    Axis("weight", "log"),
    Axis("age", gaps=True),
)


def _table(n: int) -> np.ndarray:
    age = np.where(RNG.random(n) < 0.25, np.nan, RNG.normal(40.0, 9.0, n))
    return np.column_stack([RNG.integers(0, 2, n), np.exp(RNG.normal(4.0, 1.0, n)), age])


def test_axes_have_the_units_of_the_data() -> None:
    data, samples = _table(400), _table(300)
    figure = samples_beside_data(data, samples, "fruit", columns=FRUIT)
    grid = np.array(figure.axes).reshape(3, 3)
    assert [panel.get_xlabel() for panel in grid[2]] == ["kind", "weight\n(log scale)", "age"]
    assert [text.get_text() for text in grid[2, 0].get_xticklabels()] == ["apple", "pear"]
    numbers = [float(text.get_text()) for text in grid[2, 1].get_xticklabels()]
    assert np.allclose(np.log(numbers), grid[2, 1].get_xticks())
    low, high = grid[2, 2].get_xlim()
    assert 0.0 < low < 40.0 < high < 90.0
    (missing,) = (text.get_text() for text in grid[2, 2].texts)
    shares = [100.0 * np.isnan(rows[:, 2]).mean() for rows in (data, samples)]
    assert missing == f"missing: data {shares[0]:.2g} %,\nsamples {shares[1]:.2g} %"


def test_samples_stand_beside_data_in_the_cell_of_a_category() -> None:
    data, samples = _table(200), _table(200)
    figure = samples_beside_data(data, samples, "fruit", columns=FRUIT)
    blue, orange = np.array(figure.axes).reshape(3, 3)[2, 0].collections
    for dots, rows, side in ((blue, data, -1.0), (orange, samples, 1.0)):
        known = rows[~np.isnan(rows[:, 2])]
        drawn = np.asarray(dots.get_offsets())
        known = known[: len(drawn)]
        assert np.allclose(drawn[:, 1], known[:, 2])
        away = side * (drawn[:, 0] - known[:, 0])
        assert 0.0 < away.min() < away.max() < 0.5


def test_two_columns_with_gaps_and_words() -> None:
    data, samples = _table(400)[:, [0, 2]], _table(300)[:, [0, 2]]
    figure = samples_beside_data(data, samples, "fruit", columns=[FRUIT[0], FRUIT[2]])
    known = min((~np.isnan(rows[:, 1])).sum() for rows in (data, samples))
    for panel, rows in zip(figure.axes, (data, samples), strict=True):
        assert f"{known} points" in panel.get_title()
        assert panel.get_ylabel() == f"age (missing: {100 * np.isnan(rows[:, 1]).mean():.3g} %)"
        assert [text.get_text() for text in panel.get_xticklabels()] == ["apple", "pear"]
    nothing = np.full((5, 2), np.nan)
    nothing[:, 0] = 1.0
    samples_beside_data(nothing, nothing, "none", columns=[FRUIT[0], FRUIT[2]])
    with pytest.raises(ValueError, match="expected finite data, 5 of 10"):
        samples_beside_data(nothing, nothing, "none", columns=["kind", "age"])


def test_units_differ_where_ranges_do() -> None:
    """Those of like columns have the same length, so that shapes keep their proportions."""
    for scale, equal in ((1.0, True), (1000.0, False)):
        points = CLOUD * [1.0, scale]
        panel = samples_beside_data(points, points, "t").axes[0]
        lengths = [np.ptp(panel.get_xlim()), np.ptp(panel.get_ylim())]
        assert np.isclose(*lengths) == equal
        assert lengths[1] == pytest.approx(6.0 * scale, rel=0.4)


def test_a_picture_that_is_not_finished_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(loss_curve([1, 2], [3.0, 2.0]), tmp_path / "a.png")
    before = file.read_bytes()

    def stopped(self: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"the beginning")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stopped)
    with pytest.raises(KeyboardInterrupt):
        save(loss_curve([1, 2], [9.0, 2.0]), file)
    assert file.read_bytes() == before
    assert [*tmp_path.iterdir()] == [file]


def test_mass_levels_of_a_gaussian() -> None:
    """In two dimensions the set that holds the mass m is where p > (1 - m) p(0)."""
    axis = np.linspace(-6.0, 6.0, 401)
    density = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2))
    assert np.allclose(panels._mass_levels(density, (0.9, 0.5)), [0.1, 0.5], atol=0.003)


def test_no_window_and_no_global_state(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib\n"
        # Through dict, or reading the backend would itself import pyplot.
        "before = dict(dict.items(matplotlib.rcParams))\n"
        "from diffflow_ext.figures import loss_curve, save\n"
        f"save(loss_curve([1, 2], [3.0, 2.0]), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(dict.items(matplotlib.rcParams)) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_notebook_shows_the_file(tmp_path: Path) -> None:
    """By a method of IPython, because no figure here is known to pyplot."""
    figure = samples_beside_data(CLOUD, CLOUD, "title")
    shown = figure._repr_png_()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown == save(figure, tmp_path / "a.png").read_bytes()
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == shown
    assert isinstance(figure, Figure)


def test_matplotlib_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'diffflow_ext\[plot\]'"):
        loss_curve([1, 2], [3.0, 2.0])


def test_bad_targets(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"save: expected the folder .*make it first"):
        save(loss_curve([1], [1.0]), tmp_path / "no" / "a.png")
    with pytest.raises(ValueError, match=r"save: expected a path ending in \.png"):
        save(loss_curve([1], [1.0]), tmp_path / "a.jpeg")


def test_bad_arrays() -> None:
    with pytest.raises(ValueError, match=r"as many columns, got shapes \(800, 2\) and \(800, 1\)"):
        samples_beside_data(CLOUD, CLOUD[:, :1], "t")
    bad = CLOUD.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="samples_beside_data: expected finite samples, 1 of"):
        samples_beside_data(CLOUD, bad, "t")
    with pytest.raises(ValueError, match="expected 2 column names, got 1"):
        samples_beside_data(CLOUD, CLOUD, "t", columns=["a"])
    with pytest.raises(ValueError, match="data with 2 axes"):
        samples_beside_data(CLOUD[0], CLOUD, "t")
    with pytest.raises(ValueError, match=r"losses of shape \(2,\)"):
        loss_curve([1, 2], [1.0])
    with pytest.raises(ValueError, match="0 finite"):
        loss_curve([1, 2], [np.nan, np.inf])
    assert figures.SUFFIXES[0] == ".png"


def test_dollars_in_names_are_no_formulas(tmp_path: Path) -> None:
    names = ["a$\\x", "b$"]
    save(samples_beside_data(CLOUD, CLOUD, "$x^2$", columns=names), tmp_path / "a.png")
    three = np.column_stack([CLOUD, CLOUD[:, 0]])
    save(samples_beside_data(three, three, "c", columns=[*names, "c"]), tmp_path / "b.png")
