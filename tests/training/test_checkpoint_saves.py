"""Checkpoints that are written: wherever a save is cut off, the old or the new one is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from checkpoint_cases import FILES, equal, make, respell
from training_runs import Kill

from diffflow_ext.training import Checkpoint, CheckpointError
from diffflow_ext.training.store import checkpoint as checkpoint_module
from diffflow_ext.training.store.checkpoint import (
    load_checkpoint,
    load_latest,
    save_checkpoint,
    step_directories,
    sweep,
)


def test_newest_whole_checkpoint_wins_with_a_warning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"")
    shutil.rmtree(tmp_path / "step-00000002")
    (tmp_path / "step-00000002").mkdir()
    with pytest.warns(UserWarning, match="falling back") as caught:
        assert load_latest(tmp_path).step == 1
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "step-00000003/model.safetensors: expected" in texts[0]
    assert "; falling back to step-00000001, an older one, from which `diffflow train" in texts[0]
    assert texts[0].endswith("--resume` goes on")


def test_no_checkpoint_and_only_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_latest(tmp_path / "missing")
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match=r"step-00000001: not a whole checkpoint"):
        load_latest(tmp_path)


def test_newer_format_is_refused_and_older_does_not_take_its_place(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    newer = save_checkpoint(tmp_path, make(2))
    respell(newer, lambda body: body.update(format=7))
    with pytest.raises(CheckpointError, match="checkpoint format 7, but this version"):
        load_latest(tmp_path)
    with pytest.raises(CheckpointError, match="format 7"):
        save_checkpoint(tmp_path, make(2))


def test_foreign_entries_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-12", "step-0000000x", "notes", "step-00000009.bak"):
        (tmp_path / name).mkdir()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step), keep=1)
    sweep(tmp_path)
    assert [path.name for path in step_directories(tmp_path)] == ["step-00000003"]
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, make(step), keep=keep)
    steps = [int(path.name[5:]) for path in step_directories(tmp_path)]
    assert steps == [5, 4, 3][:keep]


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep=0: expected at least 1"):
        save_checkpoint(tmp_path, make(1), keep=0)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, Checkpoint(1, {}, {}, {}, {"loss": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_damaged_newer_checkpoint_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "step-00000009").mkdir()
    save_checkpoint(tmp_path, make(1), keep=1)
    save_checkpoint(tmp_path, make(2), keep=1)
    with pytest.warns(UserWarning, match="step-00000009"):
        assert load_latest(tmp_path).step == 2


def test_damaged_checkpoint_is_replaced_and_whole_one_is_not(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, make(5))
    with pytest.raises(ValueError, match="is there already and whole"):
        save_checkpoint(tmp_path, make(5, 2.0))
    (saved / "ema.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, make(5, 2.0))
    assert equal(load_latest(tmp_path), make(5, 2.0))


def finishes(action: Callable[[], object], calls: int) -> bool:
    """Runs an action, ending it before the next system call when it has made so many."""
    left = [calls]

    def profile(frame: FrameType, event: str, call: Any) -> None:
        if event != "c_call":
            return
        owner = getattr(call, "__module__", None) or type(call.__self__).__module__
        left[0] -= owner in ("posix", "nt", "_io")
        if left[0] < 0:
            sys.setprofile(None)
            raise Kill

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    except Kill:
        return False
    finally:
        sys.setprofile(before)
    return True


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_before_any_system_call_a_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    # To a process killed, not a machine, what was written is there with or without it.
    monkeypatch.setattr(checkpoint_module.os, "fsync", lambda descriptor: None)
    start = tmp_path / "start"
    for step in (1, 2):
        save_checkpoint(start, make(step))
    if damaged:
        shutil.copytree(start / "step-00000001", start / "step-00000003")
    seen = []
    for calls in range(1000):
        directory = tmp_path / f"killed-{calls}"
        shutil.copytree(start, directory)
        if finishes(lambda where=directory: save_checkpoint(where, make(3), keep=2), calls):
            break
        seen.append(_latest_quietly(directory))
        if not damaged:
            for entry in step_directories(directory):
                load_checkpoint(entry)
        sweep(directory)
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        if seen[-1] == 2:
            save_checkpoint(directory, make(3), keep=2)
        assert _latest_quietly(directory) == 3
    assert len(seen) > 30
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}


def _latest_quietly(directory: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_latest(directory)
    assert equal(loaded, make(loaded.step))
    return loaded.step


# It kills by the clock: other work would let a child end before.
@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_by_the_system_at_any_moment(tmp_path: Path, kills: int) -> None:
    started = time.monotonic()
    for step in range(1, 4):
        save_checkpoint(tmp_path, make(step), keep=2)
    duration = (time.monotonic() - started) / 3
    rng = random.Random(kills)
    for _ in range(kills):
        first = _latest_quietly(tmp_path) + 1
        child = os.fork()
        if child == 0:
            for step in range(first, first + 10_000):
                save_checkpoint(tmp_path, make(step), keep=2)
            os._exit(0)
        time.sleep(rng.uniform(0, 3 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert _latest_quietly(tmp_path) >= first - 1
        sweep(tmp_path)
    assert _latest_quietly(tmp_path) > 3
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"step-", "lates"}


#: System calls of a save that may fail.
CALLS = ("fsync", "rename", "replace")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_all_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(1))
    events = []

    def noted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            last = arguments[-1]
            path = Path(f"/proc/self/fd/{last}").readlink() if name == "fsync" else last
            events.append((name, path))
            real(*arguments)

        return call

    for name in CALLS:
        monkeypatch.setattr(checkpoint_module.os, name, noted(name, getattr(os, name)))
    save_checkpoint(tmp_path, make(2), keep=1)
    aside = tmp_path / ".tmp-step-00000002"
    written = [("fsync", aside / name) for name in FILES]
    assert sorted(events[:4]) == sorted(written)
    assert events[4:9] == [
        ("fsync", aside),
        ("rename", tmp_path / "step-00000002"),
        ("fsync", tmp_path),
        ("fsync", tmp_path / ".tmp-latest"),
        ("replace", tmp_path / "latest"),
    ]
    assert events[9] == ("fsync", tmp_path)
    # Only now the old one goes.
    assert events[10:] == [("rename", tmp_path / ".tmp-drop-step-00000001")]


@pytest.mark.parametrize(
    ("call", "after"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("rename", 0), ("replace", 0)]
)
def test_failed_system_call_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    save_checkpoint(tmp_path, make(1))
    calls, real = [0], getattr(os, call)

    def fail(*args: Any) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(28, "No space left on device", str(tmp_path))
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.os, call, fail)
        with pytest.raises(CheckpointError, match=r"needs \d+ bytes: No space left on device"):
            save_checkpoint(tmp_path, make(2))
    assert _latest_quietly(tmp_path) in (1, 2)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_random_bits_of_a_megabyte_are_detected(tmp_path: Path) -> None:
    """Damage far from any header, in as many places as a disk would need decades for."""
    tensors = {"w": torch.randn(2**18)}
    whole = save_checkpoint(tmp_path, Checkpoint(5, tensors, {}, {}, {}))
    path, rng = whole / "model.safetensors", random.Random(0)
    data = bytearray(path.read_bytes())
    for _ in range(60):
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_checkpoint(whole)
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_folder_that_may_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The answer of a read-only file system, given in its place: root may write anywhere."""
    save_checkpoint(tmp_path, make(1))

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if call == "mkdir" or "w" in str(arguments):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *arguments, **options)

    real = getattr(Path, call)
    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        words = r"cannot write the checkpoint, .*: Read-only file system; earlier checkpoints are"
        with pytest.raises(CheckpointError, match=words) as caught:
            save_checkpoint(tmp_path, make(2))
    assert str(tmp_path) in str(caught.value)
    assert _latest_quietly(tmp_path) == 1


def test_a_device_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte count at which the space ends leaves the old checkpoint and nothing else."""
    save_checkpoint(tmp_path, make(1))
    files = checkpoint_module._encode(make(2))
    total, real = sum(map(len, files.values())), checkpoint_module._write_synced
    for space in (0, 1, total // 3, total // 2, total - 1):
        left = [space]

        def write(path: Path, data: bytes, left: list[int] = left) -> None:
            real(path, data[: left[0]])
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(28, "No space left on device", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module, "_write_synced", write)
            with pytest.raises(CheckpointError, match=rf"needs {total} bytes: No space left"):
                save_checkpoint(tmp_path, make(2))
        assert _latest_quietly(tmp_path) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    save_checkpoint(tmp_path, make(2))
    assert _latest_quietly(tmp_path) == 2


DISK_FULL = """
import resource, sys, torch
from diffflow_ext.training import Checkpoint, CheckpointError
from diffflow_ext.training.store.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensors = {"w": torch.zeros(100_000)}
try:
    save_checkpoint(sys.argv[1], Checkpoint(2, tensors, {}, {}, {}))
except CheckpointError as error:
    print(error)
    sys.exit(7)
"""


def test_full_disk_is_explained_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    save_checkpoint(tmp_path, make(1))
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    needed = int(done.stdout.split("needs ")[1].split()[0])
    assert needed > 400_000
    assert "File too large; earlier checkpoints are untouched" in done.stdout
    assert _latest_quietly(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
