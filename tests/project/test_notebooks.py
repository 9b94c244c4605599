"""The notebooks run, what their texts say holds, and the pages of the site are theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
import pytest

from benchmarks.pages.notebooks import (
    FOLDER,
    SOURCES,
    executed,
    made_on,
    main,
    page,
    pictures,
    pictures_there,
    without_outputs,
    write,
)

#: What texts say of the results of a run, in the names of the notebook.
CLAIMS = {
    "two_dimensions": "assert entropy < exact < bound < 2.4 < 2.8 < bounds[0] < 2.9",
    "dinof_cutoff": """
few = [points[0][1] for points in curves.values()]
many = [points[-1][1] for points in curves.values()]
assert few == sorted(few) and few[-1] > 5 * few[0] and 2 * many[-1] / many[0] < few[-1] / few[0]
assert entropy < min(nats.values()) and max(nats.values()) < 2.84
""",
    "fused_ops": """
assert max(value_error, gradient_error) < 1e-10 and abs(means[0] - means[1]) < 0.1
assert scatter[1] < 0.6 * scatter[0] and 100 * library[1] < plain[1]
""",
    "labelled_digits": """
assert recognised[1.0] > 0.6 and recognised[4.0] > recognised[1.0] and by_density > 0.6
assert spread[4.0] < spread[2.0] < spread[1.0] and spread[4.0] < 1.1 * real_spread
""",
    "own_unet_lightning": """
assert is_same and len(bounds) == 300
assert sum(bounds[-20:]) < sum(bounds[80:100]) < sum(bounds[:20])
""",
    "own_table": """
mean = {name: float(values.mean()) for name, values in scores.items()}
assert abs(mean["seen"] - mean["held out"]) < 0.5 and mean["columns mixed"] < mean["held out"] - 2
assert rank < 10 and 0.45 < area_under < 0.7
assert 1.25 < filled["rent"].median() / flat["rent"].median() < 1.8
""",
    "anomaly_detection": """
assert moons_area["DiffFlow"] > moons_area["IsolationForest"] + 0.05
assert abs(table_area["DiffFlow"] - table_area["IsolationForest"]) < 0.04
forest_area, below, above = forged_area.values()
assert forest_area < 0.3 and below < 0.3 and above > 0.7
""",
}
by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


@pytest.mark.slow
@by_name
def test_notebooks_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs from top to bottom in an empty folder, and makes the pictures of its page."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Figures are outputs, as in a notebook.
    name = source.stem
    notebook, wrong = executed(source, tmp_path, CLAIMS[name])
    assert not wrong, wrong
    assert {file.name for file in pictures_there(name)} == set(pictures(notebook, name))


@by_name
def test_pages_are_those_of_the_sources(source: Path) -> None:
    text = (FOLDER / f"{source.stem}.md").read_text()
    hint = f"python -m benchmarks.pages.notebooks {source.stem} writes it"
    assert without_outputs(text) == page(jupytext.read(source), source.stem), hint
    # Times and memory are those of a machine, which the page names.
    assert re.search(r"^\*Outputs: .+; torch .+, Python .+ at commit [0-9a-f]{7}\.\*$", text, re.M)


def test_a_page_says_where_its_outputs_are_from() -> None:
    found: dict[str, Any] = {
        "cpu": "Z", "threads": 1, "packages": {"torch": "2.9"}, "python": "3.12",
        "build": {"version": "0.1"}, "commit": "0123456789", "dirty": False,
    }  # fmt: skip
    line = "*Outputs: Z, 1 thread; torch 2.9, Python 3.12, diffflow_ext 0.1 at commit 0123456.*"
    assert made_on(found) == line
    assert made_on(found | {"threads": 2, "dirty": True}).endswith("0123456, with changes.*")
    notebook = jupytext.reads("# %% [markdown]\n# # A\n#\n# B\n", fmt="py:percent")
    text = page(notebook, "a", line)
    assert text.startswith("# A\n")
    assert line in text
    assert text.endswith("\n\nB\n")
    assert without_outputs(text) == page(notebook, "a")


def test_a_page_and_its_pictures_take_the_place_of_old_ones(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    shown = "from IPython.display import Image\nprint(6 * 7)\nImage(DATA)".replace(
        "DATA", repr((FOLDER / "pictures" / "fused_ops_1.png").read_bytes())
    )
    source.write_text(f"# %% [markdown]\n# # A\n#\n# B\n\n# %%\n{shown}\n")
    old = tmp_path / "pictures" / "a_2.png"
    old.parent.mkdir()
    old.touch()
    text = write(source, tmp_path, "*Outputs: here.*").read_text()
    assert "*Outputs: here.*" in text
    assert "```text\n42\n```\n\n![Figure 1](pictures/a_1.png)" in text
    assert [path.name for path in pictures_there("a", tmp_path)] == ["a_1.png"]


def test_names_are_those_of_notebooks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["own_tables"])
    assert "expected names of anomaly_detection, " in capsys.readouterr().err
