"""scikit-learn is missing or old: the rest of the package works, and the error says what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("sys.modules['sklearn'] = None", "No module named 'sklearn.base'"),
        ("import sklearn.utils.validation as v; del v.validate_data", "cannot import name"),
    ],
)
def test_it_is_named(before: str, reason: str) -> None:
    lines = ["import sys", before, "import diffflow_ext.cli, diffflow_ext.training",
             "from diffflow_ext import *", "import diffflow_ext.estimators"]  # fmt: skip
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(
        "ImportError: diffflow_ext.estimators: expected scikit-learn 1.6 or newer to be installed,"
    )
    assert reason in done.stderr
    assert last.endswith("; pip install 'diffflow_ext[sklearn]'")
