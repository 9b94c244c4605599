"""Libraries of flows: imported when a flow is made, named when they are missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from helpers import ROOT

from diffflow_ext.flows import FFJORD, glow, spline_flow
from diffflow_ext.nets import FourierMLP


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("zuko", lambda: spline_flow(2)),
        ("normflows", lambda: glow((1, 4, 4))),
        ("torchdiffeq", lambda: FFJORD(FourierMLP(2, 4))),
    ],
)
def test_a_missing_library_is_named(
    name: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name} .* pip install 'diffflow_ext\[flows\]'"):
        make()


def test_importing_the_flows_loads_no_library() -> None:
    code = "import sys, diffflow_ext.flows; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "diffflow_ext.flows.ffjord" in loaded
    assert not loaded & {"zuko", "normflows", "torchdiffeq"}
