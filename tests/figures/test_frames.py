"""Pictures that are shown one after the other."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the plot extra")

from PIL import Image

from diffflow_ext.figures.frames import cloud_frames, image_frame
from diffflow_ext.figures.images import GAP

RNG = np.random.default_rng(0)


def pixels(png: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert(mode)).astype(int)


def test_each_state_is_a_picture_on_the_same_axes() -> None:
    data = RNG.normal(size=(50, 2))
    states = np.stack([3.0 * data, 2.0 * data, data])
    still, frames = cloud_frames(data, states, ("a$b", "c"))
    shown = [pixels(png) for png in (still, *frames)]
    assert len(frames) == 3
    assert len({one.shape for one in shown}) == 1
    # The last state is the data: the same dots in the same colours, so the axes are the same too.
    assert still == frames[-1]
    assert frames[0] != frames[1] != frames[2]
    # Ink below the axes is that of ticks and names, which don't move; palettes differ a little.
    below = [one[-one.shape[0] // 12 :] for one in shown]
    assert np.ptp(below[0]) > 150
    assert max(abs(one - below[0]).max() for one in below) < 60


def test_other_units_have_axes_of_their_own() -> None:
    """One unit for both would make a line of a column of small numbers."""
    data = RNG.normal(size=(200, 2)) * [1.0, 1000.0]
    still, _ = cloud_frames(data, data[None], ("a", "b"))
    colourful = np.ptp(pixels(still), axis=2) > 60
    ranges = [np.ptp(np.flatnonzero(colourful.any(axis=axis))) for axis in (0, 1)]
    assert min(ranges) > 0.4 * colourful.shape[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_in_a_square_pixel_by_pixel(channels: int) -> None:
    images = RNG.integers(0, 256, (5, channels, 4, 6), dtype=np.uint8)
    paper = pixels(image_frame(images), "RGBA")
    assert paper.shape == (2 * 4 + GAP, 3 * 6 + 2 * GAP, 4)
    expected = images[3].transpose(1, 2, 0) * np.ones(3, int)  # In the second row.
    assert (paper[4 + GAP :, :6, :3] == expected).all()
    assert (paper[4 : 4 + GAP, :, 3] == 0).all()
    assert (paper[4 + GAP :, -6:, 3] == 0).all()  # There is no sixth.


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"^cloud_frames: expected data \(m, 2\) and states"):
        cloud_frames(np.ones((3, 2)), np.ones((2, 3, 3)), ("a", "b"))
    with pytest.raises(ValueError, match=r"^cloud_frames: expected finite states"):
        cloud_frames(np.ones((3, 2)), np.full((2, 3, 2), np.nan), ("a", "b"))
    with pytest.raises(ValueError, match=r"^image_frame: expected images in bytes of shape"):
        image_frame(np.ones((2, 1, 4, 4)))  # pyright: ignore[reportArgumentType]
