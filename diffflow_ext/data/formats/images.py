"""Images in folders, zip archives and arrays."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archives import read_zip
from .arrays import load_array
from .labels import LABELS_FILE, MAX_LABELS_FILE, Labels, labels_of_folders, labels_of_json
from .pictures import KINDS, MAX_FILE, Bytes, decode, is_hidden, is_other_picture, is_picture
from .reading import Refused, read_file, unpacked_limit
from .resizing import resize_images

MAX_SMALL = 1 << 30  # bytes of decoded images that no compression ratio makes suspicious
DECODING = 16  # bytes a pixel while a transparent image is decoded, others need less
MAX_OTHERS = 10_000  # files that are no images, besides ten for each image
CHANNELS = (1, 3)
DARK, DARK_PARTS = 63, 0.999  # as 14 bits in 16 are, whatever single bright pixels say
MIN_SIDE = 8  # of images whose pixels may lie in one row of a table
GIVE_SIZE = "give --image-size (in Python image_size=), one smaller size for all"


class Pictures(NamedTuple):
    """Images, their files, notes of other files, and the classes of the images if asked for."""

    pixels: Tensor
    files: list[str]
    notes: list[str]
    labels: Labels | None = None


def read_image_folder(
    folder: Path, image_size: int | None = None, *, labelled: bool = False
) -> Pictures:
    """Reads the images in a folder and its folders, in the order of their names.

    Images are known by their suffixes (`pictures.SUFFIXES`); each is read or refused by name, and
    so are other kinds of pictures and links to folders. All other files, and hidden files and
    folders (`pictures.is_hidden`), are passed over. With `image_size`, each image is resized by
    `resize_images`. The result is uint8, of shape (n, 1, H, W) if all images are grey, else
    (n, 3, H, W). See `pictures` for depth, colours, transparency and orientation.

    If it is `labelled`, the classes are those of a `dataset.json`, or of the folders' names (see
    `labels`).
    """
    where = f"the folder {str(folder)!r}"
    listing = _Listing(where, labelled=labelled)
    links: list[str] = []
    found = _files(folder, links)
    files = sorted(file for file in found if listing.wants(str(file), _below(folder, file)))
    if links:
        raise Refused(
            f"read_images: expected files and folders, {links[0]!r} is a link to a folder, which "
            "is not followed; put a copy in its place, or take it away"
        )
    names = [_below(folder, file) for file in files]
    labels = listing.labels(
        names,
        lambda name: read_file("read_labels", folder / name, MAX_LABELS_FILE),
    )
    packed = sum(file.stat().st_size for file in files if file.is_file())
    images = ((str(file), read_file("read_images", file, MAX_FILE)) for file in files)
    pixels = _stack(images, listing, unpacked_limit(packed, MAX_SMALL), image_size)
    return Pictures(pixels, names, listing.notes(), labels)


def _below(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _files(folder: Path, links: list[str]) -> Iterator[Path]:
    """Yields all that is not hidden and no folder, in the folder and its folders.

    Links to folders, which may lead in a circle, are appended to `links`.
    """
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        try:
            entries = [entry for entry in os.scandir(at) if not is_hidden(entry.name)]
        except OSError as error:
            raise Refused(
                f"read_images: expected a folder that can be listed, {str(at)!r} gives "
                f"{type(error).__name__}: {error.strerror}; check its permissions"
            ) from error
        for entry in entries:
            if entry.is_symlink() and os.path.isdir(entry.path):
                links.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            else:
                yield Path(entry.path)


class _Listing:
    """Chooses the images among the names of a folder or archive, and counts the others."""

    def __init__(self, where: str, *, labelled: bool) -> None:
        self.where, self.labelled = where, labelled
        self.images, self.others, self.other = 0, 0, ""
        self.tables: list[str] = []  # of labels

    def wants(self, source: str, name: str) -> bool:
        """Whether a file is an image; its `name` has no folders that the user has chosen."""
        if is_hidden(name) or name.endswith("/"):
            return False
        if self.labelled and name.rpartition("/")[2] == LABELS_FILE:
            self.tables.append(name)
            return False
        if is_other_picture(name):
            raise Refused(
                f"read_images: expected {KINDS} files, {source!r} is a picture of another kind; "
                "convert it to PNG, or move it elsewhere"
            )
        if is_picture(name):
            self.images += 1
            return True
        self.others, self.other = self.others + 1, self.other or source
        if self.others > MAX_OTHERS + 10 * self.images:
            raise Refused(
                f"read_images: expected a folder or archive of images, {self.where} has only "
                f"{self.images:,} among the first {self.images + self.others:,} files; name the "
                "folder of the images itself"
            )
        return False

    def notes(self) -> list[str]:
        """Returns a note of the files that are no images."""
        n = self.others
        return [f"{n} file{'s' * (n > 1)} of other kinds, such as {self.other!r}"] if n else []

    def labels(self, paths: list[str], read: Callable[[str], bytes]) -> Labels | None:
        """Returns the classes of the images, if they are asked for; `read` reads a table."""
        if not self.images:
            raise self.found_none()
        if not self.labelled:
            return None
        if not self.tables:
            return labels_of_folders(paths, self.where)
        table = min(self.tables, key=lambda name: name.count("/"))
        above = table.removesuffix(LABELS_FILE)
        if not all(path.startswith(above) for path in paths):
            raise Refused(
                f"read_labels: expected {LABELS_FILE} above all pictures of {self.where}, found "
                f"{table!r}; move it there, or name its folder"
            )
        below = [path.removeprefix(above) for path in paths]
        return labels_of_json(below, read(table), f"{table!r} of {self.where}")

    def found_none(self) -> Refused:
        """Returns the error for a place without images."""
        others = f" among {self.others:,} files, such as {self.other!r}" if self.others else ""
        return Refused(
            f"read_images: expected {KINDS} images, idx files or CIFAR-10 batches in "
            f"{self.where}, found none{others}; name another folder or archive, or a file with a "
            "table (packed ones are called like t.csv.zip)"
        )


def read_image_zip(
    file: Path, image_size: int | None = None, *, labelled: bool = False
) -> Pictures:
    """Reads the images of a zip archive in memory, as `read_image_folder` those of a folder."""
    listing = _Listing(f"the archive {str(file)!r}", labelled=labelled)
    names: list[str] = []

    def wanted(name: str) -> bool:
        if not listing.wants(f"{file}[{name}]", name):
            return False
        names.append(name)
        return True

    def table(name: str) -> bytes:
        ((_, data),) = read_zip("read_labels", file, lambda other: other == name, MAX_LABELS_FILE)
        return data

    images = read_zip("read_images", file, wanted, MAX_FILE)
    names.sort()
    labels = listing.labels(names, table)
    limit = unpacked_limit(file.stat().st_size, MAX_SMALL)
    pixels = _stack(images, listing, limit, image_size)
    return Pictures(pixels, names, listing.notes(), labels)


def _stack(
    images: Iterable[tuple[str, bytes]], listing: _Listing, limit: int, image_size: int | None
) -> Tensor:
    """Returns all images."""
    stack = _Stack(listing.images, limit, image_size)
    for i, (source, data) in enumerate(images):
        stack.put(i, data, source)
    return torch.from_numpy(stack.pixels)


class _Stack:
    """The pixels of images of one size, in an array that is made when the first is decoded.

    No more than `limit` bytes are held: the array, and one image while it is decoded.
    """

    def __init__(self, count: int, limit: int, image_size: int | None) -> None:
        self.limit = limit
        self.image_size = None if image_size is None else operator.index(image_size)
        self.pixels: Bytes = np.empty((count, 0, 0, 0), np.uint8)

    def put(self, i: int, data: bytes, source: str) -> None:
        """Decodes image i."""
        pixels = _shrunk(decode(data, source, self._check), self.image_size, source)
        channels, height, width = pixels.shape
        count, had, *size = self.pixels.shape
        if not had:
            self.pixels = np.empty((count, *pixels.shape), np.uint8)
        elif [height, width] != size:
            raise Refused(
                f"read_images: expected images of one size, {source!r} has {height} x {width} "
                f"pixels (height x width) and the first {size[0]} x {size[1]}; {GIVE_SIZE}"
            )
        elif channels > had:
            self.pixels = np.repeat(self.pixels, channels, axis=1)
        self.pixels[i] = pixels

    def _check(self, source: str, width: int, height: int, channels: int) -> None:
        count, had = len(self.pixels), self.pixels.shape[1]
        # A first image with colour after grey ones needs a second array.
        channels = channels + had if channels > had else had
        pixels = width * height
        if self.image_size is not None:
            pixels = min(pixels, self.image_size**2)
        held = count * channels * pixels + DECODING * width * height
        if held > self.limit:
            mend = GIVE_SIZE if self.image_size is None else "make each file smaller first"
            raise Refused(
                f"read_images: expected images that take at most {self.limit:,} bytes of memory, "
                f"{count:,} like {source!r}, {width} x {height} pixels, take "
                f"{held:,}; {mend}, or use fewer"
            )


def _shrunk(pixels: Bytes, image_size: int | None, source: str) -> Bytes:
    if image_size is None:
        return pixels
    try:
        return resize_images(torch.from_numpy(pixels[None]), image_size)[0].numpy()
    except ValueError as error:
        raise Refused(f"{error} (the image {source!r})") from error


def check_levels(images: Tensor, source: str) -> None:
    """Raises a ValueError if bytes are 0 and 1 alone: such images would be all but black."""
    if images.numel() and (int(images.min()), int(images.max())) == (0, 1):
        raise Refused(
            f"read_images: expected bytes from 0 to 255, {source!r} holds 0 and 1 alone, which "
            "are both black; save them as 0 and 255"
        )


def level_doubts(images: Tensor) -> list[str]:
    """Returns a warning if nearly all bytes are nearly black."""
    bright, enough = 0, (1.0 - DARK_PARTS) * images.numel()
    for part in images.split(256):
        bright += int((part > DARK).sum())
        if bright > enough:
            return []
    return [
        f"{DARK_PARTS:.1%} of the bytes are {DARK} or less of 255, which is nearly black; if the "
        "images are not meant so, scale them to 0 to 255"
    ]


def read_image_array(path: Path, name: str | None) -> Tensor | None:
    """Reads images from a `.npy` file, or from the array of that name in an `.npz` file.

    Images are bytes of shape (n, H, W), which are grey, or (n, H, W, C) or (n, C, H, W) with one
    or three channels. The result is uint8 of shape (n, C, H, W), and None for arrays of another
    number of axes, which are tables. Bytes with two axes are refused where a row has as many
    values as a square image.
    """
    return images_of(load_array("read_images", path, name), str(path))


def images_of(array: NDArray[Any], source: str) -> Tensor | None:
    """Returns images from an array as :func:`read_image_array` takes it, None for tables."""
    _check_array(array, source)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        return None
    if array.shape[3] in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in CHANNELS or 0 in array.shape:
        raise Refused(
            f"read_images: expected images with shape (n, H, W, C) or (n, C, H, W) and one or "
            f"three channels C, {source!r} has shape {array.shape}; save it in one of these"
        )
    return torch.from_numpy(np.array(array, order="C"))


def _check_array(array: NDArray[Any], source: str) -> None:
    """Refuses arrays of which it is not clear that they are images, or how."""
    shape = array.shape
    if len(shape) in (3, 4) and array.dtype != np.uint8:
        table = "" if len(shape) == 4 else ", or as a table with array.reshape(len(array), -1)"
        raise TypeError(
            f"read_images: expected bytes (uint8) in an array of images, {source!r} holds "
            f"{array.dtype} of shape {shape}; save it {_as_bytes(array)}{table}"
        )
    if len(shape) == 3 and shape[2] in (*CHANNELS, 4) and shape[1] != shape[2]:
        raise Refused(
            f"read_images: expected many images, {source!r} has shape {shape}, that of one image "
            "(H, W, C); save all in one array (n, H, W, C), or grey ones as array[..., None]"
        )
    side = _square_side(shape[1]) if len(shape) == 2 and array.dtype == np.uint8 else None
    if side is not None:
        raise Refused(
            f"read_images: expected images with shape (n, H, W) or (n, H, W, C), {source!r} holds "
            f"bytes of shape {shape}, perhaps images of {side} x {side} pixels in rows; give "
            "them their shape with array.reshape, or save a table as array.astype(float)"
        )


def _square_side(values: int) -> int | None:
    """Returns the side of a square image, grey or RGB, of so many values, or None."""
    sides = (math.isqrt(values // channels) for channels in CHANNELS)
    fits = (s for s, c in zip(sides, CHANNELS, strict=True) if c * s * s == values)
    return next((side for side in fits if side >= MIN_SIDE), None)


def _as_bytes(array: NDArray[Any]) -> str:
    """Returns how to make bytes of an array of images, by the range of its values."""
    kind = array.dtype.kind
    if kind == "b":
        return "as array.astype(numpy.uint8) * 255"
    low, high = (array.min(), array.max()) if kind in "fiu" and array.size else (0, 0)
    if kind == "f" and 0 <= low <= high <= 1:
        return "as (255 * array).round().astype(numpy.uint8)"
    if kind == "f" and -1 <= low <= high <= 1:
        return "as (127.5 * (array + 1)).round().astype(numpy.uint8)"
    if 0 <= low <= high <= 255:
        return "as array.round().astype(numpy.uint8)"
    return f"with values from 0 to 255, not {low} to {high}, as array.astype(numpy.uint8)"
