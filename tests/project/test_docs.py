"""What the documents say is so: the README's example runs, its links and figures exist."""

from __future__ import annotations

import doctest
import re
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT

import diffflow_ext.engines.cuda_graph
import diffflow_ext.flows.prior
import diffflow_ext.models.ddpm
import diffflow_ext.models.diffflow
import diffflow_ext.models.dinof
from diffflow_ext.training.config.fields import MAY_CHANGE

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_examples_run() -> None:
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
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


@pytest.mark.parametrize(
    "module",
    [
        diffflow_ext.models.ddpm,
        diffflow_ext.models.dinof,
        diffflow_ext.engines.cuda_graph,
        diffflow_ext.flows.prior,
        diffflow_ext.models.diffflow,
    ],
    ids=lambda module: module.__name__,
)
def test_doctests(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Any) -> None:
    for target in re.findall(r"\]\(([\w./-]+\.(?:md|png|json|sh))\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_fields_that_may_change_on_resuming_are_listed() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    (sentence,) = re.findall(r"any other is refused: (.*?)\.\n", text, re.S)
    assert re.findall(r"`(\w+)`", sentence) == [*MAY_CHANGE]


def test_named_tests_exist() -> None:
    """A document that names a test as its evidence names one that is there."""
    named = {
        (file, name)
        for page in PAGES
        for file, name in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text())
    }
    assert len(named) > 40
    for file, name in sorted(named):
        source = (ROOT / file).read_text()
        assert re.search(rf"^def {name}\(", source, re.M), f"{file}::{name}"


def test_commands_of_the_readme_exist() -> None:
    from diffflow_ext.cli.commands import parse_command

    text = (ROOT / "README.md").read_text()
    for line in re.findall(r"^diffflow (.*?)\s*(?:#.*)?$", text, re.M):
        command, *words = line.split()
        parse_command(command, words)
