"""What the documents say is so: examples run, links lead somewhere, named tests are there."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT

import diffflow_ext
from diffflow_ext import metrics
from diffflow_ext.cli import commands, main
from diffflow_ext.training.config.fields import MAY_CHANGE

PACKAGE = ROOT / "diffflow_ext"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text()]


def test_example_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert "range(100)" in code
    names: dict[str, Any] = {}
    exec(code.replace("range(100)", "range(2)").replace("(1000, 2)", "(50, 2)"), names)
    assert names["log_p"].shape == (50,)
    assert names["log_p"].isfinite().all()


def test_examples_of_models_run() -> None:
    text = (ROOT / "docs/models.md").read_text()
    first, second, _ = re.findall(r"```python\n(.*?)```", text, re.S)
    assert "range(100)" in first
    names: dict[str, Any] = {}
    exec(first.replace("range(100)", "range(2)"), names)
    assert names["samples"].shape == (1000, 2)
    assert names["path"].shape == (31, 1000, 2)
    assert names["bound"].isfinite()
    names["samples"] = names["samples"][:50]
    exec(second, names)
    assert names["points"].shape == (100, 2)
    for name in ("log_p", "tighter", "density"):
        assert names[name].shape == (50,)
        assert names[name].isfinite().all()
    assert names["bits"].isfinite().all()


def test_example_of_data_in_memory_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)
    (code,) = (code for code in codes if "data=frame" in code and "condition" not in code)
    (shown,) = (code for code in codes if "sample_figure" in code)
    (quiet,) = (code for code in codes if "show_progress" in code)
    monkeypatch.chdir(tmp_path)
    values = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).numpy()
    names: dict[str, Any] = {"frame": pd.DataFrame(values, columns=["a", "b"])}
    assert "steps=2000" in code
    exec(code.replace("steps=2000", "steps=2, batch_size=4"), names)
    assert names["log_p"].shape == (60,)
    assert names["rows"].shape == (1000, 2)
    exec(quiet, names)
    pytest.importorskip("matplotlib")
    exec(shown, names)
    assert (tmp_path / "loss.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_of_conditions_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/training.md").read_text()
    section = text.split("### Conditions\n")[1].split("\n### ")[0]
    (words,), (code,) = (
        re.findall(rf"```{name}\n(.*?)```", section, re.S) for name in ("bash", "python")
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    cuts, numbers = ["Fair", "Good", "Ideal"] * 80, np.random.default_rng(0).normal(size=(240, 2))
    frame = pd.DataFrame({"cut": cuts, "price": range(400, 640), "x": numbers[:, 0]})
    frame = frame.sample(frac=1.0, random_state=0).assign(y=numbers[:, 1])
    frame.to_csv("diamonds.csv", index=False)
    assert "steps=2000" in code
    assert "--steps 2000" in words
    small = "--steps 2 --width 8 --depth 1"
    words = words.replace("--steps 2000", small).replace("--n 1000", "--n 20")
    for line in words.splitlines():
        assert main(line.split()[1:]) == 0
    names: dict[str, Any] = {"frame": frame}
    code = code.replace("steps=2000", "steps=2, width=8, depth=1").replace("(1000,", "(20,")
    exec(code, names)
    assert [*names["ideal"].columns] == ["x", "y", "cut", "price"]
    assert set(names["ideal"].cut) == {"Ideal"}
    assert names["like"][["cut", "price"]].equals(frame[["cut", "price"]])
    assert names["log_p"].shape == (240,)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_example_of_an_estimator_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)
    code, given = (code for code in codes if "DiffFlowDensity" in code)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert "steps=300" in code
    exec(code.replace("steps=300", "steps=2"), names)
    assert (names["density"].score_samples(names["X"]) == names["log_p"]).all()
    assert names["rows"].shape == (1000, 3)
    assert "steps=300" in given
    exec(given.replace("steps=300", "steps=2"), names)
    assert (names["density"].score_samples(names["X"], names["y"]) == names["log_p"]).all()
    assert np.isfinite(names["scores"]).all()


@pytest.mark.slow
def test_commands_and_snippets_of_the_first_steps_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of the page, in its order, in one folder; trainings are shorter."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs/start.md").read_text(), re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for language, block in blocks:
        if language == "python":
            exec(block.replace("range(200)", "range(2)"), names)
            continue
        for line in block.replace("--steps 1000", "--steps 20").splitlines():
            assert main(shlex.split(line)[1:]) == 0
    assert [*names["rows"].columns] == ["kind", "size", "weight"]
    assert names["log_p"].shape == (2000,)
    scores = pd.read_csv("scores.csv")
    assert len(scores) == len(pd.read_csv("more.csv")) == 500
    assert names["log_density"].isfinite().all()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_of_docstrings_run(file: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    public = {
        name: getattr(face, name) for face in (diffflow_ext, metrics) for name in face.__all__
    }
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, **public})
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([\w./-]+\.(?:md|png|json|sh))\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_fields_that_may_change_on_resuming_are_listed() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    (sentence,) = re.findall(r"any other is refused: (.*?)\.\n", text, re.S)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(MAY_CHANGE)


def test_named_tests_exist() -> None:
    """A document that names a test as its evidence names one that is there."""
    named = {
        (file, name)
        for page in PAGES
        for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text())
    }
    assert len(named) > 40
    for file, name in sorted(named):
        source = (ROOT / file).read_text()
        assert re.search(rf"^def {name}\(", source, re.M), f"{file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """Paths in the text, as `csrc/ops/steps.h`, and modules, as `diffflow_ext.flows`."""
    text = page.read_text()
    named = re.findall(r"`((?:csrc|diffflow_ext|tests|benchmarks|docs)/[\w./-]*)", text)
    modules = re.findall(r"`python -m (benchmarks[\w.]*)", text)
    named += [f"{module.replace('.', '/')}.py" for module in modules]
    assert not [name for name in named if not list(ROOT.glob(f"{name}*"))]


@pytest.mark.parametrize("page", ["README.md", "docs/command_line.md"])
def test_commands_of_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    lines = re.findall(r"^diffflow (\w+) ?(.*?)\s*(?:#.*)?$", text, re.M)
    assert len(lines) > 4
    if page != "README.md":
        assert {command for command, _ in lines} == set(commands.COMMANDS) | {"train"}
    for command, words in lines:
        commands.parse_command(command, words.split())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_versions_agree() -> None:
    of_package = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    of_citation = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert of_package == of_citation == [diffflow_ext.__version__]


def test_hooks_before_a_commit_use_the_versions_of_the_checks() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.M)
    )
    for tool, repository in (
        ("ruff", "ruff-pre-commit"),
        ("clang-format", "mirrors-clang-format"),
    ):
        assert re.findall(rf"{repository}\n    rev: v(.*)", hooks) == [pinned[tool]]
