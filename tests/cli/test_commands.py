"""The commands: end to end as a process, and bad input in one line."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import special_files
import torch
from cli_runs import FAST, refusal

from diffflow_ext.cli import commands, doctor, main
from diffflow_ext.data.column import Column
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.training import load_run
from diffflow_ext.training.evaluation.sample_file import write_samples
from diffflow_ext.training.store.dataset import DatasetRecord

AB = (Column("a", "continuous"), Column("b", "continuous"))


def program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffflow_ext", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_train_and_evaluate_as_processes(tmp_path: Path, data: Path) -> None:
    trained = program("train", "points.csv", "--out", "a run", *FAST, cwd=tmp_path)
    assert trained.returncode == 0
    read = trained.stderr.splitlines()
    assert [line.split(": ")[0] for line in read] == [read[0].split(": ")[0], "split", "kinds"]
    assert "step 6" in trained.stdout
    # From another folder the relative path of the data still holds.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    evaluated = program("evaluate", tmp_path / "a run", "--n", "60", cwd=elsewhere)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert "energy distance" in evaluated.stdout
    assert json.loads((tmp_path / "a run" / "evaluation.json").read_text())["n"] == 60


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


def test_scores_are_log_p_of_rows(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.read_text().splitlines()
    rows, scores = tmp_path / "rows.csv", tmp_path / "scores.csv"
    # The second row lies far from all others.
    rows.write_text("\n".join(["a,note,b", *(line.replace(",", ",x,") for line in lines[1:3])]))
    rows.write_text(rows.read_text() + "\n9,x,900\n")
    assert main(["score", str(run), str(rows), "--out", str(scores)]) == 0
    head, *found = scores.read_text().split()
    values = load_run(run).log_prob([[*map(float, line.split(","))] for line in
                                     [*lines[1:3], "9,900"]])  # fmt: skip
    assert head == "log_prob"
    assert [*map(float, found)] == pytest.approx(values.tolist(), rel=1e-6)
    printed = capsys.readouterr().out
    assert re.search(r"log p of 3 rows in nats \(ODE, .* in row 2 \(counted from 0\)", printed)
    assert "is there already" in refusal(capsys, "score", run, rows, "--out", scores)
    array = tmp_path / "scores.npy"
    words = ["--estimator=bound", "--num-steps=2", "--seed=1"]
    assert main(["score", str(run), str(rows), "--out", str(array), *words]) == 0
    assert np.load(array).shape == (3, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows.csv", "--out=x.csv", "--estimator=exact"], "diffflow has bound, ode"),
        (["rows.csv", "--out=x.txt"], "ends in .csv or .npy"),
        (["none.csv", "--out=x.csv"], "found nothing at"),
        (["other.csv", "--out=x.csv"], "which has no 'b'; its columns are a, c"),
        (["gap.csv", "--out=x.csv"], "line 3, column 2 ('b')"),
    ],
)
def test_what_cannot_be_scored(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,1000\n")
    (tmp_path / "other.csv").write_text("a,c\n1,1000\n")
    (tmp_path / "gap.csv").write_text("a,b\n1,1000\n1,\n")
    assert message in refusal(capsys, "score", run, *words)
    assert not list(tmp_path.glob("x.*"))


def test_scores_do_not_replace_their_rows_nor_files_of_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, other = tmp_path / "rows.csv", tmp_path / ".tmp-s.csv"
    rows.write_text("a,b\n1,1000\n")
    other.write_text("mine")
    words = ("score", run, rows, "--overwrite", "--out")
    assert "expected another file than DATA" in refusal(capsys, *words, rows)
    assert main([*map(str, words), str(tmp_path / "s.csv")]) == 0
    assert (rows.read_text(), other.read_text()) == ("a,b\n1,1000\n", "mine")


def test_a_table_of_one_column(tmp_path: Path) -> None:
    values = torch.randn(600, generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "one.csv").write_text("a\n" + "".join(f"{value}\n" for value in values))
    out, scores = str(tmp_path / "run"), tmp_path / "scores.npy"
    assert main(["train", str(tmp_path / "one.csv"), "--out", out, *FAST]) == 0
    assert main(["evaluate", out, "--n=60", "--no-figures"]) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["gaussian_nll"]
    assert found == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.3)
    assert main(["score", out, str(tmp_path / "one.csv"), "--out", str(scores)]) == 0
    assert np.load(scores).shape == (600, 1)


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
    write_samples(tmp_path / "x.npy", torch.zeros(4, 2), AB)
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
        write_samples(tmp_path / "x.csv", torch.zeros(4, 3), AB)
    assert not list(tmp_path.iterdir())


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


def test_many_columns_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"c{i}" for i in range(1000)]
    record = DatasetRecord("x", Encoding.linear(names, [0.0] * 1000, [1.0] * 1000), "", (1000,))
    assert len(commands._contents(record)) < 100
    assert commands._contents(record).endswith(" more")
    few = replace(record, encoding=Encoding.linear(["a", "b"], [0.0] * 2, [1.0] * 2))
    assert commands._contents(few) == "a, b"


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
