"""Pictures of images and measures: every pixel is where it belongs, bad input is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="needs the plot extra")

from matplotlib import image

from diffflow_ext.figures import image_grid, image_rows, metric_curves, panels, save
from diffflow_ext.figures import images as figures_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 200, size=(12, 1, 8, 6)).astype(np.uint8)
COLOUR = RNG.integers(0, 200, size=(5, 3, 8, 8)).astype(np.uint8)
CURVES = {"one": [(10, 5.0), (100, 2.0), (1000, 1.0)], "two": [(100, 3.0), (10, 9.0)]}


def _levels(path: Path) -> np.ndarray:
    return np.round(255.0 * np.asarray(image.imread(path))[:, :, :3]).astype(int)


def _near(picture: np.ndarray, colour: str, within: int = 20) -> np.ndarray:
    target = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.abs(picture - target).max(axis=2) < within


def _paper(rows: list[np.ndarray]) -> np.ndarray:
    """The montage in plain loops: images by rows, two white pixels apart."""
    height, width = rows[0].shape[2:]
    across = max(map(len, rows))
    paper = np.full((len(rows) * (height + 2) - 2, across * (width + 2) - 2, 3), 255)
    for i, row in enumerate(rows):
        for j, one in enumerate(row):
            for y in range(height):
                for x in range(width):
                    paper[i * (height + 2) + y, j * (width + 2) + x] = one[:, y, x]
    return paper


def _shown(picture: np.ndarray, zoom: int, paper: np.ndarray) -> np.ndarray:
    """The part of a picture, to its lower edge, where an enlarged montage of this size lies."""
    height, width = zoom * paper.shape[0], zoom * paper.shape[1]
    bottom = picture.shape[0] - round(figures_images.MARGIN_INCHES * panels.DPI)
    inked = np.flatnonzero((picture[bottom - height : bottom] < 255).any(axis=(0, 2)))
    start = inked[-1] + 1 - width
    return picture[bottom - height : bottom, start : start + width]


@pytest.mark.parametrize(("count", "wide"), [(12, 4), (9, 3), (1, 1)])
def test_grid_shows_every_pixel(tmp_path: Path, count: int, wide: int) -> None:
    images = GREY[:count]
    path = save(image_grid(images, "title"), tmp_path / "a.png")
    paper = _paper([images[i : i + wide] for i in range(0, count, wide)])
    assert path == tmp_path / "a.png"
    zoom = figures_images.MAX_ZOOM
    # So few images are enlarged as far as allowed.
    assert np.array_equal(
        _shown(_levels(path), zoom, paper), np.kron(paper, np.ones((zoom, zoom, 1)))
    )


def test_colours_and_floats(tmp_path: Path) -> None:
    zoom = figures_images.MAX_ZOOM
    rows = _paper([COLOUR[:3], COLOUR[3:]])
    paper = np.kron(rows, np.ones((zoom, zoom, 1)))
    floats = 2.0 * (COLOUR + 0.5) / 256.0 - 1.0
    for images in (COLOUR, floats, floats.astype(np.float32)):
        picture = _levels(save(image_grid(images, "title"), tmp_path / "a.png"))
        assert np.array_equal(_shown(picture, zoom, rows), paper)
    clamped = save(image_grid(np.full((1, 1, 4, 4), -3.0), "title"), tmp_path / "b.png")
    assert (_levels(clamped) == 0).sum() >= 3 * (4 * zoom) ** 2


def test_rows_have_names_and_lengths(tmp_path: Path) -> None:
    rows = {"data": GREY[:6], "a rather long name": GREY[6:9], "third": GREY[9:]}
    path = save(image_rows(rows, "title"), tmp_path / "a.png")
    paper, zoom = _paper(list(rows.values())), figures_images.MAX_ZOOM
    picture = _levels(path)
    shown = _shown(picture, zoom, paper)
    assert np.array_equal(shown, np.kron(paper, np.ones((zoom, zoom, 1))))
    # Names stand left of their rows, and inside the picture.
    bottom = picture.shape[0] - round(figures_images.MARGIN_INCHES * panels.DPI)
    left = picture.shape[1] - round(figures_images.MARGIN_INCHES * panels.DPI) - shown.shape[1]
    names = (picture[bottom - shown.shape[0] : bottom, : left - 2] < 128).any(axis=2)
    widths = []
    for index in range(3):
        part = names[zoom * 10 * index : zoom * (10 * index + 8)]
        widths.append(np.ptp(np.flatnonzero(part.any(axis=0))))
    assert widths[1] > 2 * widths[0] > 0
    assert not names[:, 0].any()


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_any_montage_has_whole_pixels(n: int, columns: int, height: int, width: int) -> None:
    images = np.zeros((n, height, width, 1), np.uint8)
    rows = [images[start : start + columns] for start in range(0, n, columns)]
    figure, panel = figures_images._montage(rows, 0.5)
    box = panel.get_position()
    size = figure.get_size_inches() * panels.DPI
    corners = np.array([box.x0, box.y0, box.x1, box.y1]) * [*size, *size]
    assert np.allclose(size, np.round(size))
    assert np.allclose(corners, np.round(corners), atol=1e-6)
    assert corners.min() >= 0.0
    assert (corners[2:] <= size + 1e-6).all()
    zoom = (corners[2] - corners[0]) / (min(columns, n) * (width + 2) - 2)
    assert zoom == pytest.approx(round(zoom))


def test_curves(tmp_path: Path) -> None:
    path = save(metric_curves(CURVES, "steps", "FD", "title", ("data", 0.5)), tmp_path / "a.png")
    picture = _levels(path)
    first, second = _near(picture, panels.BLUE), _near(picture, panels.ORANGE)
    assert first.sum() > 300
    assert second.sum() > 200
    plot = slice(90, int(0.8 * picture.shape[1]))
    columns = [np.flatnonzero(mask[:, plot].any(axis=0)) for mask in (first, second)]
    # The second curve ends at 100, half of the way on a logarithmic axis.
    assert np.ptp(columns[1]) / np.ptp(columns[0]) == pytest.approx(0.5 / 0.8, abs=0.15)
    floor = _near(picture, panels.INK).sum(axis=1)
    assert floor.argmax() > 0.8 * len(picture), "the floor lies below all curves"
    assert floor.max() > 300


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_file_kinds(tmp_path: Path, suffix: str) -> None:
    assert save(image_grid(GREY, "t"), tmp_path / f"a.{suffix}").stat().st_size > 1000
    twins = [
        save(metric_curves(CURVES, "x", "y", "t", ("data", 0.5)), tmp_path / f"{name}.{suffix}")
        for name in "bc"
    ]
    start = {"pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert twins[0].read_bytes().startswith(start)
    if suffix != "svg":  # SVG names its parts by random identifiers
        assert twins[0].read_bytes() == twins[1].read_bytes()


def test_bad_images(tmp_path: Path) -> None:
    for images, shape in ((GREY[:, 0], r"\(12, 8, 6\)"), (GREY[:0], r"\(0, 1, 8, 6\)")):
        with pytest.raises(ValueError, match=rf"image_grid: expected images of shape.*{shape}"):
            image_grid(images, "t")
    with pytest.raises(ValueError, match=r"C = 1 or 3, got \(12, 2, 8, 6\)"):
        image_grid(np.concatenate([GREY, GREY], axis=1), "t")
    with pytest.raises(ValueError, match="expected at most 4096 images, got 4097"):
        image_grid(np.zeros((4097, 1, 1, 1), np.uint8), "t")
    with pytest.raises(ValueError, match=r"uint8 or floats in \[-1, 1\], got int64"):
        image_grid(GREY.astype(np.int64), "t")
    with pytest.raises(ValueError, match="image_grid: expected finite images, 48 of 576"):
        image_grid(np.where(np.arange(12)[:, None, None, None] == 3, np.nan, GREY / 255), "t")
    with pytest.raises(ValueError, match=r"image_rows: expected rows of images of one size"):
        image_rows({"a": GREY, "b": COLOUR}, "t")
    with pytest.raises(ValueError, match="got no rows"):
        image_rows({}, "t")
    with pytest.raises(ValueError, match=r"image_rows: expected row 'b' of shape"):
        image_rows({"a": GREY, "b": GREY[0]}, "t")
    with pytest.raises(ValueError, match=r"expected a path ending in \.png"):
        save(image_grid(GREY, "t"), tmp_path / "a.jpg")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "curves", "floor"),
    [
        ("expected 1 to 8 curves, got 0", {}, 1.0),
        ("expected 1 to 8 curves, got 9", {str(i): [(1, 1)] for i in range(9)}, 1.0),
        (r"expected curve 'a' as pairs .*\(1, 3\)", {"a": [(1, 2, 3)]}, 1.0),
        ("expected curve 'a' with 2 axes", {"a": []}, 1.0),
        ("expected finite curve 'a', 1 of 2", {"a": [(1, np.nan)]}, 1.0),
        ("expected positive numbers.*got -1", {"a": [(1, -1)]}, 1.0),
        ("expected positive numbers.*got 0", CURVES, 0.0),
        ("expected finite floor", CURVES, np.nan),
    ],
)
def test_bad_curves(words: str, curves: dict, floor: float) -> None:
    with pytest.raises(ValueError, match=f"metric_curves: {words}"):
        metric_curves(curves, "x", "y", "t", ("data", floor))
