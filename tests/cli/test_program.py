"""Words and flags: help as committed, each field a flag, and did you mean."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import FAST, refusal, write_points

from diffflow_ext.cli import commands, flags, main, program
from diffflow_ext.cli.program import COMMANDS, MODELS
from diffflow_ext.functional import memory
from diffflow_ext.training import configure
from diffflow_ext.training.config.fields import CONFIGS
from diffflow_ext.training.config.files import to_toml

HELP = Path(__file__).parents[2] / "docs" / "help"
#: Its release shows in the layout of help texts.
TYRO = re.findall(
    r"^tyro==(\S+)", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.M
)[0]


TRAIN = "train moons --out=run"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            f"{TRAIN} --steps=many",
            "diffflow: --steps: expected a whole number, got 'many'",
        ),
        (f"{TRAIN} --t-start=3", "train: t_end=0.05: expected more than t_start=3.0"),
        (
            f"{TRAIN} --timesteps=9",
            "train: --timesteps=9: only for the model ddpm, and this run trains diffflow",
        ),
        (f"{TRAIN} --step=3", "--step=3: diffflow has no such field; did you mean 'steps'?"),
        (f"{TRAIN} --overwrit", "did you mean 'overwrite'?"),
        (f"{TRAIN} --optimiser.steps=3", "diffflow has no such field"),
        (f"{TRAIN} --model=ddpm", "--model: the model is a word: diffflow train MODEL DATA"),
        (f"{TRAIN} --prior=flat", "--prior: expected one of flow, normal, got 'flat'"),
        (f"{TRAIN} --width=x", "--width: expected a whole number, got 'x'"),
        (f"{TRAIN} --flow=maf", "--flow: expected one of glow, spline, got 'maf'"),
        (f"{TRAIN} --diffusion-start=x", "--diffusion-start: expected a number, got 'x'"),
        (f"{TRAIN} more.csv", "'more.csv': expected one DATA, got"),
        ("train diffusion x.csv --out=x", "got 'diffusion' too; models are diffflow, dinof, nfdm"),
        (f"{TRAIN} --epochs=3", "did you mean 'steps'?"),
        (f"{TRAIN} --resume --overwrite", "got both"),
        ("dance", "'dance': expected a command, one of train, sample, "),
        ("trian moons", "did you mean 'train'?"),
        ("train moons", "Missing from diffflow train: --out RUN"),
        ("train DDPM moons --out=x", "did you mean `diffflow train ddpm moons ...`?"),
        ("train DDPM --out=x", "did you mean `diffflow train ddpm DATA --out x`?"),
        (
            "train --out=x --resume",
            "--resume: expected a run in 'x', got none; give another --out",
        ),
        ("train ddmp moons --out=x", "did you mean `diffflow train ddpm moons ...`?"),
        ("train --out=x ddpm moons", "did you mean `diffflow train ddpm moons ...`?"),
        ("sample x --out=x.npy --stochasticty=1", "did you mean --stochasticity?"),
        ("sample x --out", "sample: --out: expected a value"),
        (
            f"{TRAIN} --columns=a=integer --steps=3 --columns b=heavy",
            "train: --columns: expected once, got twice; leave one out, or write several names w",
        ),
        (
            f"{TRAIN} --drop-columns=a --drop_columns=b",
            "train: --drop-columns: expected once, got",
        ),
        (
            "sample x --out=x.npy --given a=1 --given b=2",
            "sample: --given: expected once, got twi",
        ),
        ("evaluate x --figures --no-figures", "expected one of --figures and --no-figures, got b"),
        (
            "sample x --out=x.npy --clip --no-clip",
            "expected one of --clip and --no-clip, got both",
        ),
        ("evaluate", "Missing from diffflow evaluate: RUN"),
        ("doctor moons", "doctor: unknown 'moons'"),
    ],
)
def test_words_that_are_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(capsys, *words.split())
    assert not list(tmp_path.iterdir())


#: Words after `sample RUN --out FILE` or `evaluate RUN` that are refused in one line.
BAD_FLAGS = {
    "both": (
        "--device=gpu", "--device=CPU", "--device=cuda:99", "--device=cuda:-1", "--device=mps",
        "--device=meta", "--device=", "--seed=-1", "--seed=9223372036854775808", "--seed=x",
        "--n=0", "--n=-3", "--n=1e3", "--n=4294967297", "--num-steps=0",
        "--num-steps=-1", "--num-steps=10000000000000", "--stochasticity=nan",
        "--stochasticity=-1", "--solver=heun", "--solver=foo", "--sampler=ddim", "--eta=0.5",
        "--variance=medium", "--clip", "--last-step=last", "--corrector-steps=-1",
        "--corrector-steps=99999999999", "--corrector-steps=1 --corrector-scale=nan", "--snr=1",
        "more", "--foo", "--data=nope.csv --figure=y.png",
    ),
    "evaluate": (
        "--n=1", "--num-paths=0", "--num-paths=1000000000000", "--ode-n=-1", "--extractor=nope",
        "--figures=maybe", "--data=moons", "--out=points.csv", "--out=points.csv/x",
    ),
    "sample": (
        "--n=4000000000",
        "--figure=x.jpg", "--figure=no/x.png", "--out=x.txt", "--out=no/x.npy", "--out=",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        *((name, flags) for name in ("sample", "evaluate") for flags in BAD_FLAGS["both"]),
        *((name, flags) for name in ("sample", "evaluate") for flags in BAD_FLAGS[name]),
    ],
)
def test_bad_flags_are_one_line(
    command: str,
    flags: str,
    small_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(small_run.parent)
    monkeypatch.setattr(memory, "memory_of", lambda _: 2**33)
    out = ["--out", "y.npy"] if command == "sample" else []
    refusal(capsys, command, small_run, *out, *flags.split())
    assert not Path("y.npy").exists()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    assert main(["train", str(write_points(folder)), "--out", str(folder / "run"), *FAST]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    "words",
    [
        "extractor moons --out=e.safetensors", "extractor points.csv --out=e.safetensors",
        "extractor nope --out=e.safetensors", "extractor moons --out=e.npy",
        "extractor moons --out=e.safetensors --seed=-1", "extractor moons --out=e.safetensors "
        "--epochs=0", "extractor moons --out=e.safetensors --image-size=0", "extractor moons",
        "data", "data lst", "data fetch", "data fetch nope", "data list moons", "doctor x",
        "doctor --fix", "sample nope --out=x.npy", "sample points.csv --out=x.npy",
        "evaluate nope", "evaluate run points.csv", "train moons --out=points.csv",
        "train moons --out=points.csv/x", "train moons --out=q --config=nope.toml",
        "train moons --out=q --config=.", "train moons --out=q --config=points.csv",
        "train nope.csv --out=q", "train no/pe.csv --out=q", "train --out=q", "train --resume",
    ],
)  # fmt: skip
def test_other_bad_words_are_one_line(
    words: str,
    small_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(small_run.parent)
    assert "[Errno" not in refusal(capsys, *words.split())
    assert not Path("q").exists()


@pytest.mark.parametrize(
    "error",
    [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
)
def test_memory_that_runs_out_is_no_traceback(
    error: Exception,
    small_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(commands, "evaluate", fail)
    assert main(["evaluate", str(small_run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffflow: out of memory: {error}; take a smaller network")


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "values.toml"
    path.write_text("[optimiser]\nsteps = 3\n[network]\nwidth = 5\n")
    words = ["train", "moons", "--config", path, "--out", tmp_path / "r", "--dry-run"]
    assert main([str(word) for word in words]) == 0
    assert "width = 5\n" in capsys.readouterr().out
    path.write_text('[optimiser]\nsteps = "x"\n')
    assert "values.toml: train: steps='x': expected a whole" in refusal(capsys, *words)


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


@pytest.mark.parametrize(("module", "package"), [("tyro", "tyro"), ("sklearn", "scikit-learn")])
def test_a_package_that_is_missing_is_named(
    module: str,
    package: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by doctor, which looks for packages and needs some of them itself."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.conf")

    monkeypatch.setattr(program.importlib, "import_module", missing)
    line = refusal(capsys, "doctor")
    assert f"the package {package}, which is not installed; run: pip install {package}" in line


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
