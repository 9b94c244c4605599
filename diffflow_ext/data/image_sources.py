"""Images in files and folders of all formats, with their classes if these are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .dataset import ROLES
from .formats.arrays import Found, load_array
from .formats.cifar import find_cifar, is_tar, read_cifar
from .formats.columns import listed
from .formats.idx import find_idx, is_idx, read_idx, read_idx_folder
from .formats.images import Pictures, read_image_array, read_image_folder, read_image_zip
from .formats.labels import label_arrays, labels_of_array
from .formats.reading import Refused
from .formats.resizing import resize_images
from .formats.text import TEXT_SUFFIXES

#: Images by their part of the set, and under such as `train_labels` their classes.
Images = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ImageSource:
    """What was read of a path.

    Attributes:
        images: uint8, shape (n, C, H, W), under `train` and perhaps `valid` and `test`; classes,
            int64 of shape (n,), under such as `train_labels` where the source has them.
        flip: Whether training may mirror the images.
        notes: What else there is, and was left out.
        classes: The names of the classes, if they have names.
        files: The name of each image's file in its folder or archive, if it has one.
    """

    images: Images
    flip: bool = False
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def resized(self, image_size: int | None) -> Images:
        """Returns images of another size, and classes as they are; None for their own."""
        if image_size is None:
            return self.images
        return {
            role: values if role.endswith("labels") else resize_images(values, image_size)
            for role, values in self.images.items()
        }


def read_images(
    path: Path, image_size: int | None, found: Found | None, *, labelled: bool = False
) -> ImageSource | None:
    """Returns the images of a path; None for a table.

    Arguments:
        path: An existing file or folder.
        image_size: The size to which large pictures are made smaller as they are read.
        found: The arrays of an `.npz` file.
        labelled: Whether classes are asked for, and refused if they can't be used. Without,
            only those in the files of MNIST and CIFAR-10 are read. Arrays in `.npy` files and
            single idx files have none.
    """
    if path.is_dir():
        return _read_folder(path, image_size, labelled=labelled)
    if is_idx(path):
        return ImageSource({"train": _idx_images(path)})
    if path.suffix.lower() == ".zip" and not path.stem.lower().endswith(TEXT_SUFFIXES):
        return _of_pictures(read_image_zip(path, image_size, labelled=labelled))
    if is_tar(path):
        return ImageSource(read_cifar(path), True)
    if path.suffix.lower() in (".npy", ".npz"):
        return _read_arrays(path, found, labelled=labelled)
    return None


def _of_pictures(pictures: Pictures) -> ImageSource:
    images, labels = {"train": pictures.pixels}, pictures.labels
    notes, files = tuple(pictures.notes), tuple(pictures.files)
    if labels is None:
        return ImageSource(images, notes=notes, files=files)
    images["train_labels"] = labels.values
    return ImageSource(images, notes=notes, classes=labels.names, files=files)


def _read_folder(folder: Path, image_size: int | None, *, labelled: bool) -> ImageSource:
    files, batches = find_idx(folder), find_cifar(folder)
    if files is not None:
        return ImageSource(read_idx_folder(files))
    if batches is not None:
        return ImageSource(read_cifar(batches), True)
    return _of_pictures(read_image_folder(folder, image_size, labelled=labelled))


def _idx_images(path: Path) -> Tensor:
    values = read_idx(path)
    if values.ndim != 3:
        raise Refused(
            f"open_dataset: expected images with shape (n, H, W), {str(path)!r} holds "
            f"{tuple(values.shape)}; name the file of the images, not of the labels"
        )
    return values.unsqueeze(1)


def _read_arrays(path: Path, found: Found | None, *, labelled: bool) -> ImageSource | None:
    names: dict[str, Any] = {"train": None} if found is None else found.names
    images = _arrays_of_images(path, names)
    if images is None or found is None:
        return None if images is None else ImageSource(images)
    left_out = found.left_out
    if labelled:
        labels = label_arrays(names, left_out, str(path))
        for role, name in labels.items():
            array = load_array("read_labels", path, name)
            images[f"{role}_labels"] = labels_of_array(array, f"{path}[{name}]", len(images[role]))
        left_out = [name for name in left_out if name not in labels.values()]
    return ImageSource(images, notes=(f"the arrays {listed(left_out)}",) if left_out else ())


def _arrays_of_images(path: Path, names: Mapping[str, str | None]) -> dict[str, Tensor] | None:
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
