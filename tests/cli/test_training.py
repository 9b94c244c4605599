"""The command train: flags, resuming, signals, and what it tells."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import FAST, fast, refusal

from diffflow_ext.cli import main
from diffflow_ext.training.loop import trainer
from diffflow_ext.training.store.checkpoint import load_latest


def test_what_was_read_is_said_before_training(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = [
        f"{data.name}: 600 rows, 2 columns: a, b",
        "split: 480 training, 60 validation, 60 test",
    ]
    facts.append("kinds: all continuous")
    words = ["train", str(data), "--out", str(tmp_path / "run"), *FAST]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == facts
    assert not (tmp_path / "run").exists()
    (tmp_path / "run.toml").write_text(said.out)  # The output is a configuration.
    assert main([*words[:1], *words[2:4], "--config", str(tmp_path / "run.toml")]) == 0
    assert capsys.readouterr().err.splitlines() == facts


def test_columns_and_arrays_are_chosen_by_flags(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.read_text().splitlines()
    cells = ["kind", *["2020-01-01"] * (len(lines) - 1)]
    data.write_text("".join(f"{a},{b}\n" for a, b in zip(lines, cells, strict=True)))
    words = ("train", data, "--out", tmp_path / "run", *FAST)
    hint = re.search(r"--drop-columns=\w+", refusal(capsys, *words))
    assert hint is not None
    assert main([*map(str, words), hint[0]]) == 0
    capsys.readouterr()
    # An evaluation reads the columns of the run.
    assert main(["evaluate", str(tmp_path / "run"), "--n=60", "--no-figures"]) == 0
    rows = np.random.default_rng(0).normal(size=(40, 2))
    np.savez(tmp_path / "a.npz", one=rows, two=rows[:, :1])
    words = ("train", tmp_path / "a.npz", "--out", tmp_path / "other", "--dry-run")
    hint = re.search(r"--key=\w+", refusal(capsys, *words))
    assert hint is not None
    assert main([*map(str, words), hint[0]]) == 0
    assert "2 columns: x1, x2" in capsys.readouterr().err


@pytest.mark.timeout(120)
def test_sigterm_saves_and_exits_with_its_code(tmp_path: Path, data: Path) -> None:
    flags = fast("--steps=1000000", "--save-every=1000000", "--log-every=1")
    command = [sys.executable, "-m", "diffflow_ext", "train", str(data), "--out", "run", *flags]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "run" / "metrics.jsonl"
        # From its first line on the process has its handler of signals.
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate()
    assert process.returncode == 143
    *_, first, last = error.splitlines()  # Lines before them tell of the data.
    assert first.startswith("diffflow: SIGTERM: finishing this step, then saving; a second one")
    assert last.startswith("diffflow: stopped by SIGTERM; saved run/checkpoints/step-")
    assert load_latest(tmp_path / "run" / "checkpoints").step > 0


def test_train_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected DATA" in refusal(capsys, "train", "--out", tmp_path / "run")
    assert "no.toml" in refusal(
        capsys, "train", "--out", tmp_path, "--config", tmp_path / "no.toml"
    )


def test_training_that_fails_has_its_own_code(
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise trainer.TrainingError("train: the loss is nan at step 2")

    monkeypatch.setattr(trainer.Trainer, "run_to_end", fail)
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *FAST]) == 1
    assert capsys.readouterr().err == "diffflow: train: the loss is nan at step 2\n"


def test_resume_takes_the_configuration_of_the_run(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(run), "--resume", "--steps=8"]) == 0
    said = capsys.readouterr()
    assert "step 8" in said.out
    assert "all steps" not in said.out
    assert "train: steps=8 where the run had 6" in said.err
    assert main(["train", str(data), "--out", str(run), "--resume"]) == 0
    said = capsys.readouterr()
    assert "all steps had been taken before" in said.out
    assert "where the run had" not in said.err
    line = refusal(capsys, "train", "moons", "--out", run, "--resume")
    assert "moons: expected column 1 to be 'a' as in the run, got 'x1'" in line
    line = refusal(capsys, "train", "--out", run, "--resume", "--config", run / "config.toml")
    assert "the run to resume has its own" in line


def test_a_run_from_the_file_of_an_earlier_version_is_told_what_is_new(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(data), "--config", str(run / "config.toml"), "--dry-run", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert "earlier version" not in capsys.readouterr().err
    # Such files had no scales, which were 1.
    text = (run / "config.toml").read_text()
    lines = [line for line in text.splitlines() if "_scale = " not in line or "time" in line]
    (run / "config.toml").write_text("\n".join(lines))
    assert main([*words, str(tmp_path / "b")]) == 0
    said = re.search(r"had drift_scale, score_scale, which .* give (.*)", capsys.readouterr().err)
    assert said is not None
    assert main([*words, str(tmp_path / "c"), *said[1].split()]) == 0
    assert "earlier version" not in capsys.readouterr().err


def test_data_that_have_moved(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, picture = tmp_path / "new place.csv", tmp_path / "x.png"
    data.rename(moved)
    line = refusal(capsys, "train", "--out", run, "--resume", "--steps=7")
    hint = line.partition("give their new path: ")[2]
    assert shlex.split(hint) == ["diffflow", "train", "PATH", "--out", str(run), "--resume"]
    assert "(--data PATH)" in refusal(capsys, "evaluate", run)
    sample = ("sample", run, "--n=9", "--out", tmp_path / "x.npy", "--figure", picture)
    assert "(--data PATH)" in refusal(capsys, *sample)
    assert main([*map(str, sample), "--data", str(moved)]) == 0
    assert picture.exists()
    assert main(["train", str(moved), "--out", str(run), "--resume", "--steps=7"]) == 0
    assert load_latest(run / "checkpoints").step == 7
    # From now on the run knows the new place.
    assert main(["train", "--out", str(run), "--resume", "--steps=8"]) == 0
    other = tmp_path / "other.csv"
    other.write_text(moved.read_text().replace("1000.", "1001."))
    line = refusal(capsys, "train", other, "--out", run, "--resume", "--steps=9")
    assert "its values have changed since the run began" in line


def test_a_dry_run_of_a_run_that_is_there(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))

    def again(*flags: str) -> list[str]:
        return ["train", str(data), "--out", str(run), *fast(*flags), "--dry-run"]

    assert "holds a run already" in refusal(capsys, *again())
    for flags in (["--overwrite"], ["--resume"], ["--resume", "--steps=9"]):
        assert main(again(*flags)) == 0
    assert "the run is at step 6 already" in refusal(capsys, *again("--resume", "--steps=5"))
    assert sorted(run.rglob("*")) == before


def test_a_graph_without_a_gpu_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data), "--out", str(tmp_path / "r"), *FAST, "--cuda-graph=on", "--dry-run"]
    assert main(["train", *words]) == 0
    assert "cuda_graph='on' has no effect on a CPU; take 'off'" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_slow_precision_is_told(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    words = [str(data), "--out", str(tmp_path / "r"), *FAST, "--autocast=bf16", "--dry-run"]
    assert main(["train", *words]) == 0
    assert ("autocast='bf16' makes this processor" in capsys.readouterr().err) == warned


def test_more_threads_than_the_machine_has(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", data, "--out", tmp_path / "r", *fast("--threads=100000"))
    assert "expected threads <=" in refusal(capsys, *words)
