"""Runs in repositories of the Hugging Face Hub, whose part a server on this machine plays."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from hub_server import Hub, serving
from loop_cases import small_config

from diffflow_ext.cli import main
from diffflow_ext.training import CheckpointError, LoadedRun, load_run, train
from diffflow_ext.training.evaluation.hub import files_of_run
from diffflow_ext.training.store.checkpoint import step_directories

STEP = "checkpoints/step-00000004/"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("run")
    train(small_config(folder).replaced(steps=4), folder / "run")
    return load_run(folder / "run")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_a_run_is_pushed_and_loaded(run: LoadedRun, hub: Hub) -> None:
    from huggingface_hub import ModelCard

    address = run.push_to_hub("me/points", license="mit", description="Two columns.")
    assert address.startswith(f"{hub.address}/me/points/commit/")
    files = hub.repositories["me/points"]
    assert {*files} == {
        "README.md", "config.toml", f"{STEP}manifest.json", f"{STEP}ema.safetensors",
    }  # fmt: skip
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "diffflow_ext")
    loaded = LoadedRun.from_pretrained("me/points")
    assert torch.equal(loaded.sample(20, seed=3), run.sample(20, seed=3))
    assert loaded.step == 4
    hub.asked.clear()
    again = LoadedRun.from_pretrained("me/points", local_files_only=True)
    assert torch.equal(again.sample(20, seed=3), run.sample(20, seed=3))
    assert hub.asked == []


def test_another_run_takes_the_place_of_the_first(
    run: LoadedRun, hub: Hub, tmp_path: Path
) -> None:
    """Also one of fewer steps: of several the newest is loaded. Files of others stay."""
    run.push_to_hub("me/points")
    hub.repositories["me/points"] |= {"evaluation.json": b"{}", "notes.txt": b"mine"}
    train(small_config(tmp_path).replaced(steps=2, seed=8), tmp_path / "run")
    other = load_run(tmp_path / "run")
    other.push_to_hub("me/points")
    assert {*hub.repositories["me/points"]} == {
        "README.md", "config.toml", "notes.txt", "checkpoints/step-00000002/manifest.json",
        "checkpoints/step-00000002/ema.safetensors",
    }  # fmt: skip
    loaded = LoadedRun.from_pretrained("me/points")
    assert torch.equal(loaded.sample(20), other.sample(20))
    assert loaded.folder is not None
    assert not (loaded.folder / "notes.txt").exists()


def test_a_repository_without_a_run_is_refused(hub: Hub) -> None:
    hub.repositories["me/other"] = {"README.md": b"# A language model", "model.bin": b"pickle"}
    with pytest.raises(OSError, match=r"got 'me/other': its files are no run that diffflow_ext"):
        LoadedRun.from_pretrained("me/other")
    with pytest.raises(OSError, match=r"got 'me/none': .*(404|not found)"):
        LoadedRun.from_pretrained("me/none")
    with pytest.raises(OSError, match=r"repository of the Hub with one, got 'a/b/c': .*a/b/c"):
        LoadedRun.from_pretrained("a/b/c")
    assert not [line for line in hub.asked if "resolve" in line]


def test_more_bytes_than_are_ever_read_are_not_fetched(run: LoadedRun, hub: Hub) -> None:
    run.push_to_hub("me/points")
    hub.sizes[f"{STEP}ema.safetensors"] = 2**50
    with pytest.raises(OSError, match=r"its run has 1,125,\d+,\d+,\d+,\d+ bytes, expected at mo"):
        LoadedRun.from_pretrained("me/points")
    assert not [line for line in hub.asked if "resolve" in line]


def test_a_damaged_run_is_refused(run: LoadedRun, hub: Hub) -> None:
    run.push_to_hub("me/points")
    files = hub.repositories["me/points"]
    whole = dict(files)
    files[f"{STEP}ema.safetensors"] = files[f"{STEP}ema.safetensors"][:-1] + b"?"
    with pytest.raises(CheckpointError, match=r"a whole run in 'me/points', got: .* is damaged"):
        LoadedRun.from_pretrained("me/points")
    files |= whole
    del files[f"{STEP}manifest.json"]
    with pytest.raises(CheckpointError, match=r"whole run in 'me/points', got: .*manifest.json"):
        LoadedRun.from_pretrained("me/points")
    files |= whole
    files["config.toml"] = b"[model]\nname = 'another program'"
    assert LoadedRun.from_pretrained("me/points").step == 4  # The manifest counts.


def test_files_outside_of_the_folder_are_none_of_a_run() -> None:
    own = [f"{STEP}manifest.json", f"{STEP}ema.safetensors", "config.toml"]
    hostile = [
        "checkpoints/../../.ssh/manifest.json", "checkpoints/step-00000004/../../x.safetensors",
        "../config.toml", "/etc/config.toml", "checkpoints/step-00000004/ema.safetensors.py",
        "checkpoints/step-00000004/sub/ema.safetensors", "checkpoints\\step-00000004\\x",
        f"checkpoints/step-{'9' * 400}/manifest.json", "checkpoints/step-٠٠٠٠٠٠٠٩/manifest.json",
        "checkpoints/step-00000003/ema.safetensors",
    ]  # fmt: skip
    assert files_of_run(dict.fromkeys([*hostile, *own], 1)) == own


def test_a_hub_that_refuses_or_is_not_there(
    run: LoadedRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    with pytest.raises(OSError, match="401"):
        run.push_to_hub("me/points")
    assert hub.repositories == {}
    hub.shutdown()
    hub.server_close()
    assert constants.ENDPOINT == hub.address
    with pytest.raises(OSError, match=r"or a repository of the Hub with one, got 'me/points': "):
        LoadedRun.from_pretrained("me/points")


def test_a_missing_library_is_named(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    text = r"expected the package huggingface_hub, .*pip install 'diffflow_ext\[hub\]'"
    with pytest.raises(ImportError, match=f"push_to_hub: {text}"):
        run.push_to_hub("me/points")
    with pytest.raises(ImportError, match=f"from_pretrained: {text}"):
        LoadedRun.from_pretrained("me/points")
    assert run.folder is not None
    assert LoadedRun.from_pretrained(run.folder).step == 4
    assert step_directories(run.folder / "checkpoints")


@pytest.mark.slow
def test_commands_and_snippets_of_the_page_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of docs/sharing.md, in its order, in one folder; the training is shorter."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs/sharing.md").read_text(), re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for language, block in blocks:
        if language == "python":
            exec(block, names)
            continue
        for line in block.replace("--steps 1000", "--steps 20").splitlines():
            assert line.startswith("# ") or main(shlex.split(line)[1:]) == 0
    assert names["address"].startswith(f"{hub.address}/OWNER/moons/commit/")
    assert torch.equal(names["samples"], names["run"].sample(1000))
    assert names["again"].step == names["same"].step == 20
    assert "energy distance" in (tmp_path / "moons" / "README.md").read_text()
    for name in ("rings.csv", "rings.gif", "results/evaluation.json", "scores.csv"):
        assert (tmp_path / name).stat().st_size > 100
