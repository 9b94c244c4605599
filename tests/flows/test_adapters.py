"""Libraries of flows: imported when a flow is made, named when they are missing."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from helpers import ROOT

from diffflow_ext.flows import FFJORD, StandardNormal, glow, spline_flow
from diffflow_ext.nets import FourierMLP

ffjord = partial(FFJORD, FourierMLP(2, 4))


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


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (ffjord, {"solver": "magic"}, "solver to be one of .*, got 'magic'"),
        (ffjord, {"divergence": "none"}, "divergence to be one of .*, got 'none'"),
        (ffjord, {"t_end": 0.0}, "positive, finite t_end, got 0.0"),
        (ffjord, {"rtol": -1.0}, "positive, finite rtol, got -1.0"),
        (ffjord, {"atol": math.inf}, "positive, finite atol, got inf"),
        (ffjord, {"num_steps": 0}, "num_steps >= 1, got 0"),
        (glow, {"shape": (16, 16)}, r"a shape \(C, H, W\), got \(16, 16\)"),
        (glow, {"shape": (0, 4, 4)}, r"a shape \(C, H, W\), got \(0, 4, 4\)"),
        (glow, {"shape": (1, 28, 28), "levels": 3}, r"by 2\^3, got 28 x 28; take at most 2"),
        (glow, {"shape": (1, 7, 8)}, r"divisible by 2\^1, got 7 x 8"),
        (glow, {"shape": (1, 8, 8), "levels": 0}, "levels >= 1, got 0"),
        (glow, {"shape": (1, 8, 8), "blocks": 0}, "blocks >= 1, got 0"),
        (glow, {"shape": (1, 8, 8), "hidden": 0}, "hidden >= 1, got 0"),
        (spline_flow, {"dim": 0}, "dim >= 1, got 0"),
        (spline_flow, {"dim": 2, "transforms": 0}, "transforms >= 1, got 0"),
        (spline_flow, {"dim": 2, "bins": 1}, "bins >= 2, got 1"),
        (spline_flow, {"dim": 2, "hidden": ()}, r"widths >= 1, got \(\)"),
        *((StandardNormal, {"scale": scale}, "scale") for scale in (0.0, -1.0, math.nan)),
    ],
)
def test_bad_arguments_are_named(
    make: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    name = getattr(make, "__name__", "FFJORD")  # a partial object has none
    with pytest.raises(ValueError, match=f"{name}: expected .*{words}"):
        make(**options)
