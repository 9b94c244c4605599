"""Rows and images that are not split: those to which a trained model is applied."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .formats.arrays import find_arrays
from .formats.images import check_levels, level_doubts
from .formats.reading import Refused
from .formats.tables import Table, read_rows
from .image_sources import read_images


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in the units of their file, or images.

    Attributes:
        values: A table, or images: uint8 of shape (n, C, H, W).
        notes: What else the file has, and was left out.
        doubts: What may have been meant otherwise.
        given: The class of each image, a number or a name, if asked for; None if it has none.
        files: The name of each image's file in its folder or archive; none of rows and arrays.
    """

    values: Table | Tensor
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    given: Any = None
    files: tuple[str, ...] = ()


def open_rows(
    source: str | os.PathLike[str],
    columns: Sequence[str] = (),
    *,
    image_size: int | None = None,
    key: str | None = None,
    drop_columns: str | Sequence[str] = (),
    texts: Collection[str] = (),
    gaps: bool = False,
    labelled: bool = False,
) -> Rows:
    """Opens rows, or images, that are not split: those to which a trained model is applied.

    Arguments:
        source: A path to a table (see `read_rows`), or to images as `open_dataset` takes them.
        columns: The names of the table's columns; none for images.
        image_size: Height and width to which images are resized; None for their own.
        key: The array to read from an `.npz` file with several.
        drop_columns: Columns of a table without names that are left out (see `read_rows`).
        texts: The names of columns of texts.
        gaps: Whether numbers may be missing.
        labelled: Whether the classes of images are asked for.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ImportError: If a package that the file needs is missing.
        TypeError: If a table holds no real numbers.
        ValueError: If the data cannot be used: see `read_rows`.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"open_rows: expected a file or folder, found nothing at {str(path)!r}; give the path "
            "of the rows"
        )
    if columns:
        table = read_rows(
            path, columns, key=key, drop_columns=drop_columns, texts=texts, gaps=gaps
        )
        return Rows(table, table.notes, table.doubts)
    is_npz = path.suffix.lower() == ".npz"
    found = find_arrays("open_rows", path, key) if is_npz else None
    read = read_images(path, image_size, found, labelled=labelled)
    parts = [] if read is None else [k for k in read.images if not k.endswith("labels")]
    if read is None or len(parts) != 1:
        names = f", found {', '.join(parts)}" if parts else ""
        raise Refused(
            f"open_rows: expected one set of images in {str(path)!r}{names}; name a file or "
            "folder with those alone, or one array of an .npz file with --key (in Python key=)"
        )
    pixels = read.resized(image_size)[parts[0]]
    check_levels(pixels, str(path))
    labels = read.images.get(f"{parts[0]}_labels") if labelled else None
    given = (
        np.array(read.classes)[labels.numpy()] if read.classes and labels is not None else labels
    )
    return Rows(pixels, read.notes, tuple(level_doubts(pixels)), given, read.files)
