"""The field `log_to`: what each service has then, read back by its own package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from logged_series import mlflow_series, tensorboard_series, wandb_series
from loop_cases import STEPS, small_config
from training_runs import TIMING, outcome, train_until_killed

from diffflow_ext.cli import main
from diffflow_ext.training import Config, train
from diffflow_ext.training.loop.loggers import LOGGERS
from diffflow_ext.training.store.directory import read_metrics

NAMES = ("tensorboard", "wandb", "mlflow")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A run in a folder, with nothing sent anywhere, and no process left."""
    monkeypatch.chdir(tmp_path)
    values = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false",
        "WANDB_X_DISABLE_STATS": "true", "WANDB_X_DISABLE_META": "true",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path / 'mlruns'}", "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield small_config(tmp_path)
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


def known(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "log_to.json").read_text())[name]


def logged(run: Path, name: str) -> tuple[Any, Any]:
    read: dict[str, Callable[[], tuple[Any, Any]]] = {
        "tensorboard": lambda: tensorboard_series(run),
        "wandb": lambda: wandb_series(run.parent),
        "mlflow": lambda: mlflow_series(known(run, "mlflow")["id"]),
    }
    return read[name]()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_with_its_series(config: Config, tmp_path: Path, name: str) -> None:
    """The session fails at step 7, and the next one goes on from 4: step 6 is taken twice."""
    pytest.importorskip(name)
    run = tmp_path / "run"
    train_until_killed(config.replaced(log_to=name), run, 7)
    before, _ = logged(run, name)
    assert [step for step, _ in before["loss"]] == [2, 4, 6]
    assert main(["train", "--out", str(run), "--resume", "--steps", str(STEPS)]) == 0
    series, settings = logged(run, name)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert series.keys() == lines[0].keys() - {"step"}
    for key in series.keys() - {*TIMING}:
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]
        assert series[key] == expected, key
    for key in TIMING:
        assert [step for step, _ in series[key]] == [2, 4, 6, 8, 10]
    found = {key: settings[key] for key in ("model", "steps", "learning_rate", "learn_diffusion")}
    expected = {"model": "diffflow", "steps": 10, "learning_rate": 0.003, "learn_diffusion": False}
    assert found == ({k: str(v) for k, v in expected.items()} if name == "mlflow" else expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_run_in_the_folder_has_a_new_series(
    config: Config, tmp_path: Path, name: str
) -> None:
    """And it has the same bits, logged or not."""
    pytest.importorskip(name)
    run = tmp_path / "run"
    train(config.replaced(log_to=name), run)
    trained = outcome(run)
    if name == "tensorboard":
        (run / "tensorboard" / "events.out.tfevents.1.mine").write_bytes(b"")
        train(config, run, overwrite=True)
        assert outcome(run) == trained
        assert [path.name for path in (run / "tensorboard").iterdir()] == [
            "events.out.tfevents.1.mine"
        ]
        return
    old = known(run, name)
    assert old["step"] == STEPS
    train(config.replaced(log_to=name), run, overwrite=True)
    assert known(run, name)["id"] != old["id"]
    train(config, run, overwrite=True)
    assert not (run / "log_to.json").exists()
    assert outcome(run) == trained


def test_mlflow_knows_how_a_run_has_ended(config: Config, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    logger: Any = LOGGERS["mlflow"]()
    for error, status in (
        (None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")
    ):  # fmt: skip
        logger.on_start(config, tmp_path, 0)
        logger.on_log({"step": 1, "loss": 0.5})
        assert mlflow_series(known(tmp_path, "mlflow")["id"])[1]["status"] == "RUNNING"
        logger.on_end(error)
        assert mlflow_series(known(tmp_path, "mlflow")["id"])[1]["status"] == status


def test_a_run_of_the_caller_stays_open(config: Config, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    own = wandb.init(dir=str(tmp_path))
    try:
        train(config.replaced(log_to="wandb"), tmp_path / "run")
        assert known(tmp_path / "run", "wandb")["id"] != own.id
        assert wandb.run is own
        own.log({"x": 1.0})
    finally:
        own.finish()


@pytest.mark.parametrize(
    ("name", "module"), [*zip(NAMES, ("torch.utils.tensorboard", "wandb", "mlflow"), strict=True)]
)
def test_a_missing_package_is_said_first(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"log_to='{name}': .*'diffflow_ext\[{name}\]'"):
        train(config.replaced(log_to=name), tmp_path / "run")
    words = ["train", config.data.data, "--log-to", name, "--out", str(tmp_path / "run")]
    assert main(words) == main([*words, "--dry-run"]) == 2
    assert not (tmp_path / "run").exists()


def test_a_database_of_mlflow_needs_more(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ImportError, match=r"'diffflow_ext\[mlflow\]'"):
        train(config.replaced(log_to="mlflow"), tmp_path / "run")


def test_a_damaged_note_of_a_series_begins_another(config: Config, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    logger: Any = LOGGERS["mlflow"]()
    series = ('{"mlflow": 5}', '{"mlflow": {"id": "a", "step": null}}', '{"mlflow": {"step": 2}}')
    for text in ("", "[]", '{"mlflow"', "[" * 100_000, *series):
        (tmp_path / "log_to.json").write_text(text)
        logger.on_start(config, tmp_path, 4)
        logger.on_log({"step": 6, "loss": 0.5})
        logger.on_end(None)
        assert known(tmp_path, "mlflow")["step"] == 6
