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

from torch import Tensor

from .conditions import LABEL
from .dataset import (
    NUM_POINTS,
    ROLES,
    Dataset,
    draw_dataset,
    given_labels,
    given_masks,
    limit_training,
    split_images,
    split_table,
)
from .fetching import FETCHABLE
from .formats.arrays import Found, find_arrays
from .formats.cifar import find_cifar, is_tar, read_cifar
from .formats.columns import listed, parse_names
from .formats.frames import is_frame
from .formats.idx import find_idx, is_idx, read_idx, read_idx_folder
from .formats.images import (
    check_levels,
    images_of,
    level_doubts,
    read_image_array,
    read_image_folder,
    read_image_zip,
)
from .formats.reading import Refused
from .formats.resizing import resize_images
from .formats.tables import array_of, read_table, table_of
from .formats.text import TEXT_SUFFIXES
from .kinds import ALL, DROP, parse_columns
from .masks import MASKS
from .sets.home import data_home
from .sets.maf import MAF_SETS, find_maf, maf_name, open_maf
from .sets.magic import MAGIC_INSTALL, magic_file, magic_telescope
from .sets.toy import TOY_SETS, toy_name

Images = Mapping[str, Tensor]
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
            heavy, integer, category, drop, and bounded with two numbers. Other columns of files
            and of data in memory have the kind that is found in their values (see `kinds`), those
            of known sets are continuous.
        missing: "mask" to learn which numbers are missing, "refuse" to refuse them.
        condition: What a model is conditioned on: "label" for images, their classes, the names
            of columns of a table, as a sequence or with commas between them, or "masks" for any
            part of a row or an image (see `data.masks`).

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
        options.refuse(name, "a table")
        data = draw_dataset(toy_name(name), operator.index(seed), operator.index(num_points))
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
        data = options.given_labels(data)
    for doubt in data.doubts:
        warnings.warn(f"{data.name}: {doubt}", stacklevel=3)
    return data if limit is None else limit_training(data, operator.index(limit))


def _open_values(rows: Any, options: _Options) -> Dataset:
    """Returns the dataset of rows or images in memory."""
    array = None if is_frame(rows) else array_of(rows)
    images = None if array is None else images_of(array, "images")
    if images is None:
        what = "a data frame" if array is None else "an array"
        options.refuse("rows", what, "drop_columns", "columns", "gaps", "condition")
        table = table_of(rows if array is None else array, **options.of_tables())
        return split_table(table, columns=options.columns, condition=options.condition)
    options.refuse("images", "an array of images", "image_size", "condition")
    check_levels(images, "images")
    data = split_images(resized({"train": images}, options.image_size), name="images")
    return replace(data, doubts=tuple(level_doubts(images)))


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
        return {"drop_columns": self.drop_columns, "texts": texts, "gaps": self.gaps}

    def given_labels(self, data: Dataset) -> Dataset:
        """Returns images with the condition, which must be their classes."""
        if self.condition != [LABEL]:
            raise ValueError(
                f"open_dataset: expected condition={LABEL!r} or {MASKS!r} for images, got "
                f"{','.join(self.condition)!r}; columns are conditions of tables"
            )
        return given_labels(data)

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
        options.refuse(name, "a table")
        return split_table(magic_telescope(), name=name)
    return _open_path(name, path, options)


def _open_path(name: str, path: Path, options: _Options) -> Dataset:
    known = maf_name(path)
    if known is not None:
        options.refuse(name, "a table of the MAF archive")
        return open_maf(known, path)
    found = None
    if path.suffix.lower() == ".npz":
        found = find_arrays("open_dataset", path, options.key)
    read = read_images(path, options.image_size, found)
    if read is None:
        options.refuse(name, "a table", "key", "drop_columns", "columns", "gaps", "condition")
        table = read_table(path, key=options.key, **options.of_tables())
        return split_table(table, name=name, columns=options.columns, condition=options.condition)
    allowed = ("image_size", "condition", *(("key",) if found else ()))
    options.refuse(name, "a set of images", *allowed)
    images, flip, notes = read
    check_levels(images["train"], name)
    data = split_images(resized(images, options.image_size), name=name, flip=flip)
    if found and found.left_out:
        notes = [f"the arrays {listed(found.left_out)}"]
    return replace(data, notes=tuple(notes), doubts=tuple(level_doubts(images["train"])))


def read_images(
    path: Path, image_size: int | None, found: Found | None
) -> tuple[Images, bool, list[str]] | None:
    """Returns images by their part of the set, `flip`, and what was left out; None for a table."""
    if path.is_dir():
        return _read_folder(path, image_size)
    if is_idx(path):
        return {"train": _idx_images(path)}, False, []
    if path.suffix.lower() == ".zip" and not path.stem.lower().endswith(TEXT_SUFFIXES):
        pixels, notes = read_image_zip(path, image_size)
        return {"train": pixels}, False, notes
    if is_tar(path):
        return read_cifar(path), True, []
    if path.suffix.lower() in (".npy", ".npz"):
        images = _read_image_arrays(path, found.names if found else {"train": None})
        return None if images is None else (images, False, [])
    return None


def _read_image_arrays(path: Path, names: Mapping[str, str | None]) -> Images | None:
    images = dict[str, Tensor]()
    for role in (role for role in ROLES if role in names):
        part = read_image_array(path, names[role])
        if part is None and not images:
            return None
        if part is None or part.shape[1:] != images.get("train", part).shape[1:]:
            raise Refused(
                f"open_dataset: expected images of one shape in {str(path)!r}, {names[role]!r} "
                f"has others than {names['train']!r}; name one of the arrays with "
                f"--key={names['train']} (in Python key={names['train']!r})"
            )
        images[role] = part
    return images


def _read_folder(folder: Path, image_size: int | None) -> tuple[Images, bool, list[str]]:
    files, batches = find_idx(folder), find_cifar(folder)
    if files is not None:
        return read_idx_folder(files), False, []
    if batches is not None:
        return read_cifar(batches), True, []
    pixels, notes = read_image_folder(folder, image_size)
    return {"train": pixels}, False, notes


def _idx_images(path: Path) -> Tensor:
    values = read_idx(path)
    if values.ndim != 3:
        raise Refused(
            f"open_dataset: expected images with shape (n, H, W), {str(path)!r} holds "
            f"{tuple(values.shape)}; name the file of the images, not of the labels"
        )
    return values.unsqueeze(1)


def resized(images: Images, image_size: int | None) -> Images:
    """Returns images of another size, and labels as they are; None for their own."""
    if image_size is None:
        return images
    return {
        role: values if role.endswith("labels") else resize_images(values, image_size)
        for role, values in images.items()
    }


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
