"""A browser without a window, and a server of this machine for its pages."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium on the PATH")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Gives the address of a folder's pages, and the list of paths that are asked for."""
    asked = list[str]()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def browse(url: str, folder: Path) -> tuple[str, str]:
    """Returns the page after its scripts have run, and what they wrote to the console."""
    assert BROWSER is not None
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    words += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *words, url], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout, "\n".join(re.findall(r".*CONSOLE.*", done.stderr))
