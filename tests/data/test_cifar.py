"""CIFAR-10: binary and Python batches, their archives, and pickles that want to do more."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import BATCHES, tarred

from diffflow_ext.data import open_dataset
from diffflow_ext.data.formats import reading
from diffflow_ext.data.formats.cifar import read_cifar

RNG = np.random.default_rng(10)
N = 4
PIXELS = {stem: RNG.integers(0, 256, (N, 3072), dtype=np.uint8) for stem in BATCHES}
LABELS = {stem: RNG.integers(0, 10, N).tolist() for stem in BATCHES}


def binary(stem: str) -> bytes:
    return np.c_[np.array(LABELS[stem], np.uint8), PIXELS[stem]].tobytes()


def python_2(stem: str) -> bytes:
    """Byte by byte what cPickle wrote: protocol 2, strings without encoding."""

    def short(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    raw = PIXELS[stem].tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + short(
        "b"
    )
    array += b"\x87Rq\x03(K\x01" + b"K" + bytes([N]) + b"M\x00\x0c\x86" + b"cnumpy\ndtype\nq\x04"
    array += short("u1") + b"K\x00K\x01\x87Rq\x05(K\x03" + short("|")
    array += (
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(raw)) + raw
    )
    labels = b"]q\x06(" + b"".join(b"K" + bytes([y]) for y in LABELS[stem]) + b"e"
    names = b"]q\x07(" + short("a.png") * N + b"e"
    items = short("batch_label") + short("training batch 1 of 5") + short("labels") + labels
    items += short("data") + array + b"tb" + short("filenames") + names
    return b"\x80\x02}q\x00(" + items + b"u."


def python_3(protocol: int) -> Callable[[str], bytes]:
    def write(stem: str) -> bytes:
        batch = {b"data": PIXELS[stem], b"labels": LABELS[stem], "filenames": ["ä.png"] * N}
        return pickle.dumps(batch, protocol)

    return write


WRITERS = {"bin": binary, "py2": python_2, **{f"py3-{p}": python_3(p) for p in (2, 3, 4)}}


def folder(path: Path, writer: str = "bin", **replaced: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for stem in BATCHES:
        data = replaced.get(stem, WRITERS[writer](stem))
        (path / (f"{stem}.bin" if writer == "bin" else stem)).write_bytes(data)
    return path


def archive(path: Path, writer: str, mode: str = "w:gz") -> Path:
    ending = ".bin" if writer == "bin" else ""
    members = {f"cifar/{stem}{ending}": WRITERS[writer](stem) for stem in BATCHES}
    path.write_bytes(tarred({"cifar/readme.html": b"hello", **members}, mode))
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_all_versions_hold_the_same_images(tmp_path: Path, writer: str) -> None:
    parts = read_cifar(folder(tmp_path, writer))
    train = np.concatenate([PIXELS[stem] for stem in BATCHES[:5]])
    assert np.array_equal(parts["train"].numpy(), train.reshape(-1, 3, 32, 32))
    assert np.array_equal(parts["test"].numpy(), PIXELS["test_batch"].reshape(-1, 3, 32, 32))
    assert parts["train_labels"].tolist() == [y for stem in BATCHES[:5] for y in LABELS[stem]]
    assert parts["test_labels"].tolist() == LABELS["test_batch"]


@pytest.mark.parametrize("writer", ["bin", "py2"])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archives_are_read_in_place(tmp_path: Path, writer: str, mode: str) -> None:
    path = archive(tmp_path / ("a.tar.gz" if mode == "w:gz" else "a.tar"), writer, mode)
    first = open_dataset(path)
    second = open_dataset(folder(tmp_path / "cifar-10-batches-py", "py2").parent)
    assert first.fingerprint == second.fingerprint
    assert first.flip
    assert first.event_shape == (3, 32, 32)
    assert [len(part) for part in (first.train, first.valid, first.test)] == [18, 2, 4]
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "cifar-10-batches-py"}


def test_cifar10_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"diffflow data fetch cifar10.*cs.toronto.edu/~kriz"
    ):
        open_dataset("cifar10")
    folder(tmp_path / "cifar-10-batches-bin")
    data = open_dataset("cifar10", image_size=16)
    assert (data.name, data.event_shape, data.flip) == ("cifar10", (3, 16, 16), True)
    archive(tmp_path / "cifar-10-binary.tar.gz", "bin")
    assert open_dataset("CIFAR10").train.shape == (18, 3, 32, 32)


def test_missing_and_cut_batches(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*data_batch_4.bin"):
        read_cifar(tmp_path)
    folder(tmp_path, data_batch_2=binary("data_batch_2")[:-1])
    with pytest.raises(ValueError, match=r"records of 3,073 bytes, .*data_batch_2.bin'.* 12,291"):
        read_cifar(tmp_path)
    folder(tmp_path, test_batch=binary("test_batch")[:3073])
    with pytest.raises(ValueError, match=r"of one size, .* hold 4, 4, 4, 4, 4, 1 images"):
        read_cifar(tmp_path)
    folder(tmp_path, data_batch_3=b"\x0a" + binary("data_batch_3")[1:])
    with pytest.raises(ValueError, match=r"image 0 .*data_batch_3.bin' has 10"):
        read_cifar(tmp_path)


def test_bad_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = archive(tmp_path / "a.tgz", "bin").read_bytes()
    path = tmp_path / "b.tgz"
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"expected gzip data, .*EOFError"):
        open_dataset(path)
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"expected a tar archive, .*ReadError"):
        open_dataset(path)
    for kind in (tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE):
        with tarfile.open(path, "w:gz") as tar:
            link = tarfile.TarInfo("data_batch_1.bin")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        with pytest.raises(ValueError, match=r"lacks data_batch_1, data_batch_2"):
            open_dataset(path)
    with tarfile.open(path, "w:gz") as tar:
        for name in ("a/data_batch_1.bin", "b/data_batch_1.bin"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="it has two"):
        open_dataset(path)
    monkeypatch.setattr(reading, "SMALL_BYTES", 1 << 20)
    with gzip.open(path, "wb") as stream:
        member = tarfile.TarInfo("other")
        member.size = 8 << 20
        stream.write(member.tobuf() + bytes(member.size))
    with pytest.raises(ValueError, match=r"at most 1,048,576 bytes .*it unpacks to more"):
        open_dataset(path)


def test_an_archive_of_other_images_is_told_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar.gz"
    path.write_bytes(tarred({f"{i}.png": b"1" for i in range(12)}, "w:gz"))
    with pytest.raises(ValueError, match=r"or unpack an archive of other images and name the fol"):
        open_dataset(path)


# --- pickles -------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


def malicious(canary: Path, protocol: int) -> dict[str, bytes]:
    """Pickles that create a file when they are loaded, in several disguises."""
    touch = Call(os.system, f"touch {canary}")
    batch = {b"data": PIXELS["data_batch_1"], b"labels": LABELS["data_batch_1"]}
    return {
        "alone": pickle.dumps(touch, protocol),
        "as label": pickle.dumps({**batch, b"labels": [touch]}, protocol),
        "eval": pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')"), protocol),
        "instance": b"\x80\x02" + f"(S'touch {canary}'\nios\nsystem\n.".encode(),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dump\x93.",
    }


CASES = [(name, p) for p in (0, 2, 4) for name in malicious(Path("/x"), p)]


@pytest.mark.parametrize(("name", "protocol"), CASES)
def test_malicious_pickles_do_nothing(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    data = malicious(canary, protocol)[name]
    folder(tmp_path / "f", "py2", data_batch_1=data)
    with pytest.raises(ValueError, match=r"asks for .*; nothing of it was executed|is none"):
        read_cifar(tmp_path / "f")
    assert not canary.exists()


def test_the_malicious_pickles_would_do_something(tmp_path: Path) -> None:
    """The test above is worth something: an ordinary load creates the file."""
    for name in ("alone", "as label", "eval", "instance"):
        canary = tmp_path / name.replace(" ", "-")
        pickle.loads(malicious(canary, 2)[name])
        assert canary.exists()


def test_the_four_names_are_only_names(tmp_path: Path) -> None:
    """None of them can be called otherwise than a batch does, nor given attributes."""
    reduce = b"cnumpy.core.multiarray\n_reconstruct\n"
    for program in (
        reduce + b"}b.",  # attributes for a function
        b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",  # an array of 2^31 bytes
        b"c_codecs\nencode\n(U\x01aU\x03hextR.",  # another codec
        b"cnumpy\ndtype\n)R.",
        b"(cnumpy\ndtype\n",
        b"}(}}u.",  # a key that is no text
        b"(((ttt}h\x00.",
    ):
        folder(tmp_path, "py2", data_batch_1=b"\x80\x02" + program)
        with pytest.raises(ValueError, match=r"^read_cifar: expected a pickle"):
            read_cifar(tmp_path)


def _batch(**changes: object) -> bytes:
    batch = {"data": PIXELS["data_batch_1"], "labels": LABELS["data_batch_1"], **changes}
    return pickle.dumps({k: v for k, v in batch.items() if v is not None}, 2)


BAD_BATCHES = {
    "no data": (_batch(data=None), r"'data' with shape \(n, 3072\)"),
    "no labels": (_batch(labels=None), "'labels' with 4 whole numbers"),
    "few labels": (_batch(labels=[1]), "'labels' with 4 whole numbers"),
    "text labels": (_batch(labels=["a"] * 4), "'labels' with 4 whole numbers"),
    "truth": (_batch(labels=[True] * 4), "'labels' with 4 whole numbers"),
    "large label": (_batch(labels=[1, 10, 2, 3]), r"image 1 .* has 10"),
    "huge label": (_batch(labels=[1, 2, 3, 10**6]), r"image 3 .* has 255"),
    "negative label": (_batch(labels=[1, -1, 2, 3]), r"image 1 .* has 255"),
    "narrow": (_batch(data=np.zeros((4, 3071), np.uint8)), r"holds \(4, 3071\)"),
    "one axis": (_batch(data=np.zeros(3072, np.uint8)), r"holds \(3072,\)"),
    "three axes": (_batch(data=np.zeros((4, 3, 1024), np.uint8)), "not stored row by row"),
    "fortran": (_batch(data=np.asfortranarray(PIXELS["test_batch"])), "not stored row by row"),
    "floats": (_batch(data=PIXELS["test_batch"] / 255.0), "other values than bytes"),
    "objects": (_batch(data=np.array([[None]])), "other values than bytes"),
    "empty": (pickle.dumps({"data": PIXELS["test_batch"][:0], "labels": []}, 3), "at least one"),
    "list": (pickle.dumps([1, 2], 2), "holds list"),
    "protocol 0": (pickle.dumps({"data": 1}, 0), "asks for the instruction"),
    "protocol 5": (pickle.dumps({"data": PIXELS["test_batch"]}, 5), "asks for the"),
    "cut": (_batch()[:-20], "ValueError"),
    "empty stack": (b"\x80\x02t.", "could not find MARK"),
    "no value": (b"\x80\x02.", "stack underflow"),
    "two values": (b"\x80\x02NN.", "holds NoneType"),
    "forgotten": (b"\x80\x02h\x07.", "taken twice, number 7"),
    "tuple twice": (b"\x80\x02)q\x00h\x00.", "taken twice, number 0"),
    "tuple over a text": (b"\x80\x04U\x01aq\x01U\x01aq\x01)\x94h\x01.", "taken twice, number 1"),
    "tuple twice, disguised": (b"\x80\x02U\x01aq\x000.", "the instruction POP"),
    "no state": (b"\x80\x02}U\x04datacnumpy\nndarray\n)Rs.", "an array without state"),
    "deep": (b"\x80\x02}N" + b"\x85" * 101 + b"Ns.", "101|100 tuples"),
    "tuple as a key": (b"\x80\x02}N\x85Ns.", "a key that is no text"),
    "long": (b"\x80\x02" + b"N" * 1_000_001 + b".", "more than 1,000,000 instructions"),
    "memory": (b"\x80\x02}r\xff\xff\xff\xff.", "a value stored under 4,294,967,295"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches(tmp_path: Path, case: str) -> None:
    data, message = BAD_BATCHES[case]
    folder(tmp_path, "py2", data_batch_1=data)
    with pytest.raises(ValueError, match=message) as info:
        read_cifar(tmp_path)
    assert str(info.value).startswith("read_cifar: expected ")
    assert ";" in str(info.value)
