"""Single pictures of states at several times, to be shown one after the other: PNG files."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .axes import Axis, axes_of, box_around, places_of
from .images import paper_of, square_of
from .panels import DPI, INK, SOFTWARE, cloud, finite_array, new_figure, turns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Dots of a picture at most.
MAX_POINTS = 1500
#: Colours of a picture's palette: a quarter of the bytes, and no difference to be seen.
PALETTE = 64


def cloud_frames(
    data: ArrayLike, states: ArrayLike, columns: Sequence[str | Axis] | None = None
) -> tuple[bytes, list[bytes]]:
    """Draws points, and states at several times on the same axes.

    A particle keeps the colour of its place in the last state, and data have that of their own.

    Arguments:
        data: Points with which the last state is compared, shape (m, 2).
        states: States from the first to the last one, shape (F, n, 2).
        columns: The two columns by their names, or as `Axis`; x1 and x2 if None.

    Returns:
        The picture of the data, and one of each state.
    """
    op = "cloud_frames"
    still, moving = finite_array(op, "data", data, 2), finite_array(op, "states", states, 3)
    if moving.shape[2] != 2 or still.shape[1] != 2:
        raise ValueError(
            f"{op}: expected data (m, 2) and states (F, n, 2), got {still.shape} and"
            f" {moving.shape}; choose two columns"
        )
    # As many dots on either side, or the denser picture looks the better one.
    shown, axes = min(moving.shape[1], len(still), MAX_POINTS), axes_of(op, columns, 2)
    still, moving = (places_of(axes, some[..., :shown, :]) for some in (still, moving))
    limits = box_around(axes, still, moving)
    figure, size = new_figure(4.2, 4.2), float(np.clip(9_000.0 / shown, 3.0, 14.0))
    panel, pictures = figure.subplots(), list[bytes]()
    for points, places in ((still, still), *((state, moving[-1]) for state in moving)):
        panel.clear()
        cloud(panel, points, turns(places), limits, size)
        panel.set_xlabel(axes[0].label, color=INK)
        panel.set_ylabel(axes[1].label, color=INK)
        for axis, of_panel, ends in zip(axes, (panel.xaxis, panel.yaxis), limits, strict=True):
            axis.mark(of_panel, ends)
        if not pictures:  # One layout for all, or they would jump.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        pictures.append(_in_a_palette(figure))
    return pictures[0], pictures[1:]


def image_frame(images: NDArray[np.uint8]) -> bytes:
    """Draws images beside each other in a square, pixel by pixel; between them it's transparent.

    Arguments:
        images: uint8, shape (n, C, H, W) with C = 1 or 3.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"image_frame: expected images in bytes of shape (n, C, H, W), C = 1 or 3, got"
            f" {images.dtype} of {images.shape}; quantise them"
        )
    colours = np.full((len(images), *images.shape[2:], 4), 255, np.uint8)
    colours[..., :3] = images.transpose(0, 2, 3, 1)
    paper = paper_of(square_of(colours), 0)
    stream = io.BytesIO()
    importlib.import_module("matplotlib.image").imsave(
        stream, paper, format="png", metadata={"Software": SOFTWARE}
    )
    return stream.getvalue()


def _in_a_palette(figure: Figure) -> bytes:
    """Returns a figure as a small PNG file of few colours."""
    image, stream = importlib.import_module("PIL.Image"), io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    few = image.open(stream).convert("RGB").quantize(PALETTE)
    packed = io.BytesIO()
    few.save(packed, "png", optimize=True)
    return packed.getvalue()
