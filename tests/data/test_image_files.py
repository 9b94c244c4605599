"""Folders and zip archives of images, and archives that mean harm."""

from __future__ import annotations

import os
import socket
import struct
import tracemalloc
import zipfile
import zlib
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
    with pytest.raises(ValueError, match=r"expected PNG.* among 1 files, such as '.*b.zip\]'"):
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
    with pytest.raises(ValueError, match=r"12 like .*0.png\]'.* take 2,080,000; give"):
        open_dataset(path)
    assert open_dataset(path, image_size=10).event_shape == (3, 10, 10)
    monkeypatch.setattr(images, "MAX_SMALL", 600_000)
    with pytest.raises(ValueError, match=r"take 643,600; make each file smaller first, or use f"):
        open_dataset(path, image_size=10)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 39_999)
    with pytest.raises(ValueError, match=r"at most 39,999 pixels, .* has 200 x 200; make it smal"):
        open_dataset(path)


def test_only_pictures_of_a_folder_are_read_and_all_of_them(tmp_path: Path) -> None:
    """Of every kind and in upper case, in folders and links to files; hidden ones never."""
    folder = tmp_path / ".data" / "images"  # Only what lies in the folder can be hidden.
    (folder / "deep" / "er").mkdir(parents=True)
    kinds = {"png": "PNG", "TIF": "TIFF", "gif": "GIF", "Bmp": "BMP", "tiff": "TIFF", "dib": "BMP"}
    for i, (suffix, kind) in enumerate(2 * list(kinds.items())):
        name = f"{'deep/er/' * (i % 2)}{i:02}.{suffix}"
        (folder / name).write_bytes(picture(COLOUR[i], kind))
    (tmp_path / "away").write_bytes((folder / "00.png").read_bytes())
    (folder / "00.png").unlink()
    (folder / "00.png").symlink_to(tmp_path / "away")
    hidden = ("__MACOSX/._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/c.png", "@eaDir/d.jpg")
    for name in (*hidden, "._b.png", ".DS_Store", "Thumbs.db", "labels.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    found = open_dataset(folder)
    assert _every(found) == sorted(COLOUR.transpose(0, 3, 1, 2).reshape(12, -1).tolist())
    (note,) = found.notes
    assert note.startswith("2 files of other kinds, such as ")
    files = [file for file in folder.rglob("*") if file.is_file()]
    members = {f"./{file.relative_to(folder)}": file.read_bytes() for file in files}
    archive = _zip(tmp_path / "i.zip", members)
    assert open_dataset(archive).fingerprint == open_dataset(folder).fingerprint


@pytest.mark.parametrize("name", ["a.heic", "b.PPM", "c.avif", "d/e.jp2"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = _tree(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"1")
    for source in (folder, _zip(tmp_path / "a.zip", {name: b"1"})):
        with pytest.raises(ValueError, match=rf"{name}\]?' is a picture of another kind; convert"):
            open_dataset(source)


def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path) -> None:
    """A pipe would wait forever, a device never ends; links and loops lead there or nowhere."""
    folder = _tree(tmp_path)
    place = folder / "x.png"

    def refused(message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_dataset(folder)
        place.unlink()

    os.mkfifo(place)
    refused(r"device or pipe at '.*x.png'")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        refused(r"device or pipe at '.*x.png'")
    for target, message in {
        "/dev/zero": "device or pipe at '.*x.png'",
        "/proc/self/environ": "'.*x.png' is empty",
        "/nothing": "a link that leads nowhere at '.*x.png'",
        "x.png": "a link that leads nowhere at '.*x.png'",
        "class0": r"'.*x.png' is a link to a folder, which is not followed; put a copy",
        ".": "is a link to a folder",
    }.items():
        place.symlink_to(target)
        refused(message)
    (folder / "pipe").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")  # is no picture, and is not opened
    assert len(open_dataset(folder).train) == 10


def test_a_folder_of_other_files_is_left_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the whole disk would be; a text beside each image is no reason to leave."""
    folder = _tree(tmp_path)
    for file in list(folder.rglob("[!.]*.[pP]*")):
        file.with_suffix(".txt").touch()
    monkeypatch.setattr(images, "MAX_OTHERS", 12)
    assert len(open_dataset(folder).train) == 10
    (tmp_path / "many").mkdir()
    for i in range(40):
        (tmp_path / "many" / f"{i}.txt").touch()
    (tmp_path / "many" / "link").symlink_to(folder)  # is not what is wrong
    with pytest.raises(ValueError, match=r"many' has only 0 among the first 13 files; name the"):
        open_dataset(tmp_path / "many")


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scandir = _tree(tmp_path), os.scandir

    def refuse(path: Path) -> object:
        if path.name == "class1":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"class1' gives PermissionError: Permission denied"):
        open_dataset(folder)


@pytest.mark.slow
def test_folders_as_deep_as_the_system_allows(tmp_path: Path) -> None:
    folder = _tree(tmp_path)
    at = os.open(folder, os.O_RDONLY)
    for _ in range(1_100):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        assert len(open_dataset(folder).train) == 10
    finally:  # pytest cannot remove folders so deep: each takes the place of the one above.
        while (folder / "d" / "d").exists():
            (folder / "d" / "d").rename(folder / "e")
            (folder / "d").rmdir()
            (folder / "e").rename(folder / "d")


def test_images_that_can_t_be_made_larger_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"from 1 to 5, .*never larger \(the image '.*00.PNG'\)"):
        open_dataset(_tree(tmp_path), image_size=8)


def test_grey_images_before_the_first_with_colour(tmp_path: Path) -> None:
    members = {f"{i:02}.png": picture(COLOUR[i, :, :, 0]) for i in range(12)}
    members["05.png"] = picture(COLOUR[5])
    data = open_dataset(_zip(tmp_path / "a.zip", members))
    expected = np.repeat(COLOUR[..., :1], 3, axis=3)
    expected[5] = COLOUR[5]
    assert _every(data) == sorted(expected.transpose(0, 3, 1, 2).reshape(12, -1).tolist())


def test_memory_is_that_of_one_array(tmp_path: Path) -> None:
    """Bytes of NumPy, counted: what Pillow decodes comes on top, one image at a time."""
    pixels = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    data = picture(pixels)
    path = _zip(tmp_path / "a.zip", {f"{i}.png": data for i in range(40)}, zipfile.ZIP_STORED)
    images.read_image_zip(path)  # Loads what Pillow needs.
    tracemalloc.start()
    try:
        held = images.read_image_zip(path)[0].nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < held + 16 * pixels.size


def test_bombs_of_pixels_are_refused_by_their_headers(tmp_path: Path) -> None:
    """Five flat images of 8192 x 8192 in a few kilobytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 8192, 8192, 8, 2, 0, 0, 0)
    flat = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header))
    flat += b"\0\0\0\0IDAT"  # Pixels would follow; they are never asked for.
    path = _zip(tmp_path / "a.zip", {f"{i}.png": flat for i in range(5)})
    with pytest.raises(ValueError, match=r"1,073,741,824 bytes of memory, 5 like .* 8192 x 8192"):
        open_dataset(path)


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    folder = _tree(tmp_path)
    os.truncate(folder / "class0" / "02.png", 1 << 33)
    with pytest.raises(ValueError, match=r"at most 536,870,912 bytes, .* has 8,589,934,592"):
        open_dataset(folder)
