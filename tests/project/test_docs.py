"""What the documents say is so: examples run, links lead somewhere, named tests are there."""

from __future__ import annotations

import doctest
import importlib
import re
import urllib.parse
from pathlib import Path

import pytest
import torch
from helpers import ROOT

import diffflow_ext
from diffflow_ext import metrics
from diffflow_ext.training.config.fields import MAY_CHANGE

PACKAGE = ROOT / "diffflow_ext"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: The first author of each paper that is named, or its method.
AUTHORS = {
    "1509.00519": "Burda", "1511.01844": "Theis", "1610.06545": "Lopez-Paz",
    "1706.08500": "Heusel", "1801.01401": "Binkowski", "1807.03039": "Kingma",
    "1810.01367": "Grathwohl", "1810.09136": "Nalisnick", "1904.06991": "Kynk",
    "1906.02845": "Ren", "1906.02994": "Nalisnick", "1906.04032": "Durkan",
    "2002.09797": "Naeem", "2006.11239": "Ho", "2010.02502": "Song", "2011.13456": "Song",
    "2012.03808": "Le Lan", "2102.05379": "Hoogeboom", "2102.09672": "Nichol",
    "2107.00630": "Kingma", "2110.07579": "Zhang|DiffFlow", "2202.00512": "Salimans",
    "2207.12598": "Ho", "2309.01274": "Zand|DiNof", "2404.12940": "Bartosh|NFDM",
    "2502.02472": "Bartosh",
}  # fmt: skip
EXAMPLES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text()]


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


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub and the site give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([^)]*))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_other_sites_are_well_formed(page: Path) -> None:
    """They are opened by `make links`: these tests run without a network."""
    text = page.read_text()
    for link in re.findall(r"\w+://[^\s<>()\"'`\]]+", text):
        parts = urllib.parse.urlsplit(link)
        assert parts.scheme == "https", link
        assert re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.netloc), link
        assert link[-1] not in ".,;:", link
    for name, target in re.findall(r"\[(.*?)\]\((https:[^)]*)\)", text):
        if number := re.search(r"[\d.]+$", name):  # A paper, or an issue.
            assert target.endswith(f"/{number[0]}"), (name, target)


@pytest.mark.parametrize(
    "file", [*PAGES, *PACKAGE.rglob("*.py")], ids=lambda file: str(file.relative_to(ROOT))
)
def test_numbers_of_papers_are_those_of_their_authors(file: Path) -> None:
    text = file.read_text()
    for found in re.finditer(r"(?:arxiv\.org/abs/|arXiv:? ?)(\d{4}\.\d{5})", text):
        before = text[max(0, found.start() - 250) : found.start()]
        assert re.search(AUTHORS[found[1]], before), f"{found[1]} after {before!r}"


def test_fields_that_may_change_on_resuming_are_listed() -> None:
    text = (ROOT / "docs" / "howto" / "resuming.md").read_text()
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


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert text.count("```python") == 1


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
