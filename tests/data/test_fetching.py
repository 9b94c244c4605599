"""Downloads, from a server of our own on the loopback address."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from data_files import idx

from diffflow_ext.data import FETCHABLE, FetchError, describe_sets, fetch, fetching, open_dataset

pooch = pytest.importorskip("pooch")


FILES = {
    f"{role}-{kind}-ubyte.gz": gzip.compress(idx(np.ones((count, *shape))), mtime=0)
    for role, count in (("train", 20), ("t10k", 10))
    for kind, shape in (("images-idx3", (3, 3)), ("labels-idx1", ()))
}


class Server:
    """Serves `files`, and notes which were asked for; `lost` bytes of each never come."""

    def __init__(self) -> None:
        self.files, self.asked, self.lost = dict(FILES), [], 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/mnist/")
                outer.asked.append(name)
                data = outer.files.get(name)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write((data or b"")[: len(data or b"") - outer.lost])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/mnist"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path / "home"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in FILES.items())
    source = fetching._Source(server.url, "".join(lines))
    monkeypatch.setitem(fetching._SOURCES, "mnist", source)
    yield server
    server.stop()


def test_files_arrive_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run: diffflow data fetch mnist"):
        open_dataset("mnist")
    folder = fetch("mnist")
    assert folder == tmp_path / "home" / "mnist"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert sorted(server.asked) == sorted(FILES)
    data = open_dataset("mnist")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [18, 2, 10]
    assert fetch("mnist") == folder
    assert len(server.asked) == len(FILES)


def test_files_that_are_missing_or_damaged_are_brought_anew(server: Server) -> None:
    folder = fetch("mnist")
    first, second, *_ = (folder / name for name in FILES)
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    server.asked.clear()
    fetch("mnist")
    assert server.asked == list(FILES)[:2]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES


def test_another_folder(server: Server, tmp_path: Path) -> None:
    assert fetch("mnist", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("case", ["other bytes", "no such file", "cut", "no server"])
def test_what_does_not_arrive_whole_leaves_nothing(server: Server, case: str) -> None:
    last = list(FILES)[-1]
    if case == "other bytes":
        server.files[last] += b"x"
    elif case == "no such file":
        del server.files[last]
    elif case == "cut":
        server.lost = 5
    else:
        server.stop()
    with pytest.raises(FetchError, match=r"^fetch: expected .* SHA-256 .*; check the network"):
        fetch("mnist")
    arrived = {"other bytes": 3, "no such file": 3, "cut": 0, "no server": 0}[case]
    folder = Path(os.environ["DIFFFLOW_DATA"], "mnist")
    assert {file.name for file in folder.iterdir()} == set(list(FILES)[:arrived])
    if case == "no server":
        server.__init__()  # For the fixture to stop.


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file in the way")
    with pytest.raises(FetchError, match=r"(Permission|NotADirectory|FileExists)\w*: .*DIFFFLOW"):
        fetch("mnist")


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"expected one of mnist, .*, got 'magic'; other sets"):
        fetch("magic")


def test_missing_pooch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'diffflow_ext\[data\]'"):
        fetch("mnist")


def test_hints_lead_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    described = describe_sets()
    for name, url in FETCHABLE.items():
        if name == "fashion-mnist" and Path("/usr/share/datasets/fashion-mnist").exists():
            continue
        assert described[name].endswith(
            f"; not here, run: diffflow data fetch {name} (from {url})"
        )


def test_the_sources_are_whole() -> None:
    for source in fetching._SOURCES.values():
        assert source.url.startswith("http")
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.digests.values())
