"""Pictures of each kind, depth and orientation, and those that are refused."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from data_files import picture
from PIL import Image

from diffflow_ext.data.formats.pictures import decode, is_hidden

RNG = np.random.default_rng(6)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def _welcome(*_: object) -> None:
    """Any size is welcome."""


def _decoded(data: bytes) -> np.ndarray:
    return decode(data, "a.png", _welcome)


def _written(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 8 or 16 bits, as the standard has it, without Pillow."""
    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(raw),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_kinds_without_loss(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind not in ("GIF", "WEBP"):  # which have no grey
        assert np.array_equal(_decoded(_written(Image.fromarray(GREY), kind)), GREY[None])
    found = _decoded(_written(Image.fromarray(COLOUR), kind, **options))
    assert np.array_equal(found, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
def test_sixteen_bits_keep_their_upper_byte(colour_type: int) -> None:
    """8-bit values come back however they were spread over 16.

    Of the standard's types 0 is grey, 2 RGB, 4 and 6 have alpha; Pillow opens type 4 as RGB.
    """
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    alpha = colour_type > 2
    values = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    if alpha:
        values[..., -1] = 65535
    found = _decoded(png(values, colour_type))
    expected = (values[..., : channels - alpha] // 256).transpose(2, 0, 1)
    assert len(found) == (1 if colour_type == 0 else 3)
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))
    eight = np.broadcast_to(np.arange(256), (2, 256))
    for spread in (eight * 256, eight * 257):
        assert np.array_equal(_decoded(png(spread.astype(np.uint16), 0))[0], eight)


def test_sixteen_bits_in_tiff() -> None:
    for order in ("<", ">"):
        image = Image.fromarray(DEEP.astype(f"{order}u2"))
        assert np.array_equal(_decoded(_written(image, "TIFF"))[0], DEEP // 256)


def _tiff(bits: int, photometric: int) -> bytes:
    """A grey TIFF of 2 x 2 pixels."""
    values = {256: 2, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2, 279: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    header = b"II*\0" + struct.pack("<I", 16) + bytes(range(241, 249))
    return header + struct.pack("<H", len(values)) + entries + bytes(4)


def test_other_depths_are_refused() -> None:
    """32-bit numbers, 12 bits in 16, white as 0, and 16-bit values that would all be black."""
    flat = np.full((5, 7), 200)
    assert _decoded(_tiff(16, 1)).shape == (1, 2, 2)
    for data, message in {
        _written(Image.fromarray(GREY.astype(np.float32)), "TIFF"): "mode 'F'",
        _written(Image.fromarray(GREY.astype(np.int32)), "TIFF"): "mode 'I'",
        _tiff(12, 1): "mode 'I;16'",
        _tiff(16, 0): "mode 'I;16'",
        png(flat.astype(np.uint16), 0): "'a.png' end at 200, which is nearly black; scale",
        png(20 * flat.astype(np.uint16), 0): "'a.png' end at 4000, which is nearly black; scale",
    }.items():
        with pytest.raises(ValueError, match=message) as info:
            _decoded(data)
        assert "in 8 bits" in str(info.value)
    assert not _decoded(png(0 * DEEP, 0)).any()


def test_one_bit_palettes_and_cmyk() -> None:
    bits = GREY > 99
    assert np.array_equal(_decoded(_written(Image.fromarray(bits)))[0], 255 * bits)
    image = Image.frombytes("P", (7, 5), (GREY % 4).tobytes())  # PNG, GIF and BMP of 2 to 8 bits
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    image.putpalette(colours.tobytes())
    expected = colours[GREY % 4].transpose(2, 0, 1)
    for kind in ("PNG", "GIF", "BMP"):
        assert np.array_equal(_decoded(_written(image, kind)), expected), kind
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # cyan ink alone
    for kind in ("TIFF", "JPEG"):
        assert np.abs(_decoded(_written(ink, kind))[:, 0, 0] - [0.0, 255, 255]).max() < 3, kind


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "P"])
def test_transparent_pixels_lie_over_white(mode: str) -> None:
    """By the formula of opacity: a x + (1 - a) 255; grey stays grey."""
    if mode in ("L", "P"):  # one value is transparent
        image = Image.frombytes(mode, (2, 1), b"\x0a\x14")
        if mode == "P":
            image.putpalette(bytes(range(256)) * 3)
        found = _decoded(_written(image, transparency=10))
        assert found.shape[0] == (1 if mode == "L" else 3)
        assert (found[:, 0, 0] == 255).all()
        return
    channels = len(mode)
    pixels = RNG.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    alpha = pixels[..., -1:] / 255.0
    expected = (alpha * pixels[..., :-1] + (1 - alpha) * 255).transpose(2, 0, 1)
    found = _decoded(_written(Image.fromarray(pixels)))
    assert found.shape == (channels - 1, 5, 7)
    assert np.abs(found - expected).max() <= 1.0  # of rounding


#: What EXIF says of each orientation: where the stored rows and columns begin in the picture.
STORED_AS = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.T,  # row 0 is the left side, column 0 the top
    6: lambda shown: shown[:, ::-1].T,  # row 0 is the right side, column 0 the top
    7: lambda shown: shown[::-1, ::-1].T,  # row 0 is the right side, column 0 the bottom
    8: lambda shown: shown[::-1].T,  # row 0 is the left side, column 0 the bottom
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_pictures_are_turned_as_exif_says(kind: str, orientation: int) -> None:
    shown = np.zeros((16, 32), np.uint8)
    shown[:8, :8], shown[:8, 24:] = 80, 160
    stored = np.ascontiguousarray(STORED_AS[orientation](shown))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = _decoded(_written(Image.fromarray(stored), kind, exif=exif, quality=95))[0]
    assert found.shape == shown.shape
    assert np.abs(found - shown.astype(float)).max() < 8


def test_orientations_that_say_nothing() -> None:
    """Damaged EXIF, or a ninth orientation, leave a picture as it lies."""
    data = picture(GREY)
    end = data.index(b"IDAT") - 4
    ninth = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0\0\0\0\0"
    for text in (b"II*\0\xff\xff\xff\xff", b"no exif", ninth):
        chunk = struct.pack(">I", len(text)) + b"eXIf" + text
        chunk += struct.pack(">I", zlib.crc32(b"eXIf" + text))
        assert np.array_equal(_decoded(data[:end] + chunk + data[end:])[0], GREY)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_several_frames_are_refused(kind: str) -> None:
    images = [Image.fromarray(np.full((5, 7, 3), value, np.uint8)) for value in (0, 200)]
    data = _written(images[0], kind, save_all=True, append_images=images[1:])
    with pytest.raises(ValueError, match=r"one picture a file, 'a.png' has several frames"):
        _decoded(data)


def test_a_camera_s_jpeg_with_a_preview_is_read() -> None:
    images = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (50, 200)]
    data = _written(images[0], "MPO", save_all=True, append_images=images[1:])
    assert np.abs(_decoded(data) - 50.0).max() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_what_is_cut_or_no_picture_is_named(kind: str) -> None:
    data = picture(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), kind)
    for bad in (data[: len(data) // 2], data[:20], b"", b"text"):
        with pytest.raises(ValueError, match=r"or GIF image, 'a.png' cannot be read") as info:
            _decoded(bad)
        assert "0x" not in str(info.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_no_cut_changes_a_pixel(kind: str) -> None:
    """A picture that ends too early is refused, unless all its pixels are there."""
    data = picture(COLOUR, kind)
    whole, refused = _decoded(data), 0
    for size in range(len(data)):
        try:
            assert np.array_equal(_decoded(data[:size]), whole), size
        except ValueError:
            refused += 1
    assert refused > len(data) - 25  # the end mark of PNG, padding of BMP


def test_the_size_is_checked_before_a_pixel_is_decoded() -> None:
    """The header alone is there: decoding would fail otherwise."""
    header = png(np.zeros((300, 400), np.uint8), 0)[:33]
    seen: list[tuple[object, ...]] = []

    def check(*arguments: object) -> None:
        seen.append(arguments)
        raise MemoryError

    with pytest.raises(MemoryError):
        decode(header + png(GREY, 0)[33:60], "b.png", check)
    assert seen == [("b.png", 400, 300, 1)]


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        *[("a.png", False), ("./a.png", False), ("../a.png", False), ("a..b/c.png", False)],
        *[(".a.png", True), ("a/._b.png", True), (".ipynb_checkpoints/a.png", True)],
        *[("__MACOSX/a.png", True), ("a/@eaDir/b.png", True), ("a\\.b\\c.png", True)],
    ],
)
def test_hidden_names(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden


def test_pillow_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install 'diffflow_ext\[data\]'"):
        _decoded(picture(GREY))
