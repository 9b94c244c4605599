"""Damaged and hostile files: only the package's own errors, and nothing is ever executed."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from data_files import BATCHES, idx, picture, saved, tarred, zipped
from watching import opened

from diffflow_ext.data import open_dataset
from diffflow_ext.data.formats.cifar import read_cifar

# Every message says what was expected and how to mend it.
OURS = re.compile(r"^[a-z0-9_]+: expected .*; ", re.DOTALL)
RNG = np.random.default_rng(20)


KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def framed(rows: np.ndarray, kind: str) -> bytes:
    """What pandas writes of rows."""
    frame, stream = pandas.DataFrame(rows, columns=["a", "b"]), io.BytesIO()
    getattr(frame, f"to_{kind}")(stream)
    return stream.getvalue()


def classes(names: list[str]) -> bytes:
    """A table of classes as in the data sets of EDM."""
    return json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]}).encode()


def corpus() -> dict[str, bytes]:
    """Small valid files of every format, by the names that give the format away."""
    digits = RNG.integers(0, 256, (12, 3, 3), dtype=np.uint8)
    pixels = RNG.integers(0, 256, (1, 3072), dtype=np.uint8)
    record = bytes([3]) + pixels.tobytes()
    batch = {b"batch_label": b"training", b"labels": [3], b"data": pixels, b"filenames": [b"a"]}
    rows = RNG.normal(size=(24, 2))
    images = RNG.integers(0, 256, (12, 3, 3, 3), dtype=np.uint8)
    members = {f"{i}.png": picture(image) for i, image in enumerate(images[:11])}
    batches = tarred({f"c/{stem}.bin": 2 * record for stem in BATCHES})
    return {
        "x-idx3-ubyte": idx(digits),
        "x-idx3-ubyte.gz": gzip.compress(idx(digits), mtime=0),
        "data_batch_1.bin": record,
        "data_batch_1": pickle.dumps(batch, 2),
        "a.npy": saved(np.save, rows),
        "images.npy": saved(np.save, images),
        "a.npz": saved(np.savez_compressed, rows),
        "images.npz": saved(np.savez, images),
        "a.csv": ("a,b\n" + "".join(f"{x:.3f},{y:.3f}\n" for x, y in rows)).encode(),
        "a.dat": ("@relation a\n" + "".join(f"{x:.3f},{y:.3f},g\n" for x, y in rows)).encode(),
        "a.txt": "".join(f"{x:.3f} {y:.3f}\n" for x, y in rows).replace(".", ",").encode(),
        "a.csv.xz": lzma.compress("".join(f"{x:.3f},{y:.3f}\n" for x, y in rows).encode()),
        "a.parquet": framed(rows, "parquet"),
        "a.feather": framed(rows, "feather"),
        "a.zip": zipped({**members, "11.jpg": picture(images[11], "JPEG")}),
        "labelled.zip": zipped({**members, "dataset.json": classes([*members])}),
        "labelled.npz": saved(np.savez, x=images, y=np.arange(12)),
        **{f"x.{kind.lower()}": picture(images[11], kind) for kind in KINDS},
        "a.tar": batches,
        "a.tar.gz": gzip.compress(batches, mtime=0),
    }


def opener(name: str, folder: Path) -> Callable[[Path], object]:
    """How a file of this name is opened; batches of CIFAR-10 and pictures need neighbours."""
    if name.startswith("x."):
        for i in range(11):
            (folder / f"{i}.png").write_bytes(picture(np.full((3, 3, 3), i, np.uint8)))
        return lambda path: open_dataset(path.parent)
    if name.startswith("labelled"):
        return lambda path: open_dataset(path, condition="label")
    if not name.startswith("data_batch"):
        return open_dataset
    for stem in BATCHES[1:]:
        (folder / name.replace("data_batch_1", stem)).write_bytes(corpus()[name])
    return lambda path: read_cifar(path.parent)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flips, overwrites, repeats, removes or cuts; the first two most often."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        # Headers, where a byte decides most, lie at the front and, in archives, at the back.
        at = int(rng.random() * min(len(out), rng.choice((32, 256, 1 << 30))))
        at = len(out) - 1 - at if rng.random() < 0.3 else at
        kind, few = rng.randrange(12), rng.randint(1, 15)
        if kind < 5:
            out[at] ^= 1 << rng.randrange(8)
        elif kind < 9:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 9:
            out[at:at] = out[at : at + few]
        elif kind == 10:
            del out[at : at + few]
        else:
            del out[max(at, 1) :]
    return bytes(out)


def outcome(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except (ValueError, TypeError, FileNotFoundError) as error:
        message = str(error)
    else:
        return "read"
    assert OURS.match(message), message
    return "refused"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: on a disk, opening files takes most of the time."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


NAMES = list(corpus())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [220, pytest.param(2_000, marks=pytest.mark.slow)])
def test_damaged_files(scratch: Path, name: str, count: int) -> None:
    data, rng = corpus()[name], random.Random(name)
    path, read, refused = scratch / name, opener(name, scratch), 0
    path.write_bytes(data)
    assert outcome(read, path) == "read"
    for _ in range(count):
        content = mutated(data, rng)
        path.write_bytes(content)
        try:
            refused += outcome(read, path) == "refused"
        except Exception as error:
            raise AssertionError(f"{name} with the bytes {content.hex()}") from error
    assert refused > count / 11


# Formats whose last rows or padding may be missing without a trace.
TEXTS = ("a.csv", "a.dat", "a.txt")
LAST_ROWS = (*TEXTS, "a.tar", "a.tar.gz", "x.png", "x.bmp", "x.gif")


@pytest.mark.parametrize("name", NAMES)
def test_every_cut(scratch: Path, name: str) -> None:
    """A file that ends too early is refused, however early that is."""
    data, path = corpus()[name], scratch / name
    read = opener(name, scratch)
    last = 80 if name in TEXTS else 1
    for size in sorted(
        {*range(64), *range(0, len(data), 1 + len(data) // 100), *range(len(data) - 64, len(data))}
    ):
        if size > len(data) - last:
            continue
        path.write_bytes(data[:size])
        assert outcome(read, path) == "refused" or name in LAST_ROWS, size


# --- code in files -------------------------------------------------------------------------------


class Payload:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (self.command,)


def hostile(folder: Path, canary: Path) -> list[Path]:
    """Files that would create the canary if anything in them were executed or extracted."""
    folder.mkdir()
    payload = Payload(f"touch {canary}")
    objects = np.array([[payload]] * 12, object)
    png = picture(np.zeros((3, 3), np.uint8))
    files = {
        "objects.npy": saved(np.save, objects),
        "objects.npz": saved(np.savez, objects),
        "pickle.npy": pickle.dumps(payload),
        "pickle.csv": pickle.dumps(payload, 0),
        "pickle.zip": pickle.dumps(payload),
        "pickle-idx3-ubyte": pickle.dumps(payload),
        "slip.zip": zipped({**{f"{i}.png": png for i in range(12)}, "../canary.png": png}),
        "root.zip": zipped({f"/{canary}.png": png}),
        "slip.tar": tarred({"../canary": b"1", str(canary): b"1"}),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for name, batch in {"py2": payload, "py3": {b"data": payload, b"labels": [payload]}}.items():
        (folder / name).mkdir()
        for stem in BATCHES:
            (folder / name / stem).write_bytes(pickle.dumps(batch, 2))
    members = {f"c/{stem}": pickle.dumps(payload, 2) for stem in BATCHES}
    (folder / "py.tar").write_bytes(tarred(members))
    (folder / "gas").mkdir()
    (folder / "gas" / "ethylene_CO.pickle").write_bytes(pickle.dumps(payload))
    named = [folder / name for name in (*files, "py2", "py3", "py.tar")]
    return [*named, folder / "gas", folder / "gas" / "ethylene_CO.pickle"]


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    paths = hostile(tmp_path / "files", canary)
    before = set(tmp_path.rglob("*"))
    control = next(path for path in paths if path.suffix == ".pickle")
    # Importing pandas and the readers of images runs code and loads libraries.
    imports = (
        "import numpy, pandas, PIL.Image\n"
        "from diffflow_ext.data import open_dataset\nPIL.Image.init()"
    )
    outcomes = opened(imports, "open_dataset", paths, control)
    # Names in an archive that lead out of it are nothing but names.
    assert outcomes.pop(str(tmp_path / "files" / "slip.zip")) == "read"
    for path, text in outcomes.items():
        assert re.match(r"(ValueError|TypeError|Refused): [a-z_]+: expected ", text), (path, text)
    # The control alone has left its mark.
    assert set(tmp_path.rglob("*")) - before == {canary}
