"""The notebooks of docs/notebooks: their sources executed, and as pages of the site."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
from helpers import ROOT
from nbclient import NotebookClient
from PIL import Image

FOLDER = ROOT / "docs" / "notebooks"
PICTURES = FOLDER / "pictures"
SOURCES = sorted(FOLDER.glob("*.py"))
SECONDS_OF_A_CELL = 300
BEGIN, END = "<!-- begin output -->\n\n", "\n\n<!-- end output -->\n\n"


def executed(source: Path, folder: Path, claims: str) -> tuple[Any, str]:
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


def page(notebook: Any, name: str) -> str:
    """Returns a notebook as a page in Markdown: its texts, code and what the cells put out."""
    title, *blocks = list(_blocks(notebook, name))
    first, _, rest = title.partition("\n")
    line = (
        f"*[{name}.py]({name}.py) is this page as a notebook: open it in Jupyter by jupytext, or"
        f" convert it by `jupytext --to notebook {name}.py`.*"
    )
    return "\n\n".join([first, line, rest.strip(), *blocks]).rstrip() + "\n"


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


def pictures(notebook: Any, name: str) -> dict[str, bytes]:
    """Returns the PNG files of a notebook by their names in its page, in few colours."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in _of(cell)]
    encoded = [data["image/png"] for data in outputs if "image/png" in data]
    return {f"{name}_{i}.png": _smaller(base64.b64decode(png)) for i, png in enumerate(encoded, 1)}


def _smaller(png: bytes) -> bytes:
    """A third of the bytes, and no difference that one sees."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _of(cell: Any) -> list[Any]:
    return cell.get("outputs", [])


def without_outputs(text: str) -> str:
    """Returns a page without what cells put out."""
    return re.sub(rf"{BEGIN}.*?{END}", "", text + "\n", flags=re.S).rstrip() + "\n"
