"""Weights in shares: the same numbers, and no process keeps more than its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from process_runs import POINTS, SMALL, assert_like, finished, run, start, weights

from diffflow_ext.training import configure, load_config, train
from diffflow_ext.training.store.directory import read_metrics

SHARDED = {
    "uneven": ("moons", *SMALL, "--batch-size", "7", "--steps", "3", "--threads", "1"),
    "two parts": ("dinof", "moons", *SMALL[:4], "--batch-size", "8", "--steps", "3",
                  "--log-every", "1"),
    "flow prior": ("moons", *SMALL, "--prior", "flow", "--batch-size", "8", "--steps", "3"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_weights_in_shares_train_like_whole_ones(tmp_path: Path, name: str) -> None:
    run(1, "train", *SHARDED[name], "--out", str(tmp_path / "1"))
    run(2, "train", *SHARDED[name], "--shard", "--out", str(tmp_path / "2"))
    assert_like(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_a_run_in_shares_goes_on_whole_and_back(tmp_path: Path) -> None:
    """Checkpoints hold whole tensors, whoever wrote them; 3 processes share 16 rows unevenly."""
    same = ("--schedule", "constant", "--progressive", "0:4")
    words = ("train", "moons", *SMALL, *same, "--batch-size", "10", "--threads", "1", "--steps")
    run(1, *words, "4", "--out", str(tmp_path / "alone"))
    for steps, size, shard in ((1, 2, True), (2, 1, True), (3, 3, True), (4, 2, False)):
        more = ("--resume", "--shard" if shard else "--no-shard", "--out", str(tmp_path / "run"))
        run(size, *words, str(steps), *more)
        assert load_config(tmp_path / "run" / "config.toml").run.shard is shard
    assert_like(tmp_path / "run", tmp_path / "alone")


def test_shares_of_one_process_are_warned_of(tmp_path: Path) -> None:
    config = configure(data="moons", steps=1, batch_size=4, width=4, depth=1, shard=True)
    with pytest.warns(UserWarning, match="shard=True has no effect in one process"):
        train(config, tmp_path / "run")


#: A program that says how many bytes of its state a process has, and spoils a loss if asked to.
SHARES = """
import math, os, sys
from diffflow_ext.cli import main
from diffflow_ext.training.recipes.diffflow import DiffFlowRecipe
from diffflow_ext.training.loop.state import TrainState
loss, save = DiffFlowRecipe._loss, TrainState.to_checkpoint
def spoiled(self, x0, step, offset):
    found = loss(self, x0, step, offset)
    return found * math.nan if step == 2 and "spoiled" in sys.argv[1] else found
def told(self, meta, keep):
    moments = [t for s in self.optimiser.state.values() for t in s.values() if t.ndim]
    tensors = [*self.module.parameters(), *self.ema.module.parameters(), *moments]
    kept = [getattr(t, "_local_tensor", t).untyped_storage() for t in tensors]
    kept = {s.data_ptr(): s.nbytes() for s in kept}
    print("bytes", sum(kept.values()), 4 * sum(t.numel() for t in tensors), file=sys.stderr)
    found = save(self, meta, keep=keep)
    assert keep or not (found.model or found.ema or found.optim)
    return found
DiffFlowRecipe._loss, TrainState.to_checkpoint = spoiled, told
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_each_process_keeps_its_share_alone(tmp_path: Path) -> None:
    for steps in ("4", "5"):  # Moments that Adam makes, and those that it has read.
        words = ("train", *POINTS[:-4], "--steps", steps, "--shard", "--resume", "--threads", "1")
        words += ("--out", str(tmp_path / "run"))
        for code, _, err in finished(start(2, *words, program=("-c", SHARES, "plain"))):
            assert code == 0, err
            mine, all_bytes = (int(n) for n in err.split("bytes ")[1].split()[:2])
            # FSDP2 keeps those of a group in one storage, padded to equal shares.
            assert mine < 0.53 * all_bytes


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_step_in_shares_that_is_not_finite(tmp_path: Path, what: str) -> None:
    """The weights are gathered to find out where, and not changed."""
    words = ("train", *POINTS, "--shard", "--on-nonfinite", what, "--out", str(tmp_path / "run"))
    ends = finished(start(2, *words, program=("-c", SHARES, "spoiled")))
    if what == "skip":
        assert [code for code, *_ in ends] == [0, 0], ends
        assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 1
        assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
        return
    assert [code for code, *_ in ends] == [1, 1], ends
    assert all("the loss is nan at step 3" in err for *_, err in ends)
    assert all("not finite are the gradients" in err for *_, err in ends), ends
