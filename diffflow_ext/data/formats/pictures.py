"""One picture: which files are pictures, and their pixels as 8-bit grey or RGB.

Pillow decodes. What it leaves to its caller is here: the EXIF orientation is applied, 16-bit grey
loses its lower byte (as 16-bit colours do in Pillow), transparent pixels are laid over white, and
palettes, CMYK and YCbCr become RGB, without colour profiles.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reading import Refused, optional_package

Bytes = NDArray[np.uint8]
#: Raises an error if a picture of this name, width, height and number of channels is unwelcome.
Check = Callable[[str, int, int, int], None]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
KINDS = "PNG, JPEG, WebP, BMP, TIFF or GIF"
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"),
    *(".tif", ".tiff", ".gif"),
)
#: Pictures that are refused by name, so that none is left out in silence.
OTHER_SUFFIXES = (
    *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".pbm", ".pgm", ".ppm", ".pnm", ".pcx"),
    *(".tga", ".psd", ".svg", ".ico", ".exr", ".hdr", ".dcm", ".dng", ".cr2", ".nef", ".arw"),
)
#: Where systems put their own copies of pictures.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
MAX_PIXELS = 1 << 26
MAX_FILE = 8 * MAX_PIXELS  # bytes: four channels of 16 bits, not compressed
GREY_MODES = ("1", "L", "LA")
ORIENTATION = 0x0112  # the EXIF tag
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture which `decode` reads."""
    return name.lower().endswith(SUFFIXES)


def is_other_picture(name: str) -> bool:
    """Whether a file's name is that of a picture which `decode` does not read."""
    return name.lower().endswith(OTHER_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a part of a path begins with a dot, or is a system's own folder."""
    parts = name.replace("\\", "/").split("/")
    return any(
        part in SYSTEM_FOLDERS or (part.startswith(".") and part not in (".", ".."))
        for part in parts
    )


def decode(data: bytes, source: str, check: Check) -> Bytes:
    """Returns the pixels of a picture, shape (1, H, W) if it is grey, else (3, H, W).

    `check` is called with the size that the header states, before any pixel is decoded. `source`
    names the file in errors. Pictures that are damaged, have several frames, more than
    `MAX_PIXELS` pixels or another depth than 1, 8 or 16 bits are refused.
    """
    pillow = optional_package("read_images", "PIL.Image", "reads images (pillow)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image, source)
                width, height = image.size
                check(source, width, height, 1 if _is_grey(image) else 3)
                return _pixels(pillow, image, source)
    except (Refused, MemoryError):
        raise
    except pillow.UnidentifiedImageError as error:
        # Pillow's own message names an object in memory.
        raise _unreadable(source, "its content is none of these") from error
    # A damaged image raises nearly any exception.
    except Exception as error:
        raise _unreadable(source, f"{type(error).__name__}: {error}") from error


def _unreadable(source: str, reason: str) -> Refused:
    return Refused(
        f"read_images: expected a {KINDS} image, {source!r} cannot be read ({reason}); delete it "
        "or get it again"
    )


def _check_header(image: Any, source: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Refused(
            f"read_images: expected at most {MAX_PIXELS:,} pixels, {source!r} has "
            f"{width} x {height}; make it smaller first"
        )
    # The second picture in a camera's JPEG ("MPO") is a preview or another view.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Refused(
            f"read_images: expected one picture a file, {source!r} has several frames or pages; "
            "save those you want as files of their own"
        )


def _is_grey(image: Any) -> bool:
    return image.mode in GREY_MODES or _is_deep(image)


def _is_deep(image: Any) -> bool:
    # Pillow before version 11 opens 16-bit PNG files with mode I.
    return image.mode.startswith(("I", "F"))


def _pixels(pillow: Any, image: Any, source: str) -> Bytes:
    image.load()
    image = _upright(pillow, image)
    if _is_deep(image):
        return _eight_bits(image, source)[None]
    mode = "L" if _is_grey(image) else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    if image.mode != mode:
        image = image.convert(mode)
    pixels = np.array(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _upright(pillow: Any, image: Any) -> Any:
    """Turns a picture as its EXIF orientation says; one that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        return image
    turn = pillow.Transpose
    turns = {
        **{2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM},
        **{5: turn.TRANSPOSE, 6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90},
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _eight_bits(image: Any, source: str) -> Bytes:
    tags = getattr(image, "tag_v2", {})
    plain = tags.get(BITS, (16,)) == (16,) and tags.get(PHOTOMETRIC, 1) == 1
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if not (plain and sixteen) or image.has_transparency_data:
        raise Refused(
            f"read_images: expected grey values of 8 or 16 bits, 0 black and the largest white, "
            f"{source!r} has others (Pillow's mode {image.mode!r}); scale them to 0 to 255 and "
            "save them in 8 bits"
        )
    values = np.asarray(image)
    if 0 < values.max() < 4096:  # 12 bits or fewer, as many cameras write
        raise Refused(
            f"read_images: expected 16-bit values from 0 to 65535, those of {source!r} end at "
            f"{values.max()}, which is nearly black; scale them to 0 to 255 and save in 8 bits"
        )
    return (values >> 8).astype(np.uint8)
