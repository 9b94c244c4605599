"""Bad arguments and damaged files at every public door: only our own errors, and never a crash."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import fuzz_calls
import fuzz_targets
import pytest
import torch
from checkpoint_cases import respell
from hypothesis import given
from hypothesis import strategies as st

import diffflow_ext
from diffflow_ext import TimeGrid, functional
from diffflow_ext.training import Checkpoint, CheckpointError, configure, load_config
from diffflow_ext.training.config.files import to_toml
from diffflow_ext.training.store.checkpoint import load_checkpoint, save_checkpoint

SCRIPT = Path(fuzz_calls.__file__)


def run_cases(progress: Path, first: int, count: int) -> dict[str, int]:
    """Runs cases in a process of their own; a finding or the end of the process is a failure."""
    progress.write_bytes(bytes(8))
    command = [sys.executable, str(SCRIPT), str(progress), str(first), str(count)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=500, check=False
    )
    if done.returncode:
        number = int.from_bytes(progress.read_bytes(), "little")
        words = fuzz_calls.described(number)
        pytest.fail(f"exit code {done.returncode} at {words}\n{done.stderr[-3000:]}")
    *findings, counts = done.stdout.splitlines()
    assert not findings, "\n".join(findings)
    return json.loads(counts)


needs_linux = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the limit of memory is read from /proc"
)


@needs_linux
@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_thousands_of_bad_calls(tmp_path: Path, count: int) -> None:
    seen = run_cases(tmp_path / "progress", 0, count)
    assert sum(seen.values()) == count
    assert seen["refused"] > count / 2
    assert seen["done"] > count / 40


@needs_linux
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("ctypes.string_at(0)", "exit code -11 at case 0: "),
        ("time.sleep(60)", "exit code 1 at case 0: "),
        ("raise LookupError('odd')", "LookupError: odd"),
    ],
    ids=["crash", "hang", "class"],
)
def test_findings_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    """The same script with one target that does what none may do."""
    script = tmp_path / "planted.py"
    script.write_text(
        f"import ctypes, sys, time\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import fuzz_calls\nfrom fuzz_targets import TARGETS, target\n"
        f"def bad(value):\n    {body}\n"
        "TARGETS.clear()\nTARGETS['bad'] = target(bad, value=1)\n"
        "fuzz_calls.SECONDS = 2\nfuzz_calls.main(*sys.argv[1:])\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", script)
    with pytest.raises((pytest.fail.Exception, AssertionError)) as caught:
        run_cases(tmp_path / "progress", 0, 3)
    assert words in str(caught.value)


def test_the_public_functions_are_all_targets() -> None:
    """Their good calls are made by tests/engines/test_memory.py."""
    named = set(fuzz_targets.TARGETS)
    ops = {name for name in functional.__all__ if callable(getattr(functional, name))}
    assert ops | set(diffflow_ext.__all__) - {"functional", "build_info"} <= named
    methods = {"loss", "mean_loss", "engine_for", "elbo", "encode", "path", "log_prob", "sample"}
    assert {f"DiffFlowSDE.{name}" for name in methods} <= named


# --- hypothesis ----------------------------------------------------------------------------------


@given(st.lists(st.floats(), max_size=6))
def test_a_grid_is_increasing_or_refused(times: list[float]) -> None:
    good = len(times) > 1 and all(map(math.isfinite, times))
    if good and all(b > a for a, b in pairwise(times)):
        assert TimeGrid.from_times(times).times.tolist() == times
        return
    with pytest.raises(ValueError, match=fuzz_calls.OURS):
        TimeGrid.from_times(times)


# --- files ---------------------------------------------------------------------------------------


def mutated(text: str, rng: random.Random) -> bytes:
    """Changes, repeats, removes or replaces pieces of a text."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        few = rng.randint(1, 12)
        pieces = [
            b"", b"=", b'"', b"[", b"]]", b"\n", b"\x00", b"\xff", b"nan", b"-inf", b"1e400",
            b"99999999999999999999", b"1979-05-27", b"{a=1}", b"true", b"'''", b"\\ud800", b"0:0",
            bytes([rng.randrange(256)]), bytes(data[at : at + few]) * 2,
        ]  # fmt: skip
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        if digits and rng.random() < 0.8:
            data[rng.choice(digits)] = rng.choice(b"0123456789-.e")
        else:
            data[at : at + rng.choice((0, 0, 1, few))] = rng.choice(pieces)
    return bytes(data)


CONFIG = to_toml(configure(data="moons", progressive="0:2,100:5", learn_diffusion=True))


few_or_many = pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])


@few_or_many
def test_damaged_configurations(tmp_path: Path, count: int) -> None:
    rng, path = random.Random(count), tmp_path / "config.toml"
    refused = 0
    for _ in range(count):
        data = mutated(CONFIG, rng)
        path.write_bytes(data)
        try:
            load_config(path)
        except ValueError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"config.toml with the bytes {data!r}") from error
    assert count / 10 < refused < 9 * count / 10


def spoiled(value: Any, rng: random.Random) -> Any:
    """A manifest with one of its values replaced, at any depth."""
    odd: list[Any] = [None, -1, 2**70, 1.5, "", "x", [], {}, True, [[]], {"a": 1}, "../../x"]
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(odd)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(list(keys))
    changed = value.copy()
    if isinstance(value, dict) and rng.random() < 0.2:
        changed[rng.choice(("x", "../x", ""))] = changed.pop(key)
    else:
        changed[key] = spoiled(value[key], rng)
    return changed


@few_or_many
def test_forged_manifests(tmp_path: Path, count: int) -> None:
    """Manifests of any content whose checksum fits."""
    tensors = {"w": torch.arange(3.0)}
    whole = save_checkpoint(tmp_path, Checkpoint(5, tensors, {}, {}, {"seed": 3, "list": [1, 2]}))
    rng, refused = random.Random(count), 0

    def forge(body: dict[str, Any]) -> None:
        changed = spoiled(body, rng)
        body.clear()
        body.update(changed if isinstance(changed, dict) else {})

    good = (whole / "manifest.json").read_bytes()
    for _ in range(count):
        (whole / "manifest.json").write_bytes(good)
        respell(whole, forge)
        try:
            loaded = load_checkpoint(whole)
        except CheckpointError:
            refused += 1
        except Exception as error:
            raise AssertionError((whole / "manifest.json").read_text()) from error
        else:
            # A manifest may name no weights, as that of a shared run, but no wrong ones.
            assert not loaded.model or torch.equal(loaded.model["w"], tensors["w"])
    assert refused > count / 2
