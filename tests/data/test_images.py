"""Image sets as datasets: splits, labels, sizes, and arrays of images."""

from __future__ import annotations

import re
import tracemalloc
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import idx, picture, saved, zipped

from diffflow_ext.data import open_dataset, resize_images, split_images
from diffflow_ext.data.dataset import limit_training
from diffflow_ext.data.formats import resizing

RNG = np.random.default_rng(3)


def _images(n: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(0, 256, (n, *shape), dtype=np.uint8))


def _set(n: int = 60, n_test: int = 12) -> dict[str, torch.Tensor]:
    return {
        "train": _images(n, 1, 4, 6),
        "test": _images(n_test, 1, 4, 6),
        "train_labels": torch.arange(n) % 10,
        "test_labels": torch.arange(n_test) % 10,
    }


def test_an_image_set_is_a_dataset() -> None:
    data = split_images(_set(), name="set", flip=True)
    assert data.is_image
    assert data.event_shape == (1, 4, 6)
    assert data.dim == 24
    assert data.flip
    assert data.columns == []
    assert [len(part) for part in (data.train, data.valid, data.test)] == [54, 6, 12]
    assert all(p.dtype == torch.uint8 for p in (data.train, data.valid, data.test))


def test_the_test_set_stays_and_validation_comes_from_training() -> None:
    images = _set()
    data = split_images(images, name="set")
    assert torch.equal(data.test, images["test"])
    known = torch.cat([data.train, data.valid]).flatten(1).tolist()
    assert sorted(known) == sorted(images["train"].flatten(1).tolist())
    words = np.random.Philox(key=np.array([211007579, 0], np.uint64)).random_raw(60)
    assert torch.equal(data.valid, images["train"][np.argsort(words)[-6:]])


def test_validation_never_takes_more_than_5000() -> None:
    images = {"train": torch.zeros(60_000, 1, 1, 1, dtype=torch.uint8)}
    images["test"] = images["train"][:7]
    data = split_images(images, name="set")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [55_000, 5_000, 7]


def test_without_a_test_set_the_split_is_that_of_tables() -> None:
    images = {"train": _images(100, 3, 2, 2), "train_labels": torch.arange(100)}
    data = split_images(images, name="set")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [80, 10, 10]
    assert data.labels is not None
    rows = torch.cat([data.labels[part] for part in ("train", "valid", "test")])
    assert torch.equal(torch.cat([data.train, data.valid, data.test]), images["train"][rows])


def test_labels_follow_their_images() -> None:
    images = _set()
    data = split_images(images, name="set")
    assert data.labels is not None
    known = {
        tuple(x.flatten().tolist()): int(y)
        for x, y in zip(images["train"], images["train_labels"], strict=True)
    }
    for part, rows in (("train", data.train), ("valid", data.valid)):
        assert [known[tuple(x.flatten().tolist())] for x in rows] == data.labels[part].tolist()
    assert torch.equal(data.labels["test"], images["test_labels"])
    half = {name: images[name] for name in ("train", "test", "train_labels")}
    assert split_images(half, name="set").labels is None


def test_fingerprint_sees_every_pixel() -> None:
    images = _set()
    first = split_images(images, name="set")
    assert first.fingerprint == split_images(images, name="other", flip=True).fingerprint
    seen = {first.fingerprint}
    for part in ("train", "test"):
        images[part] = images[part].clone()
        images[part][3, 0, 2, 2] ^= 1
        seen.add(split_images(images, name="set").fingerprint)
    images["train"] = images["train"].reshape(60, 1, 6, 4)
    images["test"] = images["test"].reshape(12, 1, 6, 4)
    seen.add(split_images(images, name="set").fingerprint)
    assert len(seen) == 4


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match=r"at least 10 images, 'few' has 9; collect more"):
        split_images({"train": _images(9, 1, 2, 2)}, name="few")


# --- limit ---------------------------------------------------------------------------------------


def _save(tmp_path: Path, n: int = 50) -> Path:
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, (n, 5, 5, 3), dtype=np.uint8))
    return tmp_path / "a.npy"


def test_a_limit_keeps_some_training_rows_and_all_else(tmp_path: Path) -> None:
    whole = open_dataset(_save(tmp_path))
    small, large = (open_dataset(tmp_path / "a.npy", limit=n) for n in (7, 20))
    assert len(small.train) == 7
    assert torch.equal(small.train, large.train[:7])
    assert torch.equal(small.valid, whole.valid)
    assert torch.equal(small.test, whole.test)
    rows = {tuple(x.flatten().tolist()) for x in whole.train}
    assert {tuple(x.flatten().tolist()) for x in large.train} < rows
    assert len({d.fingerprint for d in (whole, small, large)}) == 3


def test_a_limit_of_a_table_keeps_its_units(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", RNG.normal(3.0, 2.0, (200, 3)))
    whole, small = (open_dataset(tmp_path / "t.npy", limit=n) for n in (None, 16))
    assert len(small.train) == 16
    assert small.encoding == whole.encoding
    assert torch.equal(small.test, whole.test)
    assert small.fingerprint != whole.fingerprint
    assert len(open_dataset("moons", num_points=100, limit=3).train) == 3


def test_labels_follow_a_limit() -> None:
    images = {"train": _images(50, 1, 3, 3), "train_labels": torch.arange(50)}
    data = limit_training(split_images(images, name="set"), 9)
    assert data.labels is not None
    assert torch.equal(data.train, images["train"][data.labels["train"]])


@pytest.mark.parametrize("limit", [0, -1, 41])
def test_limits_out_of_range(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ValueError, match=rf"from 1 to the 40 training rows .* got {limit};"):
        open_dataset(_save(tmp_path), limit=limit)


# --- size ----------------------------------------------------------------------------------------


def _area_mean(image: np.ndarray, size: int) -> np.ndarray:
    """Fractions all the way: new pixel (i, j) is the mean over its square of old pixels."""
    ratio = Fraction(len(image), size)

    def overlap(old: int, new: int) -> Fraction:
        return max(Fraction(0), min(Fraction(old + 1), ratio * (new + 1)) - max(old, ratio * new))

    out = np.empty((size, size), np.uint8)
    for i in range(size):
        for j in range(size):
            total = Fraction(0)
            for (a, b), value in np.ndenumerate(image):
                total += overlap(a, i) * overlap(b, j) * int(value)
            out[i, j] = round(total / ratio**2)  # of a Fraction: halves to the even number
    return out


@pytest.mark.parametrize(
    ("side", "size"), [(6, 3), (6, 2), (6, 1), (7, 3), (9, 6), (5, 4), (4, 4)]
)
def test_new_pixels_are_exact_means_of_areas(side: int, size: int) -> None:
    images = _images(3, 2, side, side)
    small = resize_images(images, size)
    assert small.shape == (3, 2, size, size)
    for n in range(3):
        for c in range(2):
            assert np.array_equal(small[n, c].numpy(), _area_mean(images[n, c].numpy(), size))


def test_large_images_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits into the converted part: many images, one, or some of its columns."""
    images = _images(5, 3, 12, 12)
    expected = resize_images(images, 5)
    for pixels in (1, 100, 500, 1000):
        monkeypatch.setattr(resizing, "PIXELS", pixels)
        assert torch.equal(resize_images(images, 5), expected)


def test_resizing_converts_no_more_than_a_part() -> None:
    images = torch.zeros(40, 3, 512, 512, dtype=torch.uint8)
    tracemalloc.start()
    try:
        resize_images(images, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 8 * resizing.PIXELS < 8 * images.numel()


def test_digits_are_padded_where_28_is_no_multiple() -> None:
    images = _images(2, 1, 28, 28)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    assert torch.equal(resize_images(images, 32), padded)
    blocks = padded.reshape(2, 1, 16, 2, 16, 2).double().mean((3, 5))
    assert torch.equal(resize_images(images, 16).double(), blocks.round())
    assert torch.equal(resize_images(images, 28), images)
    with pytest.raises(ValueError, match=r"from 1 to 28, .*\(28 x 28\), got 30"):
        resize_images(images, 30)
    with pytest.raises(ValueError, match="got 32"):
        resize_images(_images(1, 3, 28, 28), 32)


def test_oblong_images_lose_their_longer_ends() -> None:
    images = _images(2, 3, 6, 10)
    assert torch.equal(resize_images(images, 6), images[:, :, :, 2:8])
    assert torch.equal(resize_images(images.mT, 3), resize_images(images, 3).mT)


@pytest.mark.parametrize("size", [0, -1, 5])
def test_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=rf"from 1 to 4, .* got {size}; .* never larger"):
        resize_images(_images(1, 1, 4, 4), size)
    with pytest.raises(TypeError):
        resize_images(_images(1, 1, 4, 4), 2.0)  # type: ignore[arg-type]


def test_tables_have_no_image_size(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", RNG.normal(size=(50, 3)))
    for source in (tmp_path / "t.npy", "moons"):
        with pytest.raises(ValueError, match=r"image_size for images alone.*is a table"):
            open_dataset(source, image_size=8)


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_arrays_of_images(tmp_path: Path, channels: int, last: bool, ending: str) -> None:
    array = RNG.integers(0, 256, (20, channels, 5, 6), dtype=np.uint8)
    saved = np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if last else np.asfortranarray(array)
    path = tmp_path / f"a.{ending}"
    if ending == "npy":
        np.save(path, saved)
    else:
        np.savez_compressed(path, arr_1=np.arange(20), arr_0=saved)
    data = open_dataset(path)
    assert data.event_shape == (channels, 5, 6)
    assert not data.flip
    every = torch.cat([data.train, data.valid, data.test]).flatten(1).tolist()
    assert sorted(every) == sorted(array.reshape(20, -1).tolist())
    if channels == 1:  # Bytes without an axis for channels are grey.
        np.save(tmp_path / "b.npy", array[:, 0])
        assert open_dataset(tmp_path / "b.npy").fingerprint == data.fingerprint


@pytest.mark.parametrize("shape", [(20, 6, 5), (20, 6, 5, 1), (20, 6, 5, 3), (20, 3, 6, 5)])
def test_bytes_are_images_in_any_of_four_forms(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    for name, save in {"a.npy": np.save, "a.npz": np.savez}.items():
        save(tmp_path / name, array)
        data = open_dataset(tmp_path / name)
        every = torch.cat([data.train, data.valid, data.test]).flatten(1).tolist()
        first = array.transpose(0, 3, 1, 2) if shape[-1] == 3 else array
        assert sorted(every) == sorted(first.reshape(20, -1).tolist())


#: Arrays of images by the range of their values, and how to make bytes of them.
SCALED = {
    "unit": (np.linspace(0, 1, 320), "(255 * array).round().astype(numpy.uint8)"),
    "signed": (np.linspace(-1, 1, 320), "(127.5 * (array + 1)).round().astype(numpy.uint8)"),
    "bytes": (np.linspace(0, 255, 320), "array.round().astype(numpy.uint8)"),
    "integers": (np.arange(320) % 256, "array.round().astype(numpy.uint8)"),
    "wide": (np.arange(320) * 200, "not 0 to 63800"),
    "truth": (np.arange(320) % 2 > 0, "array.astype(numpy.uint8) * 255"),
    "not finite": (np.full(320, np.nan), "not nan to nan"),
}


@pytest.mark.parametrize("case", SCALED)
def test_images_of_other_numbers_are_refused_with_a_way_out(tmp_path: Path, case: str) -> None:
    """The expression is evaluated: what it makes is read."""
    array, way_out = SCALED[case]
    for shape in ((20, 4, 4), (20, 4, 4, 1)):
        np.save(tmp_path / "a.npy", array.reshape(shape))
        with pytest.raises(TypeError, match=re.escape(way_out)) as info:
            open_dataset(tmp_path / "a.npy")
        assert ("as a table" in str(info.value)) == (len(shape) == 3)
        if way_out.startswith("not"):
            continue
        made = eval(way_out, {"array": array.reshape(20, 4, 4), "numpy": np})
        assert (made.min(), made.max()) == (0, 255)
        np.save(tmp_path / "b.npy", made)
        assert open_dataset(tmp_path / "b.npy").event_shape == (1, 4, 4)


@pytest.mark.parametrize("shape", [(512, 12, 3), (512, 12, 4), (512, 12, 1)])
def test_one_image_is_not_taken_for_many(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"expected many images, .* one image \(H, W, C\); save"):
        open_dataset(tmp_path / "a.npy")


@pytest.mark.parametrize(("width", "side"), [(784, 28), (3072, 32), (64, 8), (192, 8)])
def test_images_in_rows_are_not_taken_for_a_table(tmp_path: Path, width: int, side: int) -> None:
    array = RNG.integers(0, 256, (50, width), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"perhaps images of {side} x {side} pixels in rows;"):
        open_dataset(tmp_path / "a.npy")
    for table in (array.astype(float), array[:, :-1], array[:, :49]):
        np.save(tmp_path / "a.npy", table)
        assert not open_dataset(tmp_path / "a.npy").is_image


@pytest.mark.parametrize("kind", ["npy", "folder", "zip", "idx"])
def test_bytes_of_0_and_1_alone_are_refused(tmp_path: Path, kind: str) -> None:
    """They would be images in two shades of black."""
    for high in (1, 255):
        array = RNG.integers(0, 2, (20, 4, 4), dtype=np.uint8) * high
        pngs = {f"{i}.png": picture(image) for i, image in enumerate(array)}
        path = tmp_path / {"folder": "a", "idx": "a.idx"}.get(kind, f"a.{kind}")
        if kind == "folder":
            path.mkdir(exist_ok=True)
            for name, data in pngs.items():
                (path / name).write_bytes(data)
        else:
            written = {"npy": saved(np.save, array), "zip": zipped(pngs), "idx": idx(array)}
            path.write_bytes(written[kind])
        if high == 255:
            assert open_dataset(path).event_shape == (1, 4, 4)
            continue
        with pytest.raises(ValueError, match=r"holds 0 and 1 alone, which are both black; save"):
            open_dataset(path)


@pytest.mark.parametrize("kind", ["npy", "zip"])
def test_nearly_black_images_are_said(tmp_path: Path, kind: str) -> None:
    """4 bits in 8, 14 bits in 16, both with a hot pixel; strokes on black are not dark."""
    nibbles = RNG.integers(0, 16, (20, 30, 30), dtype=np.uint8)
    strokes = np.zeros_like(nibbles)
    strokes[:, 3, 4:6] = 64
    for array, is_dark in ((nibbles, True), (strokes, False)):
        array[0, 0, 0] = 255
        path = tmp_path / f"a.{kind}"
        deep = array.astype(np.uint16) * 1024 if is_dark else array.astype(np.uint16) * 257
        pngs = {f"{i}.png": picture(image) for i, image in enumerate(np.minimum(deep, 65535))}
        path.write_bytes(saved(np.save, array) if kind == "npy" else zipped(pngs))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            data = open_dataset(path)
        assert data.event_shape == (1, 30, 30)
        assert len(seen) == is_dark
        assert not seen or "63 or less of 255, which is nearly black; if the" in str(
            seen[0].message
        )


BAD_ARRAYS = {
    "floats": (np.zeros((20, 4, 4, 3)), TypeError, r"uint8.*holds float64.*astype"),
    "objects": (np.full((20, 4, 4, 3), None), ValueError, "it holds Python objects"),
    "no channels": (np.zeros((20, 4, 4, 4), np.uint8), ValueError, r"shape \(20, 4, 4, 4\)"),
    "empty": (np.zeros((20, 0, 4, 3), np.uint8), ValueError, "one or three channels"),
    "five axes": (np.zeros((20, 1, 4, 4, 3), np.uint8), ValueError, r"shape \(n, d\)"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, case: str) -> None:
    array, error, message = BAD_ARRAYS[case]
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(error, match=message):
            open_dataset(tmp_path / name)


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="expected an array, found none"):
        open_dataset(tmp_path / "none.npz")
