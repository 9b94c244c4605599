"""Folders and zip archives of images, and archives that mean harm."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import picture, zipped

from diffflow_ext.data import open_dataset, resize_images
from diffflow_ext.data.formats import images, pictures, reading

RNG = np.random.default_rng(4)


COLOUR = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


def _tree(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for i, pixels in enumerate(COLOUR):
        place = folder / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.{'png' if i % 3 else 'PNG'}").write_bytes(picture(pixels))
    (folder / "dataset.json").write_text("{}")
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "00.png").write_bytes(b"no image")
    return folder


def _zip(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    path.write_bytes(zipped(members, packing))
    return path


def _every(data: object) -> list[list[int]]:
    parts = [getattr(data, part) for part in ("train", "valid", "test")]
    return sorted(torch.cat(parts).flatten(1).tolist())


def test_a_folder_and_its_zip_hold_the_same_images(tmp_path: Path) -> None:
    folder = _tree(tmp_path)
    files = [file for file in folder.rglob("[!.]*") if file.is_file()]
    archive = _zip(tmp_path / "i.zip", {str(f.relative_to(folder)): f.read_bytes() for f in files})
    first, second = open_dataset(folder), open_dataset(archive)
    assert first.event_shape == (3, 6, 5)
    assert _every(first) == sorted(COLOUR.transpose(0, 3, 1, 2).reshape(12, -1).tolist())
    assert first.fingerprint == second.fingerprint
    assert {file.name for file in tmp_path.iterdir()} == {"images", "i.zip"}


def test_grey_images_have_one_channel_unless_one_has_colour(tmp_path: Path) -> None:
    members = {f"{i}.png": picture(pixels[:, :, 0]) for i, pixels in enumerate(COLOUR)}
    data = open_dataset(_zip(tmp_path / "grey.zip", members))
    assert data.event_shape == (1, 6, 5)
    assert _every(data) == sorted(COLOUR[..., 0].reshape(12, -1).tolist())
    members["9.png"] = picture(COLOUR[9])
    assert open_dataset(_zip(tmp_path / "mixed.zip", members)).event_shape == (3, 6, 5)


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    data = open_dataset(_zip(tmp_path / "a.zip", {f"{i}.png": picture(pixels) for i in range(10)}))
    assert data.event_shape == (3, 4, 4)
    assert data.train[0, 0].tolist() == [[0] * 4] * 2 + [[255] * 4] * 2


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[:, None], (16, 16))
    members = {f"{i}.jpeg": picture(smooth, kind="JPEG") for i in range(10)}
    data = open_dataset(_zip(tmp_path / "a.zip", members))
    assert data.event_shape == (1, 16, 16)
    assert int((data.train[0, 0].int() - torch.from_numpy(smooth.astype(int))).abs().max()) < 8


def test_images_of_several_sizes_need_a_common_one(tmp_path: Path) -> None:
    members = {f"{i}.png": picture(COLOUR[i]) for i in range(11)}
    members["z.png"] = picture(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    path = _zip(tmp_path / "a.zip", members)
    with pytest.raises(ValueError, match=r"z.png\]' has 9 x 12 .* first 6 x 5; give --image-"):
        open_dataset(path)
    data = open_dataset(path, image_size=3)
    assert data.event_shape == (3, 3, 3)
    expected = resize_images(torch.from_numpy(COLOUR[0].transpose(2, 0, 1)[None].copy()), 3)
    assert expected.flatten().tolist() in _every(data)


def test_bad_folders_and_zips(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected PNG.* found none, but 1 .*first '.*b.zip\]'"):
        open_dataset(_zip(tmp_path / "none.zip", {"b.zip": zipped({"a.png": b"1"})}))
    (tmp_path / "no.zip").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"expected a zip archive.*BadZipFile"):
        open_dataset(tmp_path / "no.zip")
    (tmp_path / "empty.zip").touch()
    with pytest.raises(ValueError, match=r"expected data, .*empty.zip' is empty"):
        open_dataset(tmp_path / "empty.zip")
    good = picture(COLOUR[0])
    for name, data in {"cut": good[:-30], "text": b"text", "none": b""}.items():
        with pytest.raises(ValueError, match=rf"or GIF image, .*{name}.png\]'") as info:
            open_dataset(_zip(tmp_path / "a.zip", {f"{name}.png": data}))
        assert "object at" not in str(info.value)


def test_names_and_links_that_leave_the_folder_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked to disk: such names are names, and a link holds no image."""
    folder = tmp_path / "inside"
    folder.mkdir()
    names = ("../a", "/etc/a", "a/../../b", "x\\..\\a", "c:\\a")
    members = {name: picture(COLOUR[i]) for i, name in enumerate((*names, *"567890"))}
    data = open_dataset(_zip(folder / "a.zip", {f"{name}.png": d for name, d in members.items()}))
    assert _every(data) == sorted(COLOUR[:11].transpose(0, 3, 1, 2).reshape(11, -1).tolist())
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "a.zip", "a") as archive:
        archive.writestr(link, b"/etc/passwd")
    with pytest.raises(ValueError, match=r"or GIF image, .*link.png"):
        open_dataset(folder / "a.zip")
    assert [file.name for file in tmp_path.rglob("*")] == ["inside", "a.zip"]


def test_encryption_and_rare_packing_are_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a.png": picture(COLOUR[0])})
    data = bytearray(path.read_bytes())
    for header, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(header) + at] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"without a password, .*a.png\]' is encrypted; unpack"):
        open_dataset(path)
    _zip(path, {"a.png": b""}, zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="packed in a rare way"):
        open_dataset(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {f"{i}.png": picture(COLOUR[i]) for i in range(11)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("3.png", picture(COLOUR[4]))
    with pytest.raises(ValueError, match=r"each name once, .*3\.png.* comes twice"):
        open_dataset(path)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALL_BYTES", 1 << 20)
    path = _zip(tmp_path / "a.zip", {"a.png": bytes(4 << 20)})
    with pytest.raises(ValueError, match=r"at most 1,048,576 bytes, .*a.png\]' has 4,194,304"):
        open_dataset(path)
    lie = bytearray(path.read_bytes())
    at = lie.index(b"PK\1\2") + 24  # The size that the directory states.
    lie[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(bytes(lie))
    with pytest.raises(ValueError, match=r"expected a zip archive.*BadZipFile"):
        open_dataset(path)
    many = {f"{i}.png": bytes(600_000) for i in range(2)}
    monkeypatch.setattr(images, "decode", lambda *_: np.zeros((1, 1, 1), np.uint8))
    with pytest.raises(ValueError, match=r"1.png\]' has 600,000"):
        open_dataset(_zip(tmp_path / "many.zip", many))


def test_images_that_grow_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = picture(np.zeros((200, 200, 3), np.uint8))
    path = _zip(tmp_path / "a.zip", {f"{i}.png": flat for i in range(12)})
    assert len(open_dataset(path).train) == 10
    monkeypatch.setattr(images, "MAX_SMALL", 1_000_000)
    with pytest.raises(ValueError, match=r"12 like .*0.png\]'.* take 1,920,000; give"):
        open_dataset(path)
    assert open_dataset(path, image_size=10).event_shape == (3, 10, 10)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 39_999)
    with pytest.raises(ValueError, match=r"at most 39,999 pixels, .* has 200 x 200; make it smal"):
        open_dataset(path)


def test_missing_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _tree(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install 'diffflow_ext\[data\]'"):
        open_dataset(folder)
