"""The program: end to end as a process, its help as committed, and bad input in one line."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffflow_ext.cli import commands, doctor, flags, main
from diffflow_ext.cli.program import COMMANDS, MODELS
from diffflow_ext.training import configure
from diffflow_ext.training.config.fields import CONFIGS
from diffflow_ext.training.config.files import to_toml
from diffflow_ext.training.evaluation.sample_file import write_samples
from diffflow_ext.training.loop import trainer
from diffflow_ext.training.store.checkpoint import load_latest

HELP = Path(__file__).parents[2] / "docs" / "help"
#: Its release shows in the layout of help texts.
TYRO = re.findall(
    r"^tyro==(\S+)", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.M
)[0]
FAST = ("--steps=6 --num-steps=3 --width=8 --depth=1 --batch-size=16 --threads=1 --device=cpu "
        "--save-every=3 --log-every=2").split()  # fmt: skip


def program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffflow_ext", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    write_points(path, "a,b")
    return path


def write_points(path: Path, head: str) -> None:
    rows = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text(f"{head}\n" + "".join(f"{x},{1000 + x + y}\n" for x, y in rows))


@pytest.fixture
def run(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "run"
    assert main(["train", str(data), "--out", str(out), *FAST]) == 0
    capsys.readouterr()
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Returns the one line with which the program refuses."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("diffflow: ")
    return lines[0]


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


def test_missing_folder_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "sample", run, "--out", "missing/x.npy")
    assert line == "diffflow: missing/x.npy: the directory missing is missing"


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
    assert error.startswith("diffflow: stopped by SIGTERM; saved run/checkpoints/step-")
    assert load_latest(tmp_path / "run" / "checkpoints").step > 0


def test_samples_have_the_units_and_columns_of_the_data(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--n", "40", "--seed", "2", "--device", "cpu"]
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


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_option_of_another_sampler_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    more = ["--out", tmp_path / "x.npy"] if command == "sample" else []
    line = refusal(capsys, command, run, *more, "--eta=0.5")
    assert line == (
        "diffflow: sample: eta=0.5: the sampler of diffflow has num_steps, stochasticity,"
        " last_step, solver, corrector_steps, corrector_scale; leave eta out"
    )


def test_samples_are_drawn_as_a_picture(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "x.npy", tmp_path / "x.png"
    flags = ["--out", str(out), "--figure", str(picture), "--n=60"]
    assert main(["sample", str(run), *flags]) == 0
    assert picture.stat().st_size > 1000


def test_existing_files_are_not_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "x.npy", tmp_path / "x.png"
    out.write_bytes(b"mine")
    assert "give --overwrite" in refusal(capsys, "sample", run, "--out", out)
    assert out.read_bytes() == b"mine"
    picture.write_bytes(b"mine")
    flags = ("--out", tmp_path / "y.npy", "--figure", picture)
    assert "x.png: is there already" in refusal(capsys, "sample", run, *flags)


def test_wrong_number_of_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected samples of shape \(n, 2\), got \(4, 3\)"):
        write_samples(tmp_path / "x.csv", torch.zeros(4, 3), ("a", "b"))
    assert not list(tmp_path.iterdir())


def test_unknown_set_and_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "train", "mons", "--out", tmp_path / "run")
    assert "did you mean 'moons'" in line
    assert not (tmp_path / "run").exists()
    line = refusal(capsys, "train", tmp_path / "no.csv", "--out", tmp_path / "run")
    assert "no.csv" in line


def test_train_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected DATA" in refusal(capsys, "train", "--out", tmp_path / "run")
    assert "no.toml" in refusal(
        capsys, "train", "--out", tmp_path, "--config", tmp_path / "no.toml"
    )


def test_existing_run_is_refused_and_can_be_overwritten(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "train", data, "--out", run, *FAST)
    assert line.endswith("holds a run already; give --resume or --overwrite")
    assert main(["train", str(data), "--out", str(run), "--overwrite", *FAST]) == 0


def test_unwritable_output(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refusal(capsys, "train", data, "--out", tmp_path / "file" / "run", *FAST)
    assert "file" in refusal(capsys, "train", data, "--out", tmp_path / "file", *FAST)


def test_corrupt_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "checkpoints").glob("step-*/ema.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    for command in (("sample", run, "--out", tmp_path / "x.npy"), ("evaluate", run)):
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
    assert lines[0].endswith("falling back to step-00000003")


def test_wrong_columns(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_points(data, "a,c")
    line = refusal(capsys, "evaluate", run)
    assert "expected the columns a, b of the run, got a, c" in line
    line = refusal(capsys, "train", "--out", run, "--resume", "--steps=9")
    assert "expected the columns a, b of the run, got a, c" in line


def test_run_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run there" in refusal(capsys, "evaluate", tmp_path / "nothing")
    line = refusal(capsys, "sample", tmp_path, "--out", tmp_path / "x.npy")
    assert "no run there" in line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--steps=0"], "train: steps=0: expected a whole number from 1"),
        (["--steps=many"], "train diffflow: Error parsing --steps: invalid literal for int"),
        (["--t-start=3"], "train: t_end=0.05: expected more than t_start=3.0"),
        (["--timesteps=9"], "train: --timesteps=9: only ddpm has it; this run is diffflow"),
        (["--step=3"], "train: --step=3: diffflow has no such field; did you mean 'steps'?"),
        (["--overwrit"], "did you mean 'overwrite'?"),
        (["--optimiser.steps=3"], "diffflow has no such field"),
        (["--model=ddpm"], "train: --model: the model is a word: diffflow train MODEL DATA"),
        (["--prior=flat"], "invalid choice 'flat' for argument '--prior'"),
        (["more.csv"], "'more.csv': expected one DATA, got"),
        (["--limit=9999"], "expected a limit from 1 to the 480 training rows"),
        (["--image-size=8"], "expected image_size for images alone"),
        (["--flip=on"], "flip='on': expected off: these data are not images"),
        (["--resume", "--overwrite"], "got both"),
    ],
)
def test_bad_flags(
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: str,
) -> None:
    assert expected in refusal(capsys, "train", data, "--out", tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dance"], "'dance': expected a command, one of train, sample, "),
        (["trian", "moons"], "did you mean 'train'?"),
        (["train", "moons"], "Missing from diffflow train: --out RUN"),
        (["train", "ddmp", "moons", "--out=x"], "did you mean the model 'ddpm' by 'ddmp'?"),
        (["sample", "x", "--out=x.npy", "--stochasticty=1"], "did you mean --stochasticity?"),
        (["sample", "x", "--out"], "Missing value for argument '--out'"),
        (["evaluate"], "Missing from diffflow evaluate: RUN"),
        (["doctor", "moons"], "doctor: unknown 'moons'"),
    ],
)
def test_words_that_are_none(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert expected in refusal(capsys, *words)


def test_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_training_that_fails_has_its_own_code(
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise trainer.TrainingError("train: the loss is nan at step 2")

    monkeypatch.setattr(trainer.Trainer, "run_to_end", fail)
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *FAST]) == 1
    assert capsys.readouterr().err == "diffflow: train: the loss is nan at step 2\n"


def test_each_field_is_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run"), "--dry-run"]
    for model in CONFIGS:
        more = {"learn_diffusion": True, "progressive": "0:3"} if model == "diffflow" else {}
        config = configure(model, data="circles", seed=9, shard=True, **more)
        flags = []
        for name, value in config.values().items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(flag if value else flag.replace("--", "--no-", 1))
            elif name != "data":
                flags.append(f"{flag}={value}")
        assert main(["train", model, "circles", *out, *flags]) == 0
        assert capsys.readouterr().out == to_toml(config)
    assert not (tmp_path / "run").exists()


def test_flags_override_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(data="circles", seed=9, steps=77, learn_diffusion=True, t_end=0.125)
    file = tmp_path / "c.toml"
    file.write_text(to_toml(config))
    words = ["train", "--out", str(tmp_path / "run"), "--dry-run", "--config", str(file)]
    assert main([*words, "--steps", "5", "--no-learn-diffusion"]) == 0
    expected = config.replaced(steps=5, learn_diffusion=False)
    assert capsys.readouterr().out == to_toml(expected)
    line = refusal(capsys, "train", "ddpm", *words[1:])
    assert line == f"diffflow: train: 'ddpm': expected 'diffflow', the model of {file}"


def test_a_file_of_values_need_not_name_the_data(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "values.toml"
    path.write_text("[optimiser]\nsteps = 3\n[network]\nwidth = 5\n")
    words = ["train", data, "--config", path, "--out", tmp_path / "r", "--dry-run"]
    assert main([str(word) for word in words]) == 0
    assert "width = 5\n" in capsys.readouterr().out
    path.write_text('[optimiser]\nsteps = "x"\n')
    assert "values.toml: train: steps='x': expected a whole" in refusal(capsys, *words)


def test_flat_file_is_shown_in_its_new_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.toml"
    path.write_text('model = "ddpm"\nsteps = 3\n')
    assert main(["train", "moons", "--config", str(path), "--out", str(tmp_path / "r")]) == 2
    first, *form = capsys.readouterr().err.splitlines()
    assert first.startswith(f"diffflow: {path}: train: expected a table for each section")
    assert form == ["[model]", 'name = "ddpm"', "", "[optimiser]", "steps = 3"]


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
    assert "data='moons': the run to resume has" in line
    line = refusal(capsys, "train", "--out", run, "--resume", "--config", run / "config.toml")
    assert "the run to resume has its own" in line


def test_data_fetch_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "fetch", lambda name, to: f"{name} in {to}")
    assert main(["data", "fetch", "mnist", "--to", "here"]) == 0
    assert capsys.readouterr().out == "mnist in here\n"
    assert "expected `diffflow data list`" in refusal(capsys, "data", "fetch")
    assert "expected `diffflow data list`" in refusal(capsys, "data", "list", "mnist")


def test_data_that_cannot_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected one of mnist" in refusal(capsys, "data", "fetch", "moons")


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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("diffflow 0.")


def helped(*words: str) -> None:
    """Asks for help, which ends the program where tyro shows it."""
    with contextlib.suppress(SystemExit):
        assert main([*words, "--help"]) == 0


@pytest.mark.parametrize("name", ["diffflow", *COMMANDS, *(f"train-{model}" for model in MODELS)])
def test_help_is_as_committed(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.metadata.version("tyro") != TYRO:
        pytest.skip(f"the layout is that of tyro {TYRO}")
    monkeypatch.setenv("COLUMNS", "99")
    helped(*(() if name == "diffflow" else name.split("-")))
    lines = capsys.readouterr().out.splitlines()
    printed = "".join(f"{line.rstrip()}\n" for line in lines)
    path = HELP / f"{name}.txt"
    if os.environ.get("DIFFFLOW_WRITE_HELP"):
        path.write_text(printed)
    assert printed == path.read_text(), f"DIFFFLOW_WRITE_HELP=1 pytest {__file__} writes {path}"


def test_message_of_a_box_is_one_line() -> None:
    """As tyro draws it where the output has other characters, or colours."""
    drawn = (
        "╭─ \x1b[1mRequired\x1b[0m ──╮\n│ Missing: │\n│     --out RUN │\n│ ────────── │\n"
        "│ For full helptext, run x │\n╰────────╯\n"
    )
    plain = " Required \n ------- \n  Missing:  \n   --out RUN \n ------- \n  For more \n"
    for box in (drawn, plain):
        assert flags.message(box, "sample") == "sample: Missing: --out RUN"


def test_help_names_the_models_and_commands_that_exist() -> None:
    assert [*MODELS] == [*CONFIGS]
    assert [*COMMANDS] == ["train", *commands.COMMANDS]
    for name, command in commands.COMMANDS.items():
        assert command.__doc__ == COMMANDS[name]
    for model, kind in CONFIGS.items():
        said = MODELS[model].removesuffix(" (the default)")
        assert said[1:] in " ".join((kind.__doc__ or "").split())


def test_help_and_usage_errors_need_no_torch() -> None:
    """torch takes seconds to import."""
    program = """
import sys
from diffflow_ext.cli import main
codes = [main(words.split()) for words in ("--help", "--version", "train --help", "dance")]
assert codes == [0, 0, 0, 2], codes
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_more_threads_than_the_machine_has(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(data), "--out", str(tmp_path / "r"), *FAST, "--threads", "100000"]
    assert main(words) == 2
    assert "expected threads <=" in capsys.readouterr().err
