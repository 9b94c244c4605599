"""Runs that are loaded: of whatever stands in the place of their files, our message."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import special_files
from checkpoint_cases import FILES, respell
from loop_cases import small_config

from diffflow_ext.training import CheckpointError, load_run, train
from diffflow_ext.training.evaluation.loaded_run import run_of
from diffflow_ext.training.store.checkpoint import load_checkpoint, step_directories
from diffflow_ext.training.store.runs import read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = small_config(tmp_path).replaced(steps=4, save_every=2)
    train(config, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", special_files.KINDS)
@pytest.mark.parametrize("name", [*FILES, "."])
def test_what_stands_in_the_place_of_a_file(run: Path, kind: str, name: str) -> None:
    newest, older = step_directories(run / "checkpoints")
    special_files.replace(newest / name if name != "." else newest, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_run(run).step == 2
    if name != ".":
        text = str(caught[0].message)
        assert "expected a file, " in text
        assert "step-00000002, an older one" in text
        special_files.replace(older / name, kind)
        with pytest.raises(CheckpointError, match=r"no other is whole: train again, `diffflow tr"):
            load_run(run)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", special_files.KINDS)
def test_what_stands_in_the_place_of_the_checkpoints(run: Path, kind: str) -> None:
    special_files.replace(run / "checkpoints", kind)
    with pytest.raises(CheckpointError, match=r"no checkpoint there|a folder of checkpoints, got"):
        load_run(run)
    special_files.replace(run / "config.toml", kind)
    with pytest.raises((ValueError, CheckpointError), match=r"no run there|a folder of checkpoi"):
        load_run(run)


def test_no_more_is_read_than_the_tensors_of_the_manifest(run: Path) -> None:
    """Eight gibibytes that take no room on the disk, and a manifest that says so."""
    newest, _ = step_directories(run / "checkpoints")
    os.truncate(newest / "model.safetensors", 2**33)
    respell(newest, lambda body: body["files"]["model.safetensors"].update(bytes=2**33))
    with pytest.raises(
        CheckpointError, match=r"bytes of tensors behind a header of \d+, got 8589"
    ):
        load_checkpoint(newest)
    with (newest / "model.safetensors").open("r+b") as file:
        file.write((2**33 - 8).to_bytes(8, "little"))
    respell(newest, lambda body: body["files"]["model.safetensors"].update(tensors={}))
    with pytest.raises(CheckpointError, match="behind a header of 8589934584"):
        load_checkpoint(newest)


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "width": lambda body: body["meta"]["config"].update(width=65536),
    "depth": lambda body: body["meta"]["config"].update(depth=10**9),
    "smaller": lambda body: body["meta"]["config"].update(width=4),
    "model": lambda body: body["meta"]["config"].update(model=["ddpm"]),
    "config": lambda body: body["meta"].update(config=[1]),
    "no config": lambda body: body["meta"].pop("config"),
    "no data": lambda body: body["meta"].pop("data"),
    "data": lambda body: body["meta"].update(data="moons"),
    "columns": lambda body: body["meta"]["data"].update(columns=3),
    "shape": lambda body: body["meta"]["data"].update(event_shape=[10**9]),
    "negative": lambda body: body["meta"]["data"].update(event_shape=[-1]),
    "words": lambda body: body["meta"]["data"].update(event_shape=["a"]),
    "meta": lambda body: body.update(meta=[]),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_manifests_end_in_a_message(run: Path, name: str) -> None:
    for entry in step_directories(run / "checkpoints"):
        respell(entry, FORGED[name])
    with pytest.raises(CheckpointError, match=r"train again$"):
        load_run(run)
    if name in ("width", "depth", "smaller", "shape", "negative", "words"):
        return  # The configuration and the data that are given count.
    with pytest.raises(CheckpointError):
        train(small_config(run.parent).replaced(steps=9), run, resume=True)


def test_a_forged_configuration_builds_nothing(run: Path) -> None:
    text = (run / "config.toml").read_text().replace("width = 8", "width = 65536")
    (run / "config.toml").write_text(text)
    config = small_config(run.parent).replaced(steps=9, save_every=2, width=65536)
    with pytest.raises(ValueError, match="its checkpoint has a smaller one"):
        train(config, run, resume=True)
    assert (run / "config.toml").read_text() == text


def test_a_run_is_shown_in_a_line_and_a_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    loaded = load_run(run.name)
    monkeypatch.chdir(tmp_path.root)
    assert repr(loaded) == "LoadedRun(model diffflow, step 4, columns c0, c1)"
    lines = loaded.history()
    assert [line["step"] for line in lines] == [2, 4]
    html = loaded._repr_html_()
    bound = sum(line["bound"] for line in lines) / 2
    label = "bound on -log p [nats per sample]"
    assert f"<td>{label}</td><td>{bound:.4g}, mean of the last 2 lines of the log</td>" in html
    count = sum(p.numel() for p in loaded.model.parameters())
    assert f"<td>parameters</td><td>{count:,}</td>" in html
    in_memory = run_of(read_run(run), "cpu", "an estimator")
    assert in_memory.history() == []
    assert "log" not in in_memory._repr_html_()
    assert repr(read_run(run)).startswith("Checkpoint(step 4, ")
    assert len(repr(read_run(run))) < 80
