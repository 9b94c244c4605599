"""The commands: end to end as a process, and bad input in one line."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import special_files
import torch
from cli_runs import FAST, refusal, write_points

from diffflow_ext.cli import commands, doctor, main
from diffflow_ext.training.evaluation.sample_file import write_samples
from diffflow_ext.training.loop import trainer
from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.dataset import DatasetRecord


def program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffflow_ext", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_points(tmp_path)


@pytest.fixture
def run(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "run"
    assert main(["train", str(data), "--out", str(out), *FAST]) == 0
    capsys.readouterr()
    return out


def test_train_and_evaluate_as_processes(tmp_path: Path, data: Path) -> None:
    trained = program("train", "points.csv", "--out", "a run", *FAST, cwd=tmp_path)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "step 6" in trained.stdout
    # From another folder the relative path of the data still holds.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    evaluated = program("evaluate", tmp_path / "a run", "--n", "60", cwd=elsewhere)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert "energy distance" in evaluated.stdout
    assert json.loads((tmp_path / "a run" / "evaluation.json").read_text())["n"] == 60


def test_what_was_read_is_said_before_training(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = [f"{data}: 600 rows, 2 columns: a, b", "split: 480 training, 60 validation, 60 test"]
    facts.append("kinds: all numbers")
    words = ["train", str(data), "--out", str(tmp_path / "run"), *FAST]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == facts
    assert not (tmp_path / "run").exists()
    (tmp_path / "run.toml").write_text(said.out)  # The output is a configuration.
    assert main([*words[:1], *words[2:4], "--config", str(tmp_path / "run.toml")]) == 0
    assert capsys.readouterr().out.splitlines()[: len(facts)] == facts


def test_columns_and_arrays_are_chosen_by_flags(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.read_text().splitlines()
    data.write_text("".join(f"{line},{'word' if i else 'kind'}\n" for i, line in enumerate(lines)))
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
    flags = [*FAST, "--steps=1000000", "--save-every=1000000", "--log-every=1"]
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
    first, last = error.splitlines()
    assert first.startswith("diffflow: SIGTERM: finishing this step, then saving; a second one")
    assert last.startswith("diffflow: stopped by SIGTERM; saved run/checkpoints/step-")
    assert load_latest(tmp_path / "run" / "checkpoints").step > 0


def test_samples_have_the_units_and_columns_of_the_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    flags = ["--n=40", "--seed=2", "--overwrite", "--figure", str(tmp_path / "x.png")]
    for name in ("x.npy", "x.csv"):
        assert main(["sample", str(run), "--out", str(tmp_path / name), *flags]) == 0
    values = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert values.shape == (40, 2)
    assert abs(values[:, 0].mean()) < 5
    assert abs(values[:, 1].mean() - 1000) < 5
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "a,b"
    table = np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1)
    assert np.array_equal(table, values)
    assert f"{tmp_path / 'x.csv'}: 40 samples of a, b" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_sampling_options_reach_the_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*flags: str) -> np.ndarray:
        out = tmp_path / "x.npy"
        assert main(["sample", str(run), "--out", str(out), "--n=8", "--overwrite", *flags]) == 0
        return np.load(out)

    base = draw()
    assert np.array_equal(base, draw("--seed=0", "--stochasticity=1.0", "--num-steps=3"))
    for other in ("--seed=1", "--stochasticity=0.5", "--num-steps=7", "--last-step=mean"):
        assert not np.array_equal(base, draw(other)), other


def test_targets_that_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "x.npy", tmp_path / "x.png"
    out.write_bytes(b"mine")
    assert "give --overwrite" in refusal(capsys, "sample", run, "--out", out)
    assert out.read_bytes() == b"mine"
    picture.write_bytes(b"mine")
    flags = ("--out", tmp_path / "y.npy", "--figure", picture)
    assert "x.png: is there already" in refusal(capsys, "sample", run, *flags)
    for name in ("folder.npy", "loop.npy"):
        kind, path = name.removesuffix(".npy"), tmp_path / name
        special_files.replace(path, kind)
        line = refusal(capsys, "sample", run, "--out", path, "--overwrite")
        assert f"{name}: expected a file or nothing there; give another name" in line
    line = refusal(capsys, "sample", run, "--out", "missing/x.npy")
    assert line == "diffflow: missing/x.npy: the directory missing is missing"


def test_a_link_beside_a_target_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".tmp-x.npy").symlink_to(tmp_path / "mine")
    write_samples(tmp_path / "x.npy", torch.zeros(4, 2), ("a", "b"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert np.load(tmp_path / "x.npy").shape == (4, 2)


def test_evaluation_names_what_it_cannot_write(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in (("figures", "a folder"), ("evaluation.json", "a file")):
        special_files.replace(run / name, "pipe")
        assert f"expected {expected} or nothing at" in refusal(capsys, "evaluate", run, "--n=60")
        (run / name).unlink()


def test_wrong_number_of_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected samples of shape \(n, 2\), got \(4, 3\)"):
        write_samples(tmp_path / "x.csv", torch.zeros(4, 3), ("a", "b"))
    assert not list(tmp_path.iterdir())


def test_train_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected DATA" in refusal(capsys, "train", "--out", tmp_path / "run")
    assert "no.toml" in refusal(
        capsys, "train", "--out", tmp_path, "--config", tmp_path / "no.toml"
    )


def test_paths_that_are_wrong_are_named_with_a_way_out(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ("train", "--out", tmp_path / "new", "--config")
    line = refusal(capsys, *config, tmp_path / "no.toml")
    assert line.startswith("diffflow: train: config: expected a file, found nothing at ")
    assert "no.toml'; check the path" in line
    line = refusal(capsys, *config, tmp_path)
    assert line == (
        f"diffflow: train: config: expected a file, got the folder {str(tmp_path)!r}; name a TOML"
        " file with a configuration"
    )
    for out in (data, data / "below", "/proc/below"):
        line = refusal(capsys, "train", data, "--out", out, *FAST)
        assert f"run directory {str(out)!r}: expected a folder that can be written to, got" in line
        assert "Errno" not in line
    thesis = run / "figures" / "thesis.pdf"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    assert "leave out --overwrite" in refusal(
        capsys, "train", data, "--out", thesis.parent, *FAST, "--overwrite"
    )
    assert main(["train", str(data), "--out", str(run), *FAST, "--overwrite"]) == 0
    assert thesis.read_text() == "mine"


def test_corrupt_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "checkpoints").glob("step-*/ema.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    resumed = ("train", "--out", run, "--resume", "--steps=9")
    for command in (("sample", run, "--out", tmp_path / "x.npy"), ("evaluate", run), resumed):
        assert "ema.safetensors: expected" in refusal(capsys, *command)
    assert not (tmp_path / "x.npy").exists()


def test_fall_back_is_one_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "step-00000006" / "ema.safetensors").unlink()
    assert main(["sample", str(run), "--out", str(tmp_path / "x.npy"), "--n=3"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("diffflow: warning: ")
    older = "falling back to step-00000003, an older one, from which `diffflow train --out"
    assert lines[0].endswith(f"{older} {run} --resume` goes on")


def test_run_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("evaluate", tmp_path / "nothing"), ("sample", tmp_path, "--out", "x.npy")):
        assert "no run there; diffflow train DATA --out" in refusal(capsys, *words)
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").write_text(
        '[data]\ndata = "moons"\n[model]\nname = "ddpm"\n'
    )
    line = refusal(capsys, "evaluate", tmp_path / "run" / "figures")
    assert line.endswith(f"no run there; the run is {tmp_path / 'run'}")
    assert "the folder of a run, got a file" in refusal(capsys, "evaluate", tmp_path / "x.csv")
    assert main(["evaluate", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


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


def test_hints_can_be_pasted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it's my run; $HOME"
    assert main(["train", str(data), "--out", str(out), *FAST, "--steps=1"]) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(hint.removeprefix("next: ")) == ["diffflow", "evaluate", str(out)]
    other = tmp_path / "no run"
    lines = (
        refusal(capsys, "evaluate", other),
        refusal(capsys, "sample", other, "--out", "x.npy"),
    )
    for line in lines:
        command = line.partition("; ")[2].removesuffix(" makes one")
        assert shlex.split(command) == ["diffflow", "train", "DATA", "--out", str(other)]


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
    again = ["train", str(data), "--out", str(run), *FAST, "--dry-run"]
    assert "holds a run already" in refusal(capsys, *again)
    for flags in (["--overwrite"], ["--resume"], ["--resume", "--steps=9"]):
        assert main([*again, *flags]) == 0
    assert "the run is at step 6 already" in refusal(capsys, *again, "--resume", "--steps=5")
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


def test_many_columns_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"c{i}" for i in range(1000))
    record = DatasetRecord("x", names, (0.0,), (1.0,), 0.0, "", (1000,))
    assert len(commands._contents(record)) < 100
    assert commands._contents(record).endswith(" more")
    assert commands._contents(replace(record, columns=("a", "b"))) == "a, b"


def test_data_fetch_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "expected `diffflow data list`" in refusal(capsys, "data", "fetch")
    assert "expected `diffflow data list`" in refusal(capsys, "data", "list", "mnist")
    monkeypatch.setattr(commands, "fetch", lambda name, to: f"{name} in {to}")
    assert main(["data", "fetch", "mnist", "--to", "here"]) == 0
    assert capsys.readouterr().out == "mnist in here\n"


def test_data_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"moons", "checkerboard", "magic"} <= set(names)


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in text
    assert "build compiler: " in text
    assert "noise: 3 of 3 known answers of Philox4x32-10 hold" in text
    wrong = (doctor.KNOWN_ANSWERS[0][0], doctor.KNOWN_ANSWERS[0][1], (1, 2, 3, 4))
    monkeypatch.setattr(doctor, "KNOWN_ANSWERS", (wrong, *doctor.KNOWN_ANSWERS[1:]))
    assert main(["doctor"]) == 1
    assert "noise: WRONG, only 2 of 3" in capsys.readouterr().out


def test_more_threads_than_the_machine_has(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", data, "--out", tmp_path / "r", *FAST, "--threads", "100000")
    assert "expected threads <=" in refusal(capsys, *words)
