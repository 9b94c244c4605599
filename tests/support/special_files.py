"""What may stand where a file is expected: links, pipes, sockets, folders."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _socket(path: Path) -> None:
    # The name of a socket may have 107 characters; that of a file next to a test's has more.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def _loop(path: Path) -> None:
    other = path.with_name(f"{path.name}.loop")
    other.symlink_to(path)
    path.symlink_to(other)


#: Makes one of each kind at a path where nothing is.
KINDS: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": _socket,
    "loop": _loop,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "endless": lambda path: path.symlink_to("/dev/zero"),
}


def replace(path: Path, kind: str) -> None:
    """Puts one of a kind in the place of a file, a folder or nothing."""
    if os.path.lexists(path):
        path.rename(path.with_name(f"{path.name}.before"))
    KINDS[kind](path)
