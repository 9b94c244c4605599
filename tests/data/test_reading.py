"""Reading: regular files alone, within a limit, and never a wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import special_files

from diffflow_ext.data.formats import reading
from diffflow_ext.data.formats.reading import open_file, read_bytes, read_file


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
    monkeypatch.setattr(reading, "check_file", lambda *arguments: None)
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
