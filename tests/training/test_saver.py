"""Checkpoints written beside the training: the same bytes, and no error is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import FILES, equal, make

from diffflow_ext.training import CheckpointError, configure, train
from diffflow_ext.training.store import saver as saver_module
from diffflow_ext.training.store.checkpoint import load_latest, save_checkpoint
from diffflow_ext.training.store.saver import Saver


def test_tensors_are_those_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes its weights in place while they are written."""
    go = threading.Event()

    def slow(*args: Any) -> Path:
        assert go.wait(30)
        return save_checkpoint(*args)

    monkeypatch.setattr(saver_module, "save_checkpoint", slow)
    saver, checkpoint = Saver(tmp_path, 3, beside=True), make(1)
    saver.save(checkpoint)
    for group in (checkpoint.model, checkpoint.optim):  # The average is that of the model here.
        for tensor in group.values():
            tensor.fill_(-9.0)
    go.set()
    saver.wait()
    assert equal(load_latest(tmp_path), make(1))


def test_checkpoints_follow_one_another(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 2, beside=True)
    for step in range(1, 6):
        saver.save(make(step))
    saver.wait()
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000004", "step-00000005"]
    saver.wait()  # with nothing to wait for


@pytest.mark.parametrize("next_call", ["save", "wait"])
def test_an_error_beside_is_raised_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_call: str
) -> None:
    def full(*args: Any) -> Path:
        raise CheckpointError("no space left")

    saver = Saver(tmp_path, 3, beside=True)
    with monkeypatch.context() as patch:
        patch.setattr(saver_module, "save_checkpoint", full)
        saver.save(make(1))
        assert saver._thread is not None
        saver._thread.join()
    with pytest.raises(CheckpointError, match="no space left"):
        saver.save(make(2)) if next_call == "save" else saver.wait()
    # Once said, it is not in the way of the next one.
    saver.save(make(3))
    saver.wait()
    assert load_latest(tmp_path).step == 3


def test_a_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    config = configure(
        data="moons", batch_size=8, width=8, depth=1, steps=7, num_steps=3, save_every=2,
        threads=1,
    )  # fmt: skip
    for name, beside in (("at once", False), ("beside", True)):
        train(config.replaced(async_save=beside), tmp_path / name)
    for step in ("00000004", "00000006", "00000007"):
        for file in FILES[1:]:
            one, other = (
                (tmp_path / name / "checkpoints" / f"step-{step}" / file).read_bytes()
                for name in ("at once", "beside")
            )
            assert one == other
