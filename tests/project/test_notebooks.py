"""The notebooks run, what their texts say holds, and the pages of the site are theirs."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import pytest
from notebooks import FOLDER, PICTURES, SOURCES, executed, page, pictures, without_outputs

#: What texts say of the results of a run, in the names of the notebook.
CLAIMS = {
    "two_dimensions": "assert entropy < exact < bound < 2.4 < 2.8 < bounds[0] < 2.9",
}
by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


@pytest.mark.slow
@by_name
def test_notebooks_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs from top to bottom in an empty folder, and makes the pictures of its page."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Figures are outputs, as in a notebook.
    name = source.stem
    notebook = executed(source, tmp_path, CLAIMS[name])
    made = pictures(notebook, name)
    if os.environ.get("DIFFFLOW_WRITE_NOTEBOOKS"):
        for old in PICTURES.glob(f"{name}_[0-9]*.png"):
            old.unlink()
        for file, content in made.items():
            (PICTURES / file).write_bytes(content)
        (FOLDER / f"{name}.md").write_text(page(notebook, name))
    assert {file.name for file in PICTURES.glob(f"{name}_[0-9]*.png")} == set(made)


@by_name
def test_pages_are_those_of_the_sources(source: Path) -> None:
    text = (FOLDER / f"{source.stem}.md").read_text()
    hint = f"DIFFFLOW_WRITE_NOTEBOOKS=1 pytest {__file__} -m slow -k {source.stem} writes it"
    assert without_outputs(text) == page(jupytext.read(source), source.stem), hint
