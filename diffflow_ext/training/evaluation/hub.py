"""Runs in repositories of the Hugging Face Hub, by the library huggingface_hub."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffflow_ext.data.formats.reading import MAX_BYTES

from ..store.folders import GROUPS
from .card import LIBRARY

#: What is replaced in a repository: files of an earlier run there would be taken for this one's.
REPLACED = ["checkpoints/*", "evaluation.json"]
_BESIDE = ("README.md", "config.toml", "evaluation.json")
_OF_CHECKPOINT = re.compile(
    rf"checkpoints/step-(\d{{8,18}})/(manifest\.json|({'|'.join(GROUPS)})\.safetensors)", re.ASCII
)


def hub_library(op: str) -> Any:
    """Imports huggingface_hub, or raises an ImportError that says how to install it."""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":  # It is there, and one of its own imports failed.
            raise
        raise ImportError(
            f"{op}: expected the package huggingface_hub, which speaks with the Hub, and it is not"
            " installed; run: pip install 'diffflow_ext[hub]'",
            name=error.name,
        ) from error


def push(write: Callable[[Path], None], repo_id: str, **options: Any) -> str:
    """Uploads the files that `write` puts into a folder, in one commit; returns its address.

    Options and errors are those of ``huggingface_hub.ModelHubMixin.push_to_hub``.
    """

    class Model(hub_library("push_to_hub").ModelHubMixin):
        def _save_pretrained(self, save_directory: Path) -> None:
            write(save_directory)

    done = Model().push_to_hub(repo_id, **{"delete_patterns": REPLACED, **options})
    return str(getattr(done, "commit_url", done))  # Some versions return the commit.


def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Downloads the files of a run, and no others, into the cache of the Hub; returns the folder.

    Arguments are those of ``huggingface_hub.snapshot_download``.

    Raises:
        ImportError: If huggingface_hub is missing.
        OSError: If the repository or the cache can't be reached, or holds no run.
    """
    api = hub_library("from_pretrained").HfApi(token=token)
    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    files = ["*"]
    try:
        if not local_files_only:
            found = api.model_info(name, revision=revision, files_metadata=True).siblings or []
            sizes = {file.rfilename: file.size or 0 for file in found}
            files = files_of_run(sizes)
            options["force_download"] = force_download
        return Path(
            api.snapshot_download(
                name, allow_patterns=files, local_files_only=local_files_only, **options
            )
        )
    # Which errors the library and those below it raise differs between their versions.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"from_pretrained: expected the folder of a run, or a repository of the Hub with one,"
            f" got {name!r}: {text}"
        ) from error


def files_of_run(sizes: Mapping[str, int]) -> list[str]:
    """Returns which of the files of a repository are those of its newest run.

    Raises:
        ValueError: If they aren't all there, or are larger than any file that is read.
    """
    steps = {found[1] for found in map(_OF_CHECKPOINT.fullmatch, sizes) if found}
    if not steps or "config.toml" not in sizes:
        raise ValueError(f"its files are no run that {LIBRARY} has saved")
    newest = f"checkpoints/step-{max(steps, key=int)}/"
    files = [
        name
        for name in sizes
        if name in _BESIDE or (name.startswith(newest) and _OF_CHECKPOINT.fullmatch(name))
    ]
    total = sum(sizes[name] for name in files)
    if total > MAX_BYTES:
        raise ValueError(f"its run has {total:,} bytes, expected at most {MAX_BYTES:,}")
    return files
