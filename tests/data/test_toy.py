"""The two-dimensional sets: pure functions, right shapes, right constants."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffflow_ext.data import TOY_SETS, sample_toy, toy_entropy, toy_log_density, toy_name

NAMES = (
    "swiss-roll checkerboard circles olympic-rings moons four-rings 8-gaussians 2-spirals "
    "fractal-tree sierpinski-carpet text smile"
).split()
CLOSED = ["checkerboard", "8-gaussians", "sierpinski-carpet"]


def test_names_and_their_order() -> None:
    assert list(TOY_SETS) == NAMES
    assert all(TOY_SETS.values())


@pytest.mark.parametrize("name", NAMES)
def test_pure_function_of_name_seed_and_size(name: str) -> None:
    first = sample_toy(name, 500, 3)
    np.random.seed(0)
    sample_toy("moons", 7, 1)
    assert first.dtype == np.float32
    assert first.shape == (500, 2)
    assert np.array_equal(first, sample_toy(name, 500, 3))
    assert not np.array_equal(first, sample_toy(name, 500, 4))
    assert np.array_equal(first, sample_toy(name.replace("-", "_").upper(), 500, 3))


@pytest.mark.parametrize("name", NAMES)
def test_zero_mean_and_unit_variance(name: str) -> None:
    x = sample_toy(name, 100_000, 11).astype(np.float64)
    standard_error = x.std(axis=0) / math.sqrt(len(x))
    assert np.all(np.abs(x.mean(axis=0)) < 6.0 * standard_error)
    assert x.var(axis=0).mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_other_size_and_seed_have_one_distribution(name: str) -> None:
    small, large = sample_toy(name, 4_000, 5), sample_toy(name, 80_000, 6)
    stats = pytest.importorskip("scipy.stats")
    for axis in (0, 1):
        assert stats.ks_2samp(small[:, axis], large[:, axis]).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent_of_their_order(name: str) -> None:
    x = sample_toy(name, 20_000, 8).astype(np.float64)
    lagged = np.mean(x[1:] * x[:-1], axis=0)
    assert np.all(np.abs(lagged) < 6.0 / math.sqrt(len(x)) * x.var(axis=0))


def test_two_sets_with_one_seed_share_no_noise() -> None:
    a, b = sample_toy("circles", 5_000, 0), sample_toy("four-rings", 5_000, 0)
    assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.06


def test_checkerboard_fills_eight_cells_evenly() -> None:
    z = sample_toy("checkerboard", 80_000, 1).astype(np.float64) * math.sqrt(4.0 / 3.0)
    cells, counts = np.unique(np.floor(z).astype(int), axis=0, return_counts=True)
    assert len(cells) == 8
    assert np.all(cells.sum(axis=1) % 2 == 0)
    assert np.all(np.abs(counts - 10_000) < 500)


def test_carpet_leaves_every_middle_cell_empty() -> None:
    variance = sum(6.0 / 8.0 / 9.0**k for k in range(1, 6)) + 9.0**-5 / 12.0
    unit = sample_toy("sierpinski-carpet", 50_000, 1).astype(np.float64) * math.sqrt(variance)
    unit += 0.5
    inner = np.ones(len(unit), bool)
    for level in range(1, 4):
        position = (unit * 3.0 ** (level - 1)) % 1.0
        middle = np.all((position > 0.334) & (position < 0.666), axis=1)
        assert not np.any(middle & inner), level
    assert unit.min() > -1e-6
    assert unit.max() < 1.0 + 1e-6


@pytest.mark.parametrize(
    ("name", "centres", "radii"),
    [
        ("circles", [(0, 0), (0, 0)], [1.0, 0.5]),
        ("four-rings", [(-0.8, -0.8), (-0.8, 0.8), (0.8, -0.8), (0.8, 0.8)], [1.0] * 4),
        ("olympic-rings", [(-2.2, 0.6), (0, 0.6), (2.2, 0.6), (-1.1, -0.4), (1.1, -0.4)],
         [1.0] * 5),
    ],
)  # fmt: skip
def test_rings_are_thin_and_equally_full(
    name: str, centres: list[tuple[float, float]], radii: list[float]
) -> None:
    centre, radius = np.array(centres, float), np.array(radii)
    thin = radius**2 * (1.0 + 1e-4)
    second = np.mean(np.sum((centre - centre.mean(0)) ** 2, axis=1) + thin)
    z = sample_toy(name, 40_000, 2) * math.sqrt(second / 2.0) + centre.mean(0)
    relative = np.linalg.norm(z - centre[:, None], axis=2) / radius[:, None] - 1.0
    nearest = np.abs(relative).argmin(axis=0)
    off = relative[nearest, np.arange(len(z))]
    assert 0.007 < off.std() < 0.013
    assert np.all(np.abs(off) < 0.06)
    counts = np.bincount(nearest, minlength=len(radii))
    assert np.all(np.abs(counts - counts.mean()) < 0.06 * counts.mean())


def test_spirals_are_thin_and_even_along_the_arm() -> None:
    z = sample_toy("2-spirals", 50_000, 2).astype(np.float64)
    # On an Archimedean arm drawn with the square root, radius^2 is uniform.
    square = np.square(z).sum(1)
    edges = np.quantile(square, [0.1, 0.3, 0.5, 0.7, 0.9]) / square.max()
    assert np.allclose(edges, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.03)


def test_fractal_tree_has_the_length_of_its_levels() -> None:
    z = sample_toy("fractal-tree", 200_000, 2)
    trunk = np.mean(np.abs(z[:, 0]) < 0.02) - np.mean(np.abs(z[:, 0] - 0.2) < 0.02)
    lengths = 1.4 ** np.arange(9)
    assert trunk > 0.5 / lengths.sum()
    below_fork = np.mean(
        z[:, 1] < z[:, 1].min() + 0.9 * (np.quantile(z[:, 1], 0.02) - z[:, 1].min())
    )
    assert 0.0 < below_fork < 1.2 / lengths.sum()


@pytest.mark.parametrize("name", ["text", "smile"])
def test_drawings_leave_most_of_the_paper_white(name: str) -> None:
    x = sample_toy(name, 200_000, 0)
    counts, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=64)
    assert 0.1 < np.mean(counts > 0) < 0.5
    assert counts.max() < 12.0 * counts[counts > 0].mean()


@pytest.mark.parametrize("name", CLOSED)
def test_entropy_is_the_mean_nll_of_samples(name: str) -> None:
    log_density = toy_log_density(name, sample_toy(name, 100_000, 9))
    entropy = toy_entropy(name)
    assert log_density is not None
    assert entropy is not None
    finite = np.isfinite(log_density)
    # Rounding to float32 moves a few points of a fractal across an edge.
    assert finite.mean() > 0.9995
    error = log_density[finite].std() / math.sqrt(len(log_density))
    assert -log_density[finite].mean() == pytest.approx(entropy, abs=5.0 * error + 1e-9)


@pytest.mark.parametrize("name", ["checkerboard", "8-gaussians", "sierpinski-carpet"])
def test_density_integrates_to_one(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-3.0, 3.0, (400_000, 2))
    log_density = toy_log_density(name, x)
    assert log_density is not None
    density = np.exp(log_density)
    error = 36.0 * density.std() / math.sqrt(len(x))
    assert 36.0 * density.mean() == pytest.approx(1.0, abs=5.0 * error)


def test_known_entropies() -> None:
    assert toy_entropy("checkerboard") == pytest.approx(math.log(6.0), abs=1e-12)
    separate = math.log(8.0) + math.log(2.0 * math.pi * math.e * 0.25 / 8.25)
    # Neighbours are 6 deviations apart: the overlap costs a little.
    entropy = toy_entropy("8-gaussians")
    assert entropy is not None
    assert separate - 0.02 < entropy < separate
    assert toy_entropy("moons") is None
    assert toy_log_density("moons", np.zeros((1, 2))) is None


def test_errors_name_the_value_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"swiss-roll.*smile; got 'chekerboard'.*'checkerboard'"):
        toy_name("chekerboard")
    with pytest.raises(ValueError, match="n >= 1, got 0"):
        sample_toy("moons", 0, 0)
    with pytest.raises(ValueError, match="seed >= 0, got -1"):
        sample_toy("moons", 5, -1)
    with pytest.raises(TypeError):
        sample_toy("moons", 5.0, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(n, 2\), got \(3,\)"):
        toy_log_density("checkerboard", np.zeros(3))
