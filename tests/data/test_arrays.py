"""Archives of several arrays: which of them is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffflow_ext.data import Dataset, open_dataset, read_table

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 2))


def _images(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def _sizes(data: Dataset) -> tuple[int, int, int]:
    return len(data.train), len(data.valid), len(data.test)


def test_labels_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for more in ({"y": ROWS[:, 0]}, {"labels": np.eye(2)[[0, 1] * 20]}, {"weight": ROWS[:, 0]}):
        np.savez(path, **more, points=ROWS)  # pyright: ignore
        table = read_table(path)
        assert np.array_equal(table.values, ROWS)
        assert table.notes == (f"the arrays {next(iter(more))}",)
    np.savez(path, labels=np.arange(40), images=_images(40))
    data = open_dataset(path)
    assert (data.event_shape, data.notes) == ((3, 4, 4), ("the arrays labels",))
    np.savez(path, labels=ROWS)
    assert np.array_equal(read_table(path).values, ROWS)


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train_images", "val_images", "test_images"),
        ("x_train", "x_valid", "x_test"),
        ("train", "validation", "test"),
    ],
)
def test_sets_of_images_keep_their_parts(
    tmp_path: Path, train: str, valid: str, test: str
) -> None:
    parts = {train: _images(50), valid: _images(7), test: _images(20)}
    path = tmp_path / "a.npz"
    np.savez(path, y_train=np.arange(50), **parts)  # pyright: ignore
    data = open_dataset(path)
    assert _sizes(data) == (50, 7, 20)
    assert data.notes == ("the arrays y_train",)
    for part, name in ((data.valid, valid), (data.test, test)):
        assert torch.equal(part, torch.from_numpy(parts[name]).permute(0, 3, 1, 2))
    np.savez(path, **{train: parts[train], test: parts[test]})  # pyright: ignore
    assert _sizes(open_dataset(path)) == (45, 5, 20)
    np.savez(path, **{train: parts[train], valid: parts[valid]})  # pyright: ignore
    assert _sizes(open_dataset(path)) == (45, 7, 5)
    # A part can be had alone.
    assert _sizes(open_dataset(path, key=train)) == (40, 5, 5)


def test_what_is_not_clear_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    hint = r"--key=a \(in Python key='a'\)"
    np.savez(path, a=ROWS, b=ROWS + 1.0)
    with pytest.raises(ValueError, match=hint):
        open_dataset(path)
    means = []
    for key in "ab":
        encoding = open_dataset(path, key=key).encoding
        assert encoding is not None
        means.append(torch.tensor([column.mean for column in encoding.columns]))
    assert torch.allclose(means[1], means[0] + 1.0)
    np.savez(path, a=_images(20), b=_images(20))
    with pytest.raises(ValueError, match=hint):
        open_dataset(path)
    assert open_dataset(path, key="b").event_shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"key='c' .*found \['a', 'b'\]; name one"):
        open_dataset(path, key="c")
    for parts in ({"train_a": ROWS, "train_b": ROWS}, {"test": ROWS, "valid": ROWS}):
        np.savez(path, **parts)  # pyright: ignore
        with pytest.raises(ValueError, match="--key="):
            open_dataset(path)


def test_parts_of_tables_and_other_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x_train=ROWS, x_test=ROWS)
    with pytest.raises(ValueError, match=r"one array .*split by a fixed rule.*--key=x_train"):
        open_dataset(path)
    for test in (_images(20)[:, :2], ROWS):
        np.savez(path, x_train=_images(20), x_test=test)
        with pytest.raises(ValueError, match=r"images of one shape .*'x_test' .*--key=x_train"):
            open_dataset(path)


def test_a_key_is_for_archives_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    for source in ("moons", tmp_path / "a.npy"):
        with pytest.raises(ValueError, match=r"expected key for \.npz files alone"):
            open_dataset(source, key="a")
