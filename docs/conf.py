"""The documentation site: `make docs` builds it, with warnings as errors."""

from __future__ import annotations

import re
from typing import Any

import diffflow_ext

project = "diffflow_ext"
author = "The diffflow_ext developers"
copyright = author
release = version = diffflow_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module, _MetadataRequester, BaseEstimator, Protocol, tuple",
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Of `make links`. GitHub makes the anchors of its pages by a script.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_timeout = 30
linkcheck_retries = 3

html_theme = "furo"
html_title = "diffflow_ext"
html_static_path = ["motion.css", "pictures/processes.png"]
html_css_files = ["motion.css"]


def _escape(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escapes the star of shapes such as (B, *event) and the bars of absolute values."""
    for i, line in enumerate(lines):
        lines[i] = re.sub(r"(?<=[(, ])\*(?=[a-z,])|\|(?=\w+\|)|(?<=\|\w)\|", r"\\\g<0>", line)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape)
