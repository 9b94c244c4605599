"""A run killed anywhere and continued ends with the bits of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import respell
from training_runs import outcome, train_until_killed, write_table

from diffflow_ext.training import Config, configure, load_run, train
from diffflow_ext.training.config.files import to_toml
from diffflow_ext.training.loop.state import TrainState
from diffflow_ext.training.store.checkpoint import step_directories

STEPS = 24


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So few rows that an epoch is some steps, and ends within a batch."""
    return write_table(tmp_path_factory.mktemp("data") / "points.csv", rows=200)


def small(table: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "seed": 5, "steps": STEPS, "batch_size": 30, "warmup": 3, "save_every": 4,
        "log_every": 2, "threads": 1, **changes,
    }  # fmt: skip
    if values.get("model", "diffflow") == "diffflow":
        values = {"progressive": "off", "num_steps": 3, **values}
    if values.get("model") != "flow":
        values = {"width": 8, "depth": 1, **values}
    return configure(data=str(table), **values)


KINDS: dict[str, dict[str, Any]] = {
    "mid_epoch": {"batch_size": 50, "save_every": 3},
    "progressive": {"progressive": "0:2,7:3,15:5"},
    "progressive_auto": {"progressive": "auto"},
    "slow_average": {"ema_decay": 0.9999},
    "fast_average": {"ema_decay": 0.5},
    "cosine": {"schedule": "cosine", "warmup": 9},
    "constant": {"schedule": "constant", "warmup": 0},
    "bfloat16": {"autocast": "bf16"},
    "each_step_saved": {"save_every": 1, "keep_checkpoints": 1},
    "saved_once": {"save_every": STEPS},
    "learned_diffusion": {"learn_diffusion": True, "checkpoint_every": 2},
    "power_grid": {"grid": "power"},
    "saved_beside_the_training": {"async_save": True, "save_every": 2},
    "ddpm": {"model": "ddpm"},
    "dinof": {"model": "dinof", "t_cutoff": 0.5},
    "nfdm": {"model": "nfdm"},
    "nfdm_linear": {"model": "nfdm", "forward": "linear"},
    "ffjord": {"model": "ffjord"},
    "flow": {"model": "flow"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_kills_change_no_bit(table: Path, tmp_path: Path, name: str) -> None:
    config = small(table, **KINDS[name])
    train(config, tmp_path / "whole")
    rng = random.Random(name)
    for step in sorted(rng.sample(range(1, STEPS), 2)):
        train_until_killed(config, tmp_path / "run", step, resume=True)
    assert train(config, tmp_path / "run", resume=True).step == STEPS
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_the_comparison_sees_one_step_that_differs(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate off by 1e-6 in one step shows."""
    config = small(table)
    train(config, tmp_path / "whole")
    real = TrainState.update

    def update(state: TrainState, rates: Any) -> None:
        real(state, [rate * (1 + 1e-6 * (state.step == 10)) for rate in rates])

    monkeypatch.setattr(TrainState, "update", update)
    train(config, tmp_path / "other")
    assert outcome(tmp_path / "other") != outcome(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import pytest
from training_runs import before_update
from diffflow_ext.training import load_config, train

before_update(pytest.MonkeyPatch(), int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
train(load_config(sys.argv[3]), sys.argv[4], resume=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_by_the_system(table: Path, tmp_path: Path, seed: int) -> None:
    """Everything at once, and each part of the run in a process of its own."""
    config = small(
        table, progressive="0:2,7:3,15:5", schedule="cosine", autocast="bf16", batch_size=50,
        learn_diffusion=True, ema_decay=0.99, save_every=3 + seed,
    )  # fmt: skip
    train(config, tmp_path / "whole")
    (tmp_path / "config.toml").write_text(to_toml(config))
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    for step in sorted(random.Random(seed).sample(range(1, STEPS), 3)):
        arguments = (Path(__file__).parent, step, tmp_path / "config.toml", tmp_path / "run")
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, arguments)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert train(config, tmp_path / "run", resume=True).step == STEPS
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


SCALES = ("drift_scale", "score_scale")


def made_older(run: Path) -> None:
    """Takes the fields out of a run that earlier versions did not write."""
    for entry in step_directories(run / "checkpoints"):
        respell(entry, lambda body: [body["meta"]["config"].pop(name) for name in SCALES])
    lines = (run / "config.toml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(SCALES)]
    assert len(kept) == len(lines) - 2
    (run / "config.toml").write_text("".join(kept))


def scales(run: Path) -> list[float]:
    model: Any = load_run(run).model
    return [model.drift.output_scale, model.score.output_scale]


def test_a_run_keeps_the_defaults_of_earlier_versions(table: Path, tmp_path: Path) -> None:
    """What is left out in Python stands for the run's value, not for that of today."""
    once = {"diffusion_start": 0.7, "power": 0.8, "width": 5, "prediction": "noise"}
    train_until_killed(small(table, steps=12).replaced(**once), tmp_path, 9)
    left_out = small(table, steps=12).replaced(**dict.fromkeys(once))
    assert train(left_out, tmp_path, resume=True).step == 12
    values = load_run(tmp_path).config.values()
    assert {name: values[name] for name in once} == once


def test_a_run_from_before_the_scales_goes_on_without_them(table: Path, tmp_path: Path) -> None:
    config = small(table, progressive="auto", steps=12)
    train(config.replaced(**dict.fromkeys(SCALES, 1.0)), tmp_path / "whole")
    train_until_killed(config.replaced(**dict.fromkeys(SCALES, 1.0)), tmp_path / "run", 9)
    made_older(tmp_path / "run")
    assert scales(tmp_path / "run") == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"drift_scale=3\.0: the run to resume has 1\.0"):
        train(config.replaced(drift_scale=3.0), tmp_path / "run", resume=True)
    # What it is may be said.
    named = config.replaced(drift_scale=1.0, prediction="score")
    assert train(named, tmp_path / "run", resume=True).step == 12
    assert scales(tmp_path / "run") == [1.0, 1.0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_keeps_its_scales(table: Path, tmp_path: Path) -> None:
    """Those of T and g, and those that were given."""
    for given, expected in ((None, 5.0), (3.0, 3.0)):
        run, config = tmp_path / str(given), small(table, steps=12, drift_scale=given)
        train_until_killed(config, run, 9)
        assert scales(run) == pytest.approx([expected, 1 / (0.2 * 0.05**0.5)])
        with pytest.raises(ValueError, match=r"drift_scale=7\.0: the run to resume has "):
            train(config.replaced(drift_scale=7.0), run, resume=True)
        assert train(config, run, resume=True).step == 12
        assert scales(run) == pytest.approx([expected, 1 / (0.2 * 0.05**0.5)])
