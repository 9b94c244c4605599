"""Classes of images: the names of their folders, the rows of a dataset.json, or arrays of numbers.

`dataset.json` is that of the data sets of StyleGAN and EDM, at the root of the folder or archive:
``{"labels": [["00000/img00000.png", 6], ...]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import ROLE_WORDS, role_of, words_of
from .columns import listed
from .reading import Refused

LABELS_FILE = "dataset.json"
MAX_LABELS_FILE = 1 << 28  # bytes
#: Networks have a vector for each class.
MAX_CLASSES = 1 << 16
#: Parts of names of arrays.
_LABEL_WORDS = {*"y label labels target targets class classes".split()}


class Labels(NamedTuple):
    """The class of each image, int64 of shape (n,), and the names of the classes, if they have."""

    values: Tensor
    names: tuple[str, ...] = ()


# --- files ---------------------------------------------------------------------------------------


def labels_of_folders(paths: Sequence[str], where: str) -> Labels:
    """Returns the classes of pictures: the uppermost folder of each, below what all have.

    Names that are whole numbers are in the order of these, others in that of the alphabet.

    Arguments:
        paths: Where the pictures lie, relative to the folder or archive, with slashes.
        where: What it is called in errors.
    """
    folders = [PurePosixPath(path.replace("\\", "/")).parts[:-1] for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if not folder:
            raise Refused(
                f"read_labels: expected each picture in a folder that is its class, {path!r} of "
                f"{where} is in none; put those of each class into a folder of its name, or write "
                f"{LABELS_FILE}"
            )
    while min(map(len, folders)) > 1 and len({folder[0] for folder in folders}) == 1:
        folders = [folder[1:] for folder in folders]
    found = {folder[0] for folder in folders}
    names = sorted(found, key=_order if all(map(_is_number, found)) else str)
    if {name.lower() for name in names} <= {*ROLE_WORDS}:
        raise Refused(
            f"read_labels: expected folders that are classes, those of {where} are {listed(names)}"
            "; name one of them"
        )
    index = {name: i for i, name in enumerate(names)}
    return Labels(torch.tensor([index[folder[0]] for folder in folders]), tuple(names))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _order(name: str) -> tuple[int, str]:
    return len(name.lstrip("0")), name.lstrip("0") + name


def labels_of_json(paths: Sequence[str], data: bytes, source: str) -> Labels:
    """Returns the classes of pictures in a `dataset.json`; their paths are relative to it."""
    known = _rows(data, source)
    missing = next((path for path in paths if path not in known), None)
    if missing is not None:
        raise Refused(
            f"read_labels: expected a class for each picture in {source}, it has none for "
            f"{missing!r}; add its row, or move the picture away"
        )
    return Labels(torch.tensor([known[path] for path in paths]))


def _rows(data: bytes, source: str) -> dict[str, int]:
    """Returns the class of each name."""
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"read_labels: expected JSON in {source}, it cannot be read "
            f"({type(error).__name__}: {str(error)[:100]}); get it again"
        ) from error
    rows = parsed.get("labels") if isinstance(parsed, dict) else None
    if not isinstance(rows, list) or not rows:
        raise Refused(
            f"read_labels: expected rows [name, class] under 'labels' in {source}, it has none; "
            "write them, or leave the condition out"
        )
    known = dict[str, int]()
    for i, row in enumerate(rows):
        name = _name(row)
        if name is None or known.setdefault(name, row[1]) != row[1]:
            shown = str(row)
            raise Refused(
                "read_labels: expected rows [name, class] of different names with a class from 0 "
                f"to {MAX_CLASSES - 1}, row {i} (counted from 0) of {source} is "
                f"{shown if len(shown) < 80 else shown[:77] + '...'}; mend it"
            )
    return known


def _name(row: Any) -> str | None:
    """Returns the name in a row, None if it is of another form."""
    if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
        return None
    return row[0] if type(row[1]) is int and 0 <= row[1] < MAX_CLASSES else None


# --- arrays --------------------------------------------------------------------------------------


def label_arrays(images: Mapping[str, str], others: Sequence[str], source: str) -> dict[str, str]:
    """Returns the names of the arrays of classes that belong to those of images.

    An array of classes has a part such as label or y in its name, and the same one of train, test
    and the like as that of the images, or none.

    Arguments:
        images: The names of arrays of images, under `train` and perhaps `valid` and `test`.
        others: The names of the other arrays.
        source: What errors call the file.
    """
    candidates = [name for name in others if words_of(name) & _LABEL_WORDS]
    chosen = dict[str, str]()
    for role, name in images.items():
        own = [label for label in candidates if role_of(label) == role_of(name)]
        if not own and len(images) == 1:
            own = [label for label in candidates if not role_of(label)]
        if len(own) != 1:
            found = f"found {listed(own or candidates)}" if own or candidates else "found none"
            raise Refused(
                f"read_labels: expected one array with the classes of {name!r} in {source!r}, "
                f"called such as labels, y or train_labels, {found}; save it beside the images"
            )
        chosen[role] = own[0]
    return chosen


def labels_of_array(array: NDArray[Any], source: str, count: int) -> Tensor:
    """Returns classes from an array of shape (count,) or (count, 1), checked."""
    values = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if values.ndim != 1 or values.dtype.kind not in "biu":
        raise Refused(
            f"read_labels: expected whole numbers of shape ({count},), one class for each image, "
            f"{source!r} has {array.dtype} of shape {array.shape}; save such ones"
        )
    if len(values) != count:
        raise Refused(
            f"read_labels: expected {count} classes, one for each image, {source!r} has "
            f"{len(values)}; save both from one source"
        )
    wrong = (values < 0) | (values >= MAX_CLASSES)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise Refused(
            f"read_labels: expected classes from 0 to {MAX_CLASSES - 1}, row {row} (counted from "
            f"0) of {source!r} is {values[row]}; number the classes from 0"
        )
    return torch.from_numpy(values.astype(np.int64))


def parted(rows: Any) -> tuple[list[Any], NDArray[Any]]:
    """Returns the images and the classes of a dataset of torch, whose items are such pairs."""
    items = [rows[i] for i in range(len(rows))]
    for i, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) < 2 or np.ndim(item[1]):
            raise Refused(
                f"read_labels: expected items (image, class) of the dataset, item {i} (counted "
                f"from 0) is a {type(item).__name__} of another form; give such ones, or leave "
                "the condition out"
            )
    return [np.asarray(item[0]) for item in items], np.asarray([item[1] for item in items])
