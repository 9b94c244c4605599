"""Images in folders, zip archives and arrays."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archives import read_zip
from .arrays import load_array
from .reading import MAX_BYTES, Refused, optional_package, read_file
from .resizing import resize_images

Bytes = NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 1 << 26  # of one image
MAX_SMALL = 1 << 30  # bytes of decoded images that no compression ratio makes suspicious
MAX_RATIO = 100
CHANNELS = (1, 3)


def read_image_folder(folder: Path, image_size: int | None = None) -> Tensor:
    """Reads the PNG and JPEG images in a folder and its folders, in the order of their names.

    Other files, hidden files and folders, and links to folders are skipped. With `image_size`,
    each image is resized by `resize_images`. The result is uint8, of shape (n, 1, H, W) if all
    images are grey, else (n, 3, H, W). Transparent pixels become white.
    """
    files = sorted(_image_files(folder))
    images = ((str(file), read_file("read_images", file)) for file in files)
    return _stack(images, f"the folder {str(folder)!r}", image_size)


def _image_files(folder: Path) -> Iterable[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in names if _is_image(name))


def _is_image(name: str) -> bool:
    hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def read_image_zip(file: Path, image_size: int | None = None) -> Tensor:
    """Reads the images of a zip archive in memory, as `read_image_folder` those of a folder."""
    members = read_zip("read_images", file, _is_image)
    images = ((f"{file}[{name}]", data) for name, data in members)
    return _stack(images, f"the archive {str(file)!r}", image_size)


def _stack(images: Iterable[tuple[str, bytes]], where: str, image_size: int | None) -> Tensor:
    pillow = optional_package("read_images", "PIL.Image", "reads PNG and JPEG (pillow)")
    parts, packed, decoded = [], 0, 0
    for source, data in images:
        pixels = _shrunk(_decode(pillow, data, source), image_size)
        packed, decoded = packed + len(data), decoded + pixels.size
        if decoded > min(MAX_BYTES, max(MAX_SMALL, MAX_RATIO * packed)):
            raise Refused(
                f"read_images: expected images of at most {MAX_SMALL:,} bytes, or {MAX_RATIO} "
                f"times their files, {source!r} exceeds that; give image_size, or use fewer images"
            )
        if parts and parts[0].shape[:2] != pixels.shape[:2]:
            raise Refused(
                f"read_images: expected images of one size, {source!r} has {pixels.shape[:2]} "
                f"pixels and the first {parts[0].shape[:2]}; give image_size"
            )
        parts.append(pixels)
    if not parts:
        raise Refused(
            f"read_images: expected PNG or JPEG images, idx files or CIFAR-10 batches in {where}, "
            "found none; name another folder, archive or file"
        )
    grey = all(part.shape[2] == 1 for part in parts)
    channels = 1 if grey else 3
    array = np.stack([np.broadcast_to(part, (*part.shape[:2], channels)) for part in parts])
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _decode(pillow: Any, data: bytes, source: str) -> Bytes:
    """Returns pixels with shape (H, W, 1) for grey images, else (H, W, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Refused(
                        f"read_images: expected at most {MAX_PIXELS:,} pixels, {source!r} has "
                        f"{width} x {height}; make it smaller first"
                    )
                return _pixels(pillow, image)
    except Refused:
        raise
    # A damaged image raises nearly any exception.
    except Exception as error:
        raise Refused(
            f"read_images: expected a PNG or JPEG image, {source!r} cannot be read "
            f"({type(error).__name__}: {error}); delete it or get it again"
        ) from error


def _pixels(pillow: Any, image: Any) -> Bytes:
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))[:, :, None]
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", over.size, "white"), over)
    return np.asarray(image.convert("RGB"))


def _shrunk(pixels: Bytes, image_size: int | None) -> Bytes:
    if image_size is None:
        return pixels
    images = torch.from_numpy(pixels.transpose(2, 0, 1).copy()[None])
    return resize_images(images, image_size)[0].permute(1, 2, 0).numpy()


def read_image_array(path: Path, name: str | None) -> Tensor | None:
    """Reads images from a `.npy` file, or from the array of that name in an `.npz` file.

    Images are bytes of shape (n, H, W), which are grey, or (n, H, W, C) or (n, C, H, W) with one
    or three channels. The result is uint8 of shape (n, C, H, W), and None for arrays of another
    number of axes, which are tables.
    """
    array = load_array("read_images", path, name)
    if array.ndim == 3 and array.dtype == np.uint8:
        array = array[..., None]
    if array.ndim != 4:
        return None
    if array.dtype != np.uint8:
        raise TypeError(
            f"read_images: expected bytes (uint8) in an array of images, {str(path)!r} holds "
            f"{array.dtype}; save it as array.astype(numpy.uint8), with values from 0 to 255"
        )
    if array.shape[3] in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in CHANNELS or 0 in array.shape:
        raise Refused(
            f"read_images: expected images with shape (n, H, W, C) or (n, C, H, W) and one or "
            f"three channels C, {str(path)!r} has shape {array.shape}; save it in one of these"
        )
    return torch.from_numpy(np.array(array, order="C"))
