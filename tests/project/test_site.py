"""The documentation site builds without a warning, and a browser shows its pages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browse, needs_browser, served
from helpers import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    words = ["-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    done = subprocess.run(
        [sys.executable, *words, str(ROOT / "docs"), str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on a server of this machine: a browser fetches nothing for pages of a folder."""
    with served(site) as (address, _):
        yield address


def pages(site: Path) -> list[Path]:
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    assert len(pages(site)) > 15
    broken = list[str]()
    for page in pages(site):
        text = page.read_text()
        for target, _, anchor in re.findall(r'href="([\w./-]*)(#([\w.-]+))?"', text):
            other = (page.parent / target).resolve() if target else page
            if other.is_dir() or not (target or anchor):
                continue
            found = other.exists() and (
                not anchor or other.suffix != ".html" or f'id="{anchor}"' in other.read_text()
            )
            if not found:
                broken.append(f"{page.relative_to(site)}: {target}#{anchor}")
    assert not broken


def test_every_public_name_has_an_entry(site: Path) -> None:
    import diffflow_ext

    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    names = set(diffflow_ext.__all__) - {"functional", "build_info"}
    assert not [name for name in sorted(names) if not re.search(rf'id="[\w.]*\.{name}"', text)]


@needs_browser
@pytest.mark.parametrize("page", ["index", "concepts", "results", "api/models", "api/functional"])
def test_a_browser_shows_a_page_without_errors(address: str, page: str, tmp_path: Path) -> None:
    shown, console = browse(f"{address}/{page}.html", tmp_path)
    assert not console
    # Formulas are set: their source is no longer in the text.
    text = re.sub(r"<(script|style|code|pre).*?</\1>", "", shown, flags=re.S)
    assert r"\[" not in text
    if page in ("concepts", "api/models"):
        assert "<mjx-container" in shown


@needs_browser
def test_search_finds_a_page(address: str, tmp_path: Path) -> None:
    shown, console = browse(f"{address}/search.html?q=adjoint", tmp_path)
    assert not console
    assert "concepts.html" in shown
