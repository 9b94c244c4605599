"""The idx format, the MNIST layout, and MNIST itself where it was fetched."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import idx

from diffflow_ext.data import data_home, open_dataset, read_idx
from diffflow_ext.data.formats import reading
from diffflow_ext.data.formats.idx import find_idx

RNG = np.random.default_rng(5)
TRAIN = RNG.integers(0, 256, (40, 28, 28), dtype=np.uint8)
TEST = RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8)


def layout(folder: Path, packed: bool = False, separator: str = "-", labels: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        f"train-images{separator}idx3-ubyte": TRAIN,
        f"t10k-images{separator}idx3-ubyte": TEST,
    }
    if labels:
        parts[f"train-labels{separator}idx1-ubyte"] = np.arange(40) % 10
        parts[f"t10k-labels{separator}idx1-ubyte"] = np.arange(12) % 10
    for name, array in parts.items():
        data = idx(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("shape", [(5,), (3, 4), (7, 3, 2)])
def test_one_to_three_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "a").write_bytes(idx(array))
    (tmp_path / "b").write_bytes(gzip.compress(idx(array)))
    for name in ("a", "b"):
        values = read_idx(tmp_path / name)
        assert values.dtype == torch.uint8
        assert np.array_equal(values.numpy(), array)


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize(("packed", "separator"), [(True, "-"), (False, "-"), (False, ".")])
def test_the_layouts_that_people_have(
    tmp_path: Path, place: str, packed: bool, separator: str
) -> None:
    layout(tmp_path / place, packed, separator)
    data = open_dataset(tmp_path)
    assert data.event_shape == (1, 28, 28)
    assert not data.flip
    assert [len(part) for part in (data.train, data.valid, data.test)] == [36, 4, 12]
    assert np.array_equal(data.test[:, 0].numpy(), TEST)
    assert data.labels is not None
    assert data.labels["test"].tolist() == [i % 10 for i in range(12)]
    label_of = {x.tobytes(): i % 10 for i, x in enumerate(TRAIN)}
    found = [label_of[x.numpy().tobytes()] for x in data.train]
    assert found == data.labels["train"].tolist()


def test_packed_and_raw_files_are_the_same_data(tmp_path: Path) -> None:
    first = open_dataset(layout(tmp_path / "a", packed=True))
    second = open_dataset(layout(tmp_path / "b", labels=False))
    assert first.fingerprint == second.fingerprint
    assert second.labels is None


def test_one_file_of_images(tmp_path: Path) -> None:
    layout(tmp_path)
    data = open_dataset(tmp_path / "train-images-idx3-ubyte", image_size=16)
    assert data.event_shape == (1, 16, 16)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [32, 4, 4]
    with pytest.raises(ValueError, match=r"holds \(40,\); name the file of the images"):
        open_dataset(tmp_path / "train-labels-idx1-ubyte")


def test_a_folder_that_lacks_half(tmp_path: Path) -> None:
    layout(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    assert find_idx(tmp_path) is None
    with pytest.raises(ValueError, match="found none"):
        open_dataset(tmp_path)


GOOD = idx(TRAIN[:2])
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, world", "begins with two zero bytes.*'68 65 6c 6c'"),
    "short": (b"\0\0\x08", "two zero bytes"),
    "floats": (b"\0\0\x0d\x01" + struct.pack(">If", 1, 1.0), "type 0x0d with 1 axes"),
    "no axis": (b"\0\0\x08\0\0\0\0\0", "with 0 axes"),
    "four axes": (b"\0\0\x08\x04" + bytes(20), "with 4 axes"),
    "cut header": (GOOD[:12], "expected 16 bytes of header, .* holds 12"),
    "cut": (GOOD[:-1], r"1,568 bytes after the header for shape \(2, 28, 28\), .* holds 1,567"),
    "long": (GOOD + b"\0", "1,568 bytes .* holds 1,569"),
    "no images": (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), r"states shape \(0, 28, 28\)"),
    "the moon": (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3) + bytes(9), "holds 9;"),
    "cut gzip": (gzip.compress(GOOD)[:-9], "expected gzip data.*EOFError"),
    "bad gzip": (gzip.compress(GOOD)[:-8] + bytes(8), "expected gzip data.*BadGzipFile"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    (tmp_path / "x-idx3-ubyte").write_bytes(data)
    with pytest.raises(ValueError, match=message) as info:
        open_dataset(tmp_path / "x-idx3-ubyte")
    assert str(info.value).startswith("read_idx: expected ")
    assert ";" in str(info.value)


def test_a_bomb_stops_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALL_BYTES", 1 << 20)
    (tmp_path / "a").write_bytes(gzip.compress(idx(np.zeros((1 << 22, 1, 1)))))
    with pytest.raises(ValueError, match=r"at most 1,048,576 bytes .* it unpacks to more"):
        read_idx(tmp_path / "a")


def test_files_that_don_t_fit_each_other(tmp_path: Path) -> None:
    layout(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(39)))
    with pytest.raises(ValueError, match=r"expected 40 labels.*train-labels.*holds 39"):
        open_dataset(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(TRAIN))
    with pytest.raises(ValueError, match=r"expected 1 axes in .*train-labels"):
        open_dataset(tmp_path)
    layout(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(TEST[:, :14]))
    with pytest.raises(ValueError, match=r"of one size, got \(28, 28\) and \(14, 28\)"):
        open_dataset(tmp_path)


MOMENTS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}


@pytest.mark.parametrize("name", MOMENTS)
def test_the_real_sets(name: str) -> None:
    """Mean and deviation of the 60,000 training images, as everyone knows them."""
    if find_idx(data_home() / name) is None:
        pytest.skip(f"needs `diffflow data fetch {name}`")
    data = open_dataset(name)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [55_000, 5_000, 10_000]
    x = torch.cat([data.train, data.valid]).double() / 255.0
    assert (round(float(x.mean()), 4), round(float(x.std()), 4)) == MOMENTS[name]
    assert data.labels is not None
    counts = torch.bincount(torch.cat([data.labels["train"], data.labels["valid"]]))
    assert (int(counts.sum()), int(counts.min()) > 5_000, len(counts)) == (60_000, True, 10)
