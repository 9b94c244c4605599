"""Executes the notebooks of docs/notebooks and writes what they give as pages of the site.

    python -m benchmarks.pages.notebooks
    python -m benchmarks.pages.notebooks own_table fused_ops

Sources are Python files in the percent format of jupytext.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from PIL import Image

from ..common.files import ROOT
from ..common.machine import machine

FOLDER = ROOT / "docs" / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
SECONDS_OF_A_CELL = 300
#: Colours of a picture: a third of the bytes, and no difference that one sees.
COLOURS = 128
BEGIN, END = "<!-- begin output -->\n\n", "\n\n<!-- end output -->\n\n"


def executed(source: Path, folder: Path, claims: str = "") -> tuple[Any, str]:
    """Executes a notebook in a folder and claims after it.

    Returns:
        The notebook with its outputs, and which claim is wrong, "" if none is.

    Raises:
        CellExecutionError: If a cell raises an error.
    """
    notebook = jupytext.read(source)
    # A cell of code whose error is its output.
    notebook.cells += jupytext.reads(f"# %%\n{claims}\n", fmt="py:percent").cells
    notebook.cells[-1].metadata["tags"] = ["raises-exception"]
    options: dict[str, Any] = {"timeout": SECONDS_OF_A_CELL, "kernel_name": "python3"}
    options["coalesce_streams"] = True
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options)
    client.execute()
    outputs = notebook.cells.pop().outputs
    errors = [output for output in outputs if output.output_type == "error"]
    text = "\n".join("\n".join(error.traceback) for error in errors)
    return notebook, re.sub(r"\x1b\[[\d;]*m", "", text)


# --- pages ---------------------------------------------------------------------------------------


def made_on(found: Mapping[str, Any]) -> str:
    """Returns the line that says where outputs are from, of the record of a machine."""
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    commit = f"commit {found['commit'][:7]}" if found["commit"] else "no commit"
    changed = ", with changes" if found["dirty"] else ""
    return (
        f"*Outputs: {found['cpu']}, {threads}; torch {found['packages']['torch']}, Python"
        f" {found['python']}, diffflow_ext {found['build']['version']} at {commit}{changed}.*"
    )


def page(notebook: Any, name: str, made: str = "") -> str:
    """Returns a notebook as a page in Markdown: its texts, code and what the cells put out."""
    title, *blocks = list(_blocks(notebook, name))
    first, _, rest = title.partition("\n")
    line = (
        f"*[{name}.py]({name}.py) is this page as a notebook: open it in Jupyter by jupytext, or"
        f" convert it by `jupytext --to notebook {name}.py`.*"
    )
    lines = [first, line, *([f"{BEGIN}{made}{END}".strip()] if made else []), rest.strip()]
    return "\n\n".join([*lines, *blocks]).rstrip() + "\n"


def without_outputs(text: str) -> str:
    """Returns a page without what cells put out, and without where."""
    return re.sub(rf"{BEGIN}.*?{END}", "", text + "\n", flags=re.S).rstrip() + "\n"


def _blocks(notebook: Any, name: str) -> Iterator[str]:
    numbers = iter(range(1, 100))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield cell.source
            continue
        yield f"```python\n{cell.source}\n```"
        outputs = "\n\n".join(_outputs(cell, name, numbers))
        if outputs:
            yield f"{BEGIN}{outputs}{END}".strip()


def _outputs(cell: Any, name: str, numbers: Iterator[int]) -> Iterator[str]:
    for output in cell.outputs:
        data = output.get("data", {})
        if output.get("name") == "stdout":
            yield _text(output.text)
        elif "image/png" in data:
            number = next(numbers)
            yield f"![Figure {number}](pictures/{name}_{number}.png)"
        elif "text/plain" in data:
            yield _text(data["text/plain"])


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


# --- pictures ------------------------------------------------------------------------------------


def pictures(notebook: Any, name: str) -> dict[str, bytes]:
    """Returns the PNG files of a notebook by their names in its page, in few colours."""
    cells = (cell.get("outputs", []) for cell in notebook.cells)
    outputs = [output.get("data", {}) for cell in cells for output in cell]
    encoded = [data["image/png"] for data in outputs if "image/png" in data]
    return {f"{name}_{i}.png": _smaller(base64.b64decode(png)) for i, png in enumerate(encoded, 1)}


def pictures_there(name: str, folder: Path = FOLDER) -> list[Path]:
    """Returns the pictures that a page has."""
    return sorted((folder / "pictures").glob(f"{name}_[0-9]*.png"))


def _smaller(png: bytes) -> bytes:
    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


# --- the program ---------------------------------------------------------------------------------


def write(source: Path, folder: Path, made: str) -> Path:
    """Executes a notebook; writes its page and pictures into a folder, in place of old ones."""
    name = source.stem
    with tempfile.TemporaryDirectory() as empty:
        notebook, _ = executed(source, Path(empty))
    for old in pictures_there(name, folder):
        old.unlink()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for file, content in pictures(notebook, name).items():
        (folder / "pictures" / file).write_bytes(content)
    written = folder / f"{name}.md"
    written.write_text(page(notebook, name, made))
    return written


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [source.stem for source in SOURCES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pages")
    args = parser.parse_args(words)
    if unknown := {*args.names} - {*names}:
        parser.error(f"expected names of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    made = made_on(machine())
    for source in SOURCES:
        if source.stem in (args.names or names):
            print(write(source, args.out, made))


if __name__ == "__main__":
    main()
