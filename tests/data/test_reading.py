"""Reading: regular files alone, within a limit, and never a wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import special_files

from diffflow_ext.data import open_dataset
from diffflow_ext.data.formats import reading
from diffflow_ext.data.formats.reading import open_file, read_bytes, read_file

#: One name for each reader.
NAMES = (
    *("a.npy", "a.npz", "a.csv", "a.dat", "a.csv.gz", "a.zip", "a.tar", "a.tar.gz"),
    "a-idx3-ubyte",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_reader_opens_what_is_no_regular_file(tmp_path: Path, name: str) -> None:
    """A pipe would wait forever, a device or a file of /proc might never end."""
    path = tmp_path / name

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=rf"^[a-z_]+: expected .*{message}.*; "):
            open_dataset(path)
        path.unlink()

    os.mkfifo(path)
    refused("device or pipe at")
    for target, message in {
        "/dev/zero": "device or pipe at",
        "/proc/self/environ": "is empty",
        "/nothing": "leads nowhere",
        path.name: "leads nowhere",
    }.items():
        path.symlink_to(target)
        refused(message)
    path.touch()
    refused("is empty")


def test_a_file_is_read_to_the_size_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that grows while it is read does not fill the memory."""
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_file("test", path, 5) == b"12345"
    with pytest.raises(ValueError, match=r"at most 4 bytes, .* has 5"):
        read_file("test", path, 4)
    monkeypatch.setattr(reading, "check_size", lambda *_: path.write_bytes(b"12345" * 100))
    assert read_file("test", path) == b"12345"


def test_links_that_lead_nowhere_are_called_so(tmp_path: Path) -> None:
    for name, target in {"a": "b", "c": "c"}.items():
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FileNotFoundError, match=f"a link that leads nowhere at '.*{name}'"):
            read_file("test", tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"found nothing at '.*d'; check the path"):
        read_file("test", tmp_path / "d")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", special_files.KINDS)
def test_what_is_no_regular_file_is_named(tmp_path: Path, kind: str) -> None:
    special_files.replace(tmp_path / "x", kind)
    with pytest.raises((ValueError, FileNotFoundError), match=r"read: expected a file, .*'; \w+"):
        read_bytes("read", tmp_path / "x", hint="give another")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_file_that_is_replaced_after_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    special_files.replace(tmp_path / "x", kind)
    monkeypatch.setattr(reading, "check_file", lambda *_, **__: None)
    with pytest.raises(ValueError, match="got something else at"):
        open_file("read", tmp_path / "x")


def test_links_to_files_are_read_and_limits_hold(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_bytes("read", tmp_path / "link", 3) == b"abc"
    with pytest.raises(ValueError, match=r"at most 2 bytes, .* has 3; give less"):
        read_bytes("read", tmp_path / "link", 2, "give less")
    (tmp_path / "x").write_bytes(b"")
    assert read_bytes("read", tmp_path / "x") == b""
    with pytest.raises(ValueError, match="is empty"):
        read_file("read", tmp_path / "x")
