"""Classes of images: from folders, dataset.json and arrays, in files and in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_files import picture, zipped
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from diffflow_ext.data import Dataset, open_dataset, open_rows
from diffflow_ext.data.formats.labels import MAX_CLASSES, labels_of_folders

OURS = re.compile(r"^[a-z0-9_]+: expected .*; ", re.DOTALL)


def pixels(label: int, number: int) -> np.ndarray:
    """Returns an image whose first pixel is its class, and whose second one is its number."""
    image = np.full((6, 6), 200, np.uint8)
    image[0, :2] = label, number
    return image


def members(folders: Mapping[str, int], count: int = 8) -> dict[str, bytes]:
    """Returns pictures of the class of their folder."""
    return {
        f"{folder}/{i:02}.png": picture(pixels(label, i))
        for folder, label in folders.items()
        for i in range(count)
    }


def written(root: Path, files: Mapping[str, bytes], kind: str) -> Path:
    """Writes files as a folder or as an archive."""
    if kind == "zip":
        (root / "set.zip").write_bytes(zipped(dict(files)))
        return root / "set.zip"
    for name, data in files.items():
        (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "set" / name).write_bytes(data)
    return root / "set"


def assert_own(data: Dataset, count: int) -> None:
    """The class of each image is that in its first pixel, in all splits."""
    assert data.conditions is not None
    assert data.conditions.num_classes == count
    for role in ("train", "valid", "test"):
        given = data.given_of(role)
        assert given is not None
        assert torch.equal(given, getattr(data, role)[:, 0, 0, 0].long())


# --- folders and archives ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("above", ["", "pets/"])
def test_classes_are_names_of_folders(tmp_path: Path, kind: str, above: str) -> None:
    """In the order of the alphabet, also below one folder that all have, and at any depth."""
    files = members({f"{above}dog": 2, f"{above}cat/siamese": 1, f"{above}Bird": 0})
    files["notes.txt"] = b"x"
    path = written(tmp_path, files, kind)
    data = open_dataset(path, condition="label")
    assert_own(data, 3)
    assert data.conditions is not None
    assert data.conditions.classes == data.classes == ("Bird", "cat", "dog")
    assert data.notes == open_dataset(path).notes
    assert data.notes[0].startswith("1 file of other kinds")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_without_a_condition_nothing_has_changed(tmp_path: Path, kind: str) -> None:
    files = members({"cat": 0, "dog": 1}) | {"0.png": picture(pixels(0, 9))}
    path = written(tmp_path, {**files, "dataset.json": b"no JSON"}, kind)
    data = open_dataset(path)
    assert data.labels is data.conditions is None
    assert data.classes == ()
    assert sum(len(part) for part in (data.train, data.valid, data.test)) == 17
    assert "dataset.json" in data.notes[0]


def test_whole_numbers_are_in_their_order() -> None:
    paths = [f"{name}/x.png" for name in ("10", "9", "0", "2", "9")]
    found = labels_of_folders(paths, "x")
    assert found.names == ("0", "2", "9", "10")
    assert found.values.tolist() == [3, 2, 0, 1, 2]
    assert labels_of_folders(["10/x", "9/x", "a/x"], "x").names == ("10", "9", "a")


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("above", ["", "set/"])
def test_classes_of_a_dataset_json(tmp_path: Path, kind: str, above: str) -> None:
    """They go before the folders, which are none there."""
    names = [f"{i // 10:05}/img{i:08}.png" for i in range(20)]
    files = {f"{above}{name}": picture(pixels(i % 3, i)) for i, name in enumerate(names)}
    rows = [[name, i % 3] for i, name in enumerate(names)]
    files[f"{above}dataset.json"] = json.dumps({"labels": [["gone.png", 9], *rows[::-1]]}).encode()
    data = open_dataset(written(tmp_path, files, kind), condition="label")
    assert_own(data, 3)
    assert data.classes == data.notes == ()


ROWS = [[f"{label}/{i:02}.png", label] for label in range(2) for i in range(8)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": None}, r"rows \[name, class\] under 'labels' in 'dataset.json' of .*has none"),
        ([], "under 'labels'"),
        ({"labels": ROWS[1:]}, r"it has none for '0/00.png'"),
        ({"labels": [*ROWS, ["0/00.png", 1]]}, r"different names .*row 16 \(counted from 0\)"),
        (
            {"labels": [["0/00.png", -1], *ROWS[1:]]},
            r"from 0 to 65535, row 0 .*\['0/00.png', -1\]",
        ),
        ({"labels": [*ROWS[:3], ["0/03.png", True]]}, "row 3 "),
        ({"labels": [*ROWS[:3], ["0/03.png", [0.0, 1.0]]]}, "row 3 "),
        ({"labels": [*ROWS[:3], {"a": 10**80}]}, r"row 3 .*\.\.\.; mend it"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_a_dataset_json_may_not_hold(
    tmp_path: Path, kind: str, content: Any, said: str
) -> None:
    files = members({"0": 0, "1": 1}) | {"dataset.json": json.dumps(content).encode()}
    path = written(tmp_path, files, kind)
    with pytest.raises(ValueError, match=said) as caught:
        open_dataset(path, condition="label")
    assert OURS.match(str(caught.value))
    assert str(path) in str(caught.value)
    open_dataset(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"labels": 1e999}'])
def test_damaged_tables_of_classes(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path, members({"0": 0, "1": 1}) | {"dataset.json": data}, "folder")
    with pytest.raises(ValueError, match=OURS):
        open_dataset(path, condition="label")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            members({"cat": 0, "dog": 1}) | {"x.png": picture(pixels(0, 0))},
            "'x.png' of .* in none",
        ),
        (members({"train": 0, "test": 1}), "folders that are classes, .* are test, train; name"),
        (members({"cat": 0}, 12), "several classes, all images of .* are of 'cat'; put"),
        (
            members({"a": 0, "b": 1}) | {"a/dataset.json": b'{"labels": []}'},
            "dataset.json above all pictures .* found 'a/dataset.json'",
        ),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for kind in ("folder", "zip"):
        path = written(tmp_path, files, kind)
        with pytest.raises(ValueError, match=said) as caught:
            open_dataset(path, condition="label")
        assert OURS.match(str(caught.value))
        open_dataset(path)


# --- arrays --------------------------------------------------------------------------------------


def images(n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % classes
    return np.stack([pixels(int(label), i) for i, label in enumerate(labels)]), labels


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("x_train", "y_train", "x_test", "y_test"), None),
        (("train_images", "train_labels", "test_images", "test_labels"), None),
        (("x_train", "y_train", "x_test", "y_test"), "x_test"),
        (("images", "label", None, None), None),
        (("arr_0", "classes", "ids", "ids_too"), None),
        (("train.x", "target", None, None), None),
    ],
)
def test_arrays_of_classes_beside_those_of_images(
    tmp_path: Path, names: tuple[str, ...], key: str | None
) -> None:
    (x, y), (u, v) = images(40), images(20, 2)
    columns = y[:, None].astype(np.uint8), v  # as Keras and MedMNIST have them
    if "ids" in names:
        u = np.arange(20)
    arrays = dict(zip(names, (x, columns[0], u, columns[1]), strict=True))
    np.savez(tmp_path / "a.npz", **{name: a for name, a in arrays.items() if name is not None})
    data = open_dataset(tmp_path / "a.npz", condition="label", key=key)
    assert_own(data, 2 if key else 3)
    rows = open_rows(tmp_path / "a.npz", labelled=True, key=key or names[0])
    assert isinstance(rows.values, torch.Tensor)
    assert torch.equal(rows.given, rows.values[:, 0, 0, 0].long())


def test_arrays_of_classes_are_no_longer_left_out(tmp_path: Path) -> None:
    x, y = images(40)
    np.savez(tmp_path / "a.npz", x=x, y=y, ids=y)
    assert open_dataset(tmp_path / "a.npz").notes == ("the arrays y, ids",)
    assert open_dataset(tmp_path / "a.npz", condition="label").notes == ("the arrays ids",)


X, Y = images(40)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": Y[1:]}, r"40 classes, one for each image, '.*a.npz\[labels\]' has 39"),
        ({"labels": Y / 2}, r"whole numbers of shape \(40,\), .*has float64 of shape \(40,\)"),
        ({"labels": np.eye(40, dtype=int)}, r"has int64 of shape \(40, 40\)"),
        ({"labels": np.array(["cat"] * 40)}, "has <U3 of shape"),
        ({"labels": Y - 1}, r"row 0 \(counted from 0\) of .* is -1; number the classes from 0"),
        ({"labels": Y + MAX_CLASSES}, f"from 0 to {MAX_CLASSES - 1}, row 0"),
        ({"labels": Y, "y": Y}, r"one array with the classes of 'x' in .*, found labels, y"),
        ({"ids": Y}, "one array with the classes of 'x' .*, found none"),
        ({"y_test": Y}, "found y_test"),
    ],
)
def test_arrays_that_are_no_classes(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "a.npz", x=X, **arrays)
    with pytest.raises(ValueError, match=said) as caught:
        open_dataset(tmp_path / "a.npz", condition="label", key="x")
    assert OURS.match(str(caught.value))
    open_dataset(tmp_path / "a.npz", key="x")


def test_arrays_without_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(ValueError, match=r"labels for condition='label', none are read of"):
        open_dataset(tmp_path / "a.npy", condition="label")


# --- in memory -----------------------------------------------------------------------------------


class Pairs(TorchDataset[Any]):
    """Items (image, class) as those of torchvision."""

    classes = ("zero", "one", "two")

    def __init__(self, kind: type = int) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Any:
        return X[i], self.kind(Y[i])


def test_items_of_a_dataset_of_torch() -> None:
    data = open_dataset(Pairs(), condition="label")
    assert_own(data, 3)
    assert data.classes == Pairs.classes
    assert open_dataset(Pairs()).train.equal(data.train)
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    assert_own(open_dataset(tensors, condition="label"), 3)
    with pytest.raises(ValueError, match=r"shape \(40,\).* 'the dataset' has float64"):
        open_dataset(Pairs(float), condition="label")
    with pytest.raises(ValueError, match=r"\(image, class\) of the dataset, item 0 .* a tuple"):
        open_dataset(TensorDataset(torch.from_numpy(X)), condition="label")


def test_names_of_fewer_classes_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pairs, "classes", ("zero", "one"))
    with pytest.raises(ValueError, match="labels from 0 to 1, 'images' has 2; number"):
        open_dataset(Pairs(), condition="label")
    monkeypatch.setattr(Pairs, "classes", SimpleNamespace())
    assert open_dataset(Pairs(), condition="label").classes == ()


# --- rows that are not split ---------------------------------------------------------------------


def test_rows_have_the_names_of_their_classes(tmp_path: Path) -> None:
    path = written(tmp_path, members({"cat": 0, "dog": 1}, 2), "folder")
    assert open_rows(path, labelled=True).given.tolist() == ["cat", "cat", "dog", "dog"]
    assert open_rows(path).given is None
    assert open_rows(path / "dog").given is None
    (path / "cat" / "00.png").unlink()
    (path / "cat" / "01.png").unlink()
    assert open_rows(path, labelled=True).given.tolist() == ["dog", "dog"]
