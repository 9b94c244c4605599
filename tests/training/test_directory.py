"""Run directories: what is a run, what is removed, and what stays of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import special_files
from loop_cases import small_config
from training_runs import Kill, before_update, kill, outcome, write_images, write_table

from diffflow_ext import DiffFlowSDE
from diffflow_ext.training import Config, TrainingError, configure, evaluate, train
from diffflow_ext.training.loop.starting import check_outside
from diffflow_ext.training.store.checkpoint import load_latest, step_directories
from diffflow_ext.training.store.directory import (
    PICTURES,
    RunDirectory,
    read_metrics,
    replace_text,
)

FOREIGN = {
    "config.toml": "[server]\nport = 80\n",
    "config.toml of the same tables": "[model]\nlayers = 3\n",
    "metrics.jsonl": '{"epoch": 1}\n',
    "evaluation.json": "{}",
    "log_to.json": '{"level": "debug"}',
    "checkpoints/latest": "global_step10\n",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_config(tmp_path_factory.mktemp("data")).replaced(steps=3, save_every=2)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_overwriting_removes_files_of_a_run_alone(config: Config, tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    train(config, run)
    (run / "checkpoints").rename(scratch)
    (run / "checkpoints").symlink_to(scratch)
    (run / "figures").mkdir()
    for name in PICTURES:
        (run / "figures" / name).write_bytes(b"\x89PNG ... diffflow_ext ...")
    (run / "evaluation.json").write_text("{}")
    foreign = ("figures/thesis.pdf", "figures/loss.png", "notes.txt", "checkpoints/model.pt",
               "checkpoints/.tmp-mine", "checkpoints/step-00000002/samples.png")  # fmt: skip
    for name in foreign:
        (run / name).write_text("mine")
    train(config.replaced(seed=8, save_every=3), run, overwrite=True)
    assert all((run / name).read_text() == "mine" for name in foreign)
    assert (run / "checkpoints").is_symlink()
    assert [path.name for path in step_directories(scratch)] == ["step-00000003"]
    assert not (run / "evaluation.json").exists()
    assert {path.name for path in (run / "figures").iterdir()} == {"thesis.pdf", "loss.png"}
    assert load_latest(scratch).meta["seed"] == 8


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=str)
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_another_program_are_neither_replaced_nor_removed(
    config: Config, tmp_path: Path, name: str, options: dict[str, bool]
) -> None:
    path = tmp_path / "run" / name.split()[0]
    path.parent.mkdir(parents=True)
    path.write_text(FOREIGN[name])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"a run of diffflow, or .*{path.name}' of something"):
        train(config, tmp_path / "run", **options)
    assert contents(tmp_path) == before
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("foreign", [[], ["thesis.pdf"]], ids=["empty", "foreign"])
def test_a_folder_without_a_run_is_not_overwritten(
    config: Config, tmp_path: Path, foreign: list[str]
) -> None:
    for name in foreign:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"a run of diffflow to overwrite, .*leave out --overwr"):
        train(config, tmp_path, overwrite=True)
    train(config, tmp_path / "missing", overwrite=True)
    train(config, tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in foreign)


@pytest.mark.parametrize("place", [".", "run", "a/run"])
def test_a_run_among_its_own_data_is_refused(tmp_path: Path, place: str) -> None:
    """The next run would take its figures for data."""
    images = write_images(tmp_path / "images", size=8)
    before = contents(images)
    with pytest.raises(ValueError, match=r"a run outside of its data, .*choose another --out"):
        train(configure("ddpm", data=str(images), steps=1), images / place)
    assert contents(images) == before
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(ValueError, match="a run outside of its data"):
        train(configure("ddpm", data=str(images), steps=1), tmp_path / "link" / "run")


def test_a_run_may_be_called_like_a_set_or_beside_its_data(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = write_images(tmp_path / "images", size=8)
    for data, out in (("moons", "moons/a"), (str(images), "images/../beside")):
        check_outside(RunDirectory(out), config.replaced(data=data))


def test_a_start_that_was_killed_is_overwritten(config: Config, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("")
    assert train(config, tmp_path, overwrite=True).step == 3


def test_a_run_is_known_by_its_configuration_or_by_a_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    train(config, tmp_path)
    run = RunDirectory(tmp_path)
    text = run.config.read_text()
    run.config.write_text("[" * 100_000)
    assert run.holds_run()
    for entry in step_directories(run.checkpoints):
        (entry / "manifest.json").write_text("{}")
    assert not run.holds_run()
    run.config.write_text(text)
    assert run.holds_run()


def not_finite(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiffFlowSDE, "mean_loss", lambda *_, **__: (_ for _ in ()).throw(TrainingError))


FAILURES: dict[str, tuple[dict[str, Any], Callable[[Any], object], type[BaseException]]] = {
    "data": ({"data": "missing.csv"}, lambda patch: None, Exception),
    "threads": ({"threads": 100_000}, lambda patch: None, ValueError),
    "too large": ({"width": 10**9}, lambda patch: None, ValueError),
    "loss": ({}, not_finite, TrainingError),
    "killed": ({}, lambda patch: before_update(patch, 0, kill), Kill),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_old_run_is_whole_until_a_step_of_the_new_one_is_done(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    train(config, tmp_path)
    before, (changes, prepare, error) = contents(tmp_path), FAILURES[name]
    with monkeypatch.context() as patch:
        prepare(patch)
        with pytest.raises(error):
            train(config.replaced(seed=8).replaced(**changes), tmp_path, overwrite=True)
    assert contents(tmp_path) == before
    before_update(monkeypatch, 1, kill)
    with pytest.raises(Kill):
        train(config.replaced(seed=8), tmp_path, overwrite=True)
    assert not step_directories(tmp_path / "checkpoints")
    assert "seed = 8" in (tmp_path / "config.toml").read_text()


def test_an_overwritten_run_is_that_of_an_empty_folder(config: Config, tmp_path: Path) -> None:
    train(config.replaced(seed=8), tmp_path / "run")
    train(config, tmp_path / "run", overwrite=True)
    train(config, tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", special_files.KINDS)
def test_what_stands_in_the_place_of_a_run_s_files(
    config: Config, tmp_path: Path, kind: str
) -> None:
    train(config, tmp_path / "run")
    names = ["config.toml", "metrics.jsonl", "evaluation.json", "log_to.json", ".lock"]
    names += ["checkpoints/latest"]
    names += [] if kind == "folder" else ["checkpoints", "figures", "tensorboard"]
    for name in names:
        path = tmp_path / "run" / name
        special_files.replace(path, kind)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"run directory .*: expected a f.*move it away"):
                train(config, tmp_path / "run", **options)
        before = path.with_name(f"{path.name}.before")
        path.rmdir() if kind == "folder" else path.unlink()
        if before.exists():
            before.rename(path)
    assert train(config, tmp_path / "run", resume=True).step == 3


def test_events_of_others_stay(config: Config, tmp_path: Path) -> None:
    """Behind a link in the place of RUN/tensorboard, and folders that are called as events."""
    train(config, tmp_path / "run")
    name, events = "events.out.tfevents.7.h.diffflow", tmp_path / "run" / "tensorboard"
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / name).write_text("mine")
    events.symlink_to(tmp_path / "others")
    with pytest.raises(ValueError, match=r"expected a folder that is no link, or nothing at"):
        train(config, tmp_path / "run", overwrite=True)
    assert (tmp_path / "others" / name).read_text() == "mine"
    events.unlink()
    (events / name).mkdir(parents=True)
    assert train(config, tmp_path / "run", overwrite=True).step == 3
    assert (events / name).is_dir()


def test_a_lock_that_is_a_link_is_not_emptied(config: Config, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match=r"a file that is no link, or nothing at .*\.lock"):
        train(config, tmp_path / "run")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_link_beside_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".tmp-x").symlink_to(tmp_path / "mine")
    replace_text(tmp_path / "x", "text")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/below"])
def test_directories_that_cannot_be_made(config: Config, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"^run directory .*a folder that can be written to, got '"):
        train(config, tmp_path / name)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_log_of_any_content_is_read_to_its_first_bad_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert read_metrics(log) == []
    for bad in ("[" * 200_000, '{"step": "1"}', "\0", '{"a":' * 100_000):
        log.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
        assert read_metrics(log) == [{"step": 1}]
    os.truncate(log, 2**31)
    with pytest.raises(ValueError, match=r"at most 1,073,741,824 bytes, .*move it away"):
        read_metrics(log)


def test_all_pictures_are_known(config: Config, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = write_table(tmp_path / "more.csv", rows=600)
    train(config.replaced(data=str(data)), tmp_path / "run")
    evaluate(tmp_path / "run", 60, device="cpu", ode_n=0)
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} <= set(PICTURES)
