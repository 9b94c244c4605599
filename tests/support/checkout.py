"""The files of this checkout."""

from __future__ import annotations

import subprocess

import pytest
from helpers import ROOT


def files_of_the_checkout() -> list[str]:
    """The files that a clone would have, and those not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("needs a git checkout, to know which files belong to it")
    return [name for name in sorted(listed.stdout.split("\0")) if (ROOT / name).is_file()]
