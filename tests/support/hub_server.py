"""A server on this machine that answers as the Hugging Face Hub does, as far as runs need it.

It keeps repositories of models as mappings of paths to bytes, and takes large files by the LFS
protocol, which the Hub has beside its newer one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """The repositories, and what was asked of them, as methods and paths."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Files] = {}
        self.sizes: dict[str, int] = {}  # That are stated, where they aren't the true ones.
        self.stored: Files = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub to which huggingface_hub speaks, with a token, and without Xet storage."""
    from huggingface_hub import constants

    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        patch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", "hf_of_a_test")
        yield hub
        hub.shutdown()


def _commit_of(files: Files) -> str:
    """A hash of 40 digits that stands for the state of a repository."""
    text = "".join(f"{name} {hashlib.sha1(files[name]).hexdigest()}\n" for name in sorted(files))
    return hashlib.sha1(text.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
            self._file(self.server.repositories.get(found[1], {}), found[3])
        elif found := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+))?", path):
            self._repository(found[1], found[2] == "tree")
        else:
            self._answer({}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self._path(), self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_of_a_test":
            self._answer({"error": "Invalid user token."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.server.repositories.setdefault(name, {})
            self._answer({"url": f"{self.server.address}/{name}"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self._answer({"files": [_way(file["path"]) for file in json.loads(body)["files"]]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._answer({"objects": [self._place(o) for o in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({}, 404)

    def do_PUT(self) -> None:
        oid = self._path().rsplit("/", 1)[1]
        self.server.stored[oid] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.address}/store/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = _commit_of(files)
        address = f"{self.server.address}/{name}/commit/{commit}"
        self._answer({"commitUrl": address, "commitOid": commit, "success": True})

    def _repository(self, name: str, tree: bool) -> None:
        if name not in self.server.repositories:
            self._answer({"error": "Repository not found"}, 404, "RepoNotFound")
            return
        files = self.server.repositories[name]
        rows = [
            {
                "type": "file", "path": path, "rfilename": path, "oid": _blob(data),
                "blobId": _blob(data), "size": self.server.sizes.get(path, len(data)),
            }
            for path, data in files.items()
        ]  # fmt: skip
        whole = {"id": name, "modelId": name, "sha": _commit_of(files), "siblings": rows}
        self._answer(rows if tree else whole)

    def _file(self, files: Files, path: str) -> None:
        if path not in files:
            self._answer({}, 404, "EntryNotFound")
            return
        tag = f'"{_blob(files[path])}"'
        self._send(files[path], 200, {"ETag": tag, "X-Repo-Commit": _commit_of(files)})

    def _answer(self, value: Any, status: int = 200, error: str = "") -> None:
        headers = {"Content-Type": "application/json", "X-Error-Code": error}
        self._send(json.dumps(value).encode(), status, headers)

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob(data: bytes) -> str:
    """The hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _way(path: str) -> dict[str, Any]:
    """How a file is uploaded: as the Hub does, tensors by LFS."""
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}
