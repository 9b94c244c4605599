"""Opens a dataset by its name or path."""

from __future__ import annotations

import contextlib
import difflib
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset as TorchDataset

from .conditions import LABEL
from .dataset import (
    Dataset,
    given_labels,
    given_masks,
    limit_training,
    split_images,
    split_table,
)
from .fetching import FETCHABLE
from .formats.arrays import find_arrays
from .formats.cifar import find_cifar
from .formats.columns import ALL, parse_names
from .formats.frames import is_frame
from .formats.idx import find_idx
from .formats.images import check_levels, images_of, level_doubts
from .formats.labels import labels_of_array, parted
from .formats.tables import array_of, read_table, table_of
from .image_sources import ImageSource, read_images
from .kinds import DROP, parse_columns
from .known import NUM_POINTS, draw_dataset, labelled_table
from .masks import MASKS
from .sets.home import data_home
from .sets.maf import MAF_SETS, find_maf, maf_name, open_maf
from .sets.magic import MAGIC_INSTALL, magic_file, magic_telescope
from .sets.toy import TOY_SETS, toy_name

MAF_ARCHIVE = "https://zenodo.org/records/1161203"


@dataclass(frozen=True)
class _Named:
    """A set known by name: its description, its path if present, and how to install it."""

    description: str
    find: Callable[[], Path | None]
    mend: str

    @property
    def advice(self) -> str:
        """How to install the set on this machine."""
        return self.mend.format(home=data_home())


def open_dataset(
    source: Any,
    *,
    seed: int = 0,
    num_points: int = NUM_POINTS,
    image_size: int | None = None,
    limit: int | None = None,
    key: str | None = None,
    drop_columns: str | Sequence[str] = (),
    columns: str | Mapping[str, str] = "",
    missing: Literal["refuse", "mask"] = "refuse",
    condition: str | Sequence[str] = (),
) -> Dataset:
    """Opens a two-dimensional set, a set known by name, or data in a file or folder.

    Two-dimensional sets are drawn: `num_points` training points, 10,000 for validation and
    20,000 for the test, all independent. Tables are split 80/10/10 by a fixed permutation, which
    does not depend on `seed`, so test scores of different runs are comparable. Image sets keep
    their official test images, and 5,000 of the others become the validation set.

    Arguments:
        source: A key of `describe_sets`, or a path: a table (see `read_table`), a folder or file
            of the MAF archive, idx files or their folder, CIFAR-10 batches or their archive, a
            folder or zip of images (PNG, JPEG, WebP, BMP, TIFF, GIF), or an array of images in
            `.npy` or `.npz`. An `.npz` may have images for training, validation and test, with
            names such as train_images, val_images and test_images. Or rows in memory: a data
            frame, an array or a tensor of shape (n, d), of images uint8 as in a file, or a
            dataset of torch with such items.
        seed: The seed of the drawn points, >= 0; other sets don't use it.
        num_points: The number of drawn training points, at least 1; other sets don't use it.
        image_size: Height and width to which images are resized (see `resize_images`); None for
            their own.
        limit: The number of training rows to use; None for all.
        key: The array to read from an `.npz` file with several.
        drop_columns: The columns of a table to leave out (see `read_table`).
        columns: Kinds of columns, as a mapping by name or a text such as
            "price=integer,cut=category"; a kind alone is that of all others. Kinds are continuous,
            heavy, positive, integer, category, drop, and bounded with two numbers. Other columns
            of files and of data in memory have the kind that is found in their values (see
            `kinds`), those of known sets are continuous.
        missing: "mask" to learn which numbers are missing, "refuse" to refuse them.
        condition: What a model is conditioned on: "label" for the classes of images (see
            `formats.labels` for where they are read) and of known sets that have some, the
            names of columns of a table, as a sequence or with commas between them, or "masks" for
            any part of a row or an image (see `data.masks`).

    Returns:
        The dataset; see :class:`Dataset`.

    Warns:
        UserWarning: If a column has no density, such as a copy of another,
            or a file may have been meant otherwise: the `doubts` of the dataset.

    Raises:
        FileNotFoundError: If a set known by name is not on this machine.
        ImportError: If a package that the source needs is missing.
        TypeError: If a table holds no real numbers.
        ValueError: If `source` is neither a known set nor an existing path, or its data cannot be
            used.
    """
    kinds = parse_columns(columns)
    if missing not in ("refuse", "mask"):
        raise ValueError(
            f"open_dataset: expected missing to be 'refuse' or 'mask', got {missing!r}"
        )
    # What is left out may be of any kind, and is not looked at.
    dropped = [name for name, kind in kinds.items() if kind == DROP and name != ALL]
    kinds = {name: kind for name, kind in kinds.items() if name not in dropped}
    dropped = [*parse_names(drop_columns), *dropped]
    names = parse_names(condition)
    masks = names == [MASKS]
    given = [] if masks else names
    options = _Options(image_size, key, dropped, kinds, missing == "mask", given, masks)
    if not isinstance(source, (str, os.PathLike)):
        return _noted(_open_values(source, options), options, limit)
    text = os.fspath(source)
    name = text.strip().lower().replace("_", "-") if isinstance(source, str) else ""
    if name in TOY_SETS:
        options.refuse(name, "a table", "condition")
        options.require_label(f"the set {name!r}")
        sizes = operator.index(seed), operator.index(num_points)
        data = draw_dataset(toy_name(name), *sizes, labelled=options.is_labelled)
    elif name in _NAMED:
        data = _open_named(name, options)
    elif os.path.exists(text):
        data = _open_path(text, Path(text), options)
    else:
        raise _unknown(text)
    return _noted(data, options, limit)


def _noted(data: Dataset, options: _Options, limit: int | None) -> Dataset:
    """Returns the dataset with as many training rows, and warns of what is doubtful."""
    if options.masks:
        data = given_masks(data)
    elif data.is_image and options.condition:
        options.require_label("images")
        data = given_labels(data)
    for doubt in data.doubts:
        warnings.warn(f"{data.name}: {doubt}", stacklevel=3)
    return data if limit is None else limit_training(data, operator.index(limit))


def _open_values(rows: Any, options: _Options) -> Dataset:
    """Returns the dataset of rows or images in memory."""
    source, labels = rows, None
    if options.is_labelled and isinstance(rows, TorchDataset):
        rows, labels = parted(rows)
    array = None if is_frame(rows) else array_of(rows)
    images = None if array is None else images_of(array, "images")
    if images is None:
        what = "a data frame" if array is None else "an array"
        options.refuse("rows", what, "drop_columns", "columns", "gaps", "condition")
        table = table_of(rows if array is None else array, **options.of_tables())
        return split_table(table, columns=options.columns, condition=options.condition)
    options.refuse("images", "an array of images", "image_size", "condition")
    parts, names = {"train": images}, tuple[str, ...]()
    if labels is not None:
        parts["train_labels"] = labels_of_array(labels, "the dataset", len(images))
        names = _class_names(source)
    return _images("images", ImageSource(parts, classes=names), options)


def _class_names(rows: Any) -> tuple[str, ...]:
    """Returns the names of classes that a dataset such as torchvision's has."""
    names = getattr(rows, "classes", ())
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return tuple(map(str, names))
    return ()


def _images(name: str, source: ImageSource, options: _Options) -> Dataset:
    """Returns the dataset of images."""
    check_levels(source.images["train"], name)
    data = split_images(source.resized(options.image_size), name=name, flip=source.flip)
    doubts = tuple(level_doubts(source.images["train"]))
    return replace(data, notes=source.notes, doubts=doubts, classes=source.classes)


@dataclass(frozen=True)
class _Options:
    """Options that some sources do not take."""

    image_size: int | None
    key: str | None
    drop_columns: list[str]
    columns: dict[str, str]
    gaps: bool
    condition: list[str]
    masks: bool

    def of_tables(self) -> dict[str, Any]:
        """Returns the options of `read_table` and `table_of`."""
        texts = [name for name, kind in self.columns.items() if kind == "category"]
        numbers = [name for name in self.columns if name not in texts]
        return {
            "drop_columns": self.drop_columns, "texts": texts, "numbers": numbers,
            "gaps": self.gaps,
        }  # fmt: skip

    @property
    def is_labelled(self) -> bool:
        """Whether classes are asked for."""
        return self.condition == [LABEL]

    def require_label(self, what: str) -> None:
        """Refuses other conditions than the class."""
        if self.condition and not self.is_labelled:
            raise ValueError(
                f"open_dataset: expected condition={LABEL!r} for {what}, got "
                f"{','.join(self.condition)!r}; columns are conditions of tables of one's own"
            )

    def refuse(self, name: str, kind: str, *allowed: str) -> None:
        """Refuses the options that are given but not allowed."""
        tables = "tables of one's own"
        uses = {"image_size": "images", "key": ".npz files", "drop_columns": tables}
        uses |= {"columns": tables, "gaps": tables, "condition": f"{tables} and images"}
        for option, use in uses.items():
            # What they are anyway.
            plain = option == "columns" and self.columns == {ALL: "continuous"}
            if option not in allowed and getattr(self, option) and not plain:
                title = "missing" if option == "gaps" else option
                raise ValueError(
                    f"open_dataset: expected {title} for {use} alone, {name!r} is {kind}; leave "
                    "it out"
                )


def _unknown(text: str) -> ValueError:
    """Returns an error that names a file or a set with a similar name, if there is one."""
    path = Path(text)
    is_path, names = path.suffix != "" or len(path.parts) > 1, [*TOY_SETS, *_NAMED]
    if is_path:
        with contextlib.suppress(OSError, ValueError):
            names = [str(entry) for entry in path.parent.iterdir() if entry.exists()]
    by_name = {Path(name).name.lower(): name for name in names}
    cutoff = 0.75 if is_path else 0.5
    near = difflib.get_close_matches(path.name.lower(), by_name, n=1, cutoff=cutoff)
    hint = f"did you mean {by_name[near[0]]!r}?" if near else "check the spelling"
    if is_path:
        found = "a link that leads nowhere" if os.path.islink(text) else "nothing"
        return ValueError(
            f"open_dataset: expected a file or folder, found {found} at {text!r}; {hint}"
        )
    return ValueError(
        f"open_dataset: expected a known set (diffflow data list) or the path of a table or of "
        f"images, got {text!r}, which is neither; {hint}"
    )


def _open_named(name: str, options: _Options) -> Dataset:
    entry = _NAMED[name]
    path = entry.find()
    if path is None:
        raise FileNotFoundError(
            f"open_dataset: expected {name} in {str(data_home() / name)!r}, which is not there; "
            f"{entry.advice}"
        )
    if name == "magic":
        options.refuse(name, "a table", "condition")
        options.require_label(f"the set {name!r}")
        return labelled_table(magic_telescope(labels=options.is_labelled), name)
    return _open_path(name, path, options)


def _open_path(name: str, path: Path, options: _Options) -> Dataset:
    known = maf_name(path)
    if known is not None:
        options.refuse(name, "a table of the MAF archive")
        return open_maf(known, path)
    found = None
    if path.suffix.lower() == ".npz":
        found = find_arrays("open_dataset", path, options.key)
    read = read_images(path, options.image_size, found, labelled=options.is_labelled)
    if read is None:
        options.refuse(name, "a table", "key", "drop_columns", "columns", "gaps", "condition")
        table = read_table(path, key=options.key, **options.of_tables())
        return split_table(table, name=name, columns=options.columns, condition=options.condition)
    allowed = ("image_size", "condition", *(("key",) if found else ()))
    options.refuse(name, "a set of images", *allowed)
    return _images(name, read, options)


def _find_idx_set(name: str, *elsewhere: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        folders = (data_home() / name, *map(Path, elsewhere))
        return next((folder for folder in folders if find_idx(folder) is not None), None)

    return find


def _find_cifar10() -> Path | None:
    paths = (find_cifar(folder) for folder in (data_home() / "cifar10", data_home()))
    return next((path for path in paths if path is not None), None)


def _from_maf(name: str) -> _Named:
    mend = f"unpack the archive of the five sets into {{home}} ({MAF_ARCHIVE})"
    return _Named(MAF_SETS[name], lambda: find_maf(name), mend)


def _fetched(description: str, name: str, find: Callable[[], Path | None]) -> _Named:
    mend = f"run: diffflow data fetch {name} (from {FETCHABLE[name]})"
    return _Named(description, find, mend)


_NAMED: dict[str, _Named] = {
    "magic": _Named("19,020 gamma-ray showers, 10 columns", magic_file, f"run: {MAGIC_INSTALL}"),
    "mnist": _fetched("70,000 handwritten digits, 1 x 28 x 28", "mnist", _find_idx_set("mnist")),
    "fashion-mnist": _fetched(
        "70,000 pieces of clothing, 1 x 28 x 28",
        "fashion-mnist",
        _find_idx_set("fashion-mnist", "/usr/share/datasets/fashion-mnist"),
    ),
    "cifar10": _fetched("60,000 photographs of ten kinds, 3 x 32 x 32", "cifar10", _find_cifar10),
    **{name: _from_maf(name) for name in MAF_SETS},
}


def describe_sets() -> dict[str, str]:
    """Returns a line of description for each set that `open_dataset` knows by name.

    It ends with the path of the set, or how to install it if it is not on this machine.
    """
    return {**TOY_SETS, **{name: _describe(entry) for name, entry in _NAMED.items()}}


def _describe(entry: _Named) -> str:
    path = entry.find()
    return f"{entry.description}; {f'not here, {entry.advice}' if path is None else path}"
