"""Runs that are given to others: the same to the bit, and what they hold and don't tell."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoint_cases import respell
from cli_runs import refusal
from loop_cases import small_config
from training_runs import write_images

from diffflow_ext.cli import main
from diffflow_ext.estimators import DiffFlowDensity
from diffflow_ext.training import (
    CheckpointError,
    LoadedRun,
    configure,
    evaluate,
    load_config,
    load_run,
    train,
)
from diffflow_ext.training.store.checkpoint import step_directories

SMALL = {"steps": 2, "batch_size": 16, "threads": 1, "progressive": "off", "num_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation, in a folder whose name must not be given away."""
    folder = tmp_path_factory.mktemp("the author's machine") / "secret"
    folder.mkdir()
    config = small_config(folder).replaced(steps=4)
    train(config, folder / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Too few data for distances.
        evaluate(folder / "run", figures=False, ode_n=20)
    return folder / "run"


@pytest.fixture(scope="module")
def shared(folder: Path) -> Path:
    load_run(folder).save_pretrained(folder.parent / "shared", license="cc-by-4.0")
    return folder.parent / "shared"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_shared_run_is_the_same_to_the_bit(folder: Path, shared: Path) -> None:
    run, copy = load_run(folder), LoadedRun.from_pretrained(shared)
    rows = run.sample(30, seed=1)
    assert torch.equal(copy.sample(30, seed=1), rows)
    for estimator in ("ode", "bound", "importance_weighted"):
        asked = {"estimator": estimator, "num_paths": 2 if estimator[0] == "i" else 1}
        assert torch.equal(copy.log_prob(rows, **asked), run.log_prob(rows, **asked))
    (kept,) = step_directories(shared / "checkpoints")
    (own,) = (path for path in step_directories(folder / "checkpoints") if path.name == kept.name)
    name = "ema.safetensors"
    assert (kept / name).read_bytes() == (own / name).read_bytes() != b""


def test_what_a_shared_run_holds(folder: Path, shared: Path) -> None:
    """The averaged weights and texts: no state of the training, no path, no row."""
    assert files(shared) == {
        "README.md", "config.toml", "evaluation.json",
        "checkpoints/step-00000004/ema.safetensors", "checkpoints/step-00000004/manifest.json",
    }  # fmt: skip
    rows = (folder.parent / "points.csv").read_text().splitlines()[1:]
    numbers = {number for row in rows for number in row.split(",")}
    for path in (path for path in shared.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert b"secret" not in data
        assert str(folder.parent).encode() not in data
        if path.suffix != ".safetensors":
            known = numbers & {*data.decode().replace(",", " ").split()}
            assert len(known) <= 4  # The smallest and the largest number of each column.
    assert load_run(shared).record.name == "points.csv"
    assert load_config(shared / "config.toml").data.data == ""
    assert json.loads((shared / "evaluation.json").read_text())["data"] == "points.csv"


def test_commands_take_a_shared_run(folder: Path, shared: Path, tmp_path: Path) -> None:
    data, run = folder.parent / "points.csv", str(shutil.copytree(shared, tmp_path / "run"))
    for name, source in (("a.csv", run), ("b.csv", str(folder))):
        assert main(["sample", source, "--n", "5", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    words = ["score", run, str(data), "--out", str(tmp_path / "scores.npy")]
    assert main(words) == 0
    assert len(np.load(tmp_path / "scores.npy")) == 400
    words = ["evaluate", run, "--data", str(data), "--ode-n", "0", "--no-figures"]
    assert main(words) == 0
    before = json.loads((folder / "evaluation.json").read_text())
    after = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert before["bound"] == after["bound"]


def test_what_it_does_not_have_is_asked_for(
    folder: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "which does not name them: " in refusal(capsys, "evaluate", shared)
    data = folder.parent / "points.csv"
    words = ("train", data, "--out", shared, "--resume")
    assert "got a copy that was made to be shared, without it" in refusal(capsys, *words)
    assert load_run(shared).step == 4


def test_a_folder_of_others_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"a new or empty folder, got '.*mine' with README.md"):
        run.save_pretrained(tmp_path / "mine")
    assert files(tmp_path / "mine") == {"README.md"}
    with pytest.raises(OSError, match=r"expected a folder that can be written to, got 'File exi"):
        run.save_pretrained(tmp_path / "mine" / "README.md")
    with pytest.raises(ValueError, match="a run that comes with the package"):
        run.save_pretrained("examples:rings")
    with pytest.raises(ValueError, match=r"license='MIT licence': expected an identifier such as"):
        run.save_pretrained(tmp_path / "new", license="MIT licence")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("description", [5, None, ["Ours."]])
def test_a_description_is_a_text(folder: Path, tmp_path: Path, description: Any) -> None:
    with pytest.raises(TypeError, match="save_pretrained: expected a text as description"):
        load_run(folder).save_pretrained(tmp_path / "to", description=description)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"step": 4, "data": "x"}', '{"step": 4, "data": 3}', "null"]
)
def test_an_evaluation_of_another_program(folder: Path, tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"^save_pretrained: .* expected an evaluation of t"):
        load_run(run).save_pretrained(tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_an_evaluation_of_another_step_is_left_out(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    numbers = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**numbers, "step": 3}))
    load_run(run).save_pretrained(tmp_path / "shared")
    assert "evaluation.json" not in files(tmp_path / "shared")
    assert "It has not been evaluated." in (tmp_path / "shared" / "README.md").read_text()


def test_a_damaged_copy_is_refused(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    whole = (step / "manifest.json").read_bytes()
    respell(step, lambda body: body["files"]["ema.safetensors"]["tensors"].popitem())
    with pytest.raises(CheckpointError, match=r"bytes of tensors behind a .*the file is damaged"):
        LoadedRun.from_pretrained(tmp_path / "run")
    respell(step, lambda body: body.update(files={}))
    with pytest.raises(CheckpointError, match=r"not a whole checkpoint: .*ema.safetensors"):
        LoadedRun.from_pretrained(tmp_path / "run")
    (step / "manifest.json").write_bytes(whole)
    (step / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found nothing at .*ema.safetensors"):
        LoadedRun.from_pretrained(tmp_path / "run")
    shutil.rmtree(step)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        LoadedRun.from_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="no run there"):
        LoadedRun.from_pretrained(tmp_path / "none")


def test_an_estimator_is_shared(tmp_path: Path) -> None:
    """Its data were in memory; texts and conditions go with it."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"kind": rng.choice(["a", "b|`c`"], 300), "x": rng.normal(size=300)})
    options: Any = {"steps": 3, "num_steps": 3, "width": 8, "depth": 1, "random_state": 0}
    density = DiffFlowDensity(**options, batch_size=16, threads=1).fit(frame)
    density.run_.save_pretrained(tmp_path / "shared")
    copy = LoadedRun.from_pretrained(tmp_path / "shared")
    assert copy.sample_frame(20, seed=2).equals(density.run_.sample_frame(20, seed=2))
    again = DiffFlowDensity.load(tmp_path / "shared")
    assert np.array_equal(again.score_samples(frame), density.score_samples(frame))


@pytest.mark.parametrize("model", ["nfdm", "ddpm"])
def test_runs_of_images_and_conditions_are_shared(tmp_path: Path, model: str) -> None:
    images = write_images(tmp_path / "blobs", 8, 5200, 100)
    options: dict[str, Any] = {"steps": 1, "batch_size": 4, "unet_base": 8, "unet_mults": "1"}
    options |= {"unet_blocks": 1, "threads": 1, "condition": "label"}
    train(configure(model, data=str(images), **options), tmp_path / "run")
    run = load_run(tmp_path / "run")
    run.save_pretrained(tmp_path / "shared")
    copy = LoadedRun.from_pretrained(tmp_path / "shared")
    options = {"num_steps": 2, **({"sampler": "ddim"} if model == "ddpm" else {})}
    drawn = [one.sample(3, given={"label": 1}, **options) for one in (run, copy)]
    assert torch.equal(*drawn)
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "images of 1 x 8 x 8, given label (0 to 1)" in text
    assert str(tmp_path) not in text
