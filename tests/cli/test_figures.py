"""The commands that draw runs: a figure of several, a film of one, errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the plot extra")

from matplotlib import image
from PIL import Image

from diffflow_ext.cli import main
from diffflow_ext.figures.paths import PANEL_INCHES

TINY = "--steps 2 --width 8 --depth 1 --batch-size 8 --warmup 1 --threads 1".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    steps = {"diffflow": ["--num-steps", "3"], "ddpm": ["--timesteps", "4"]}
    for model, own in steps.items():
        words = ["train", model, "moons", "--out", str(folder / model), *TINY, *own]
        assert main(words) == 0
    assert main(["train", "circles", "--out", str(folder / "circles"), *TINY]) == 0
    return folder


def test_two_runs_in_one_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both, one, out = runs / "both.png", runs / "one.png", ["--device", "cpu", "--out"]
    capsys.readouterr()
    assert main(["compare", str(runs / "diffflow"), str(runs / "ddpm"), *out, str(both)]) == 0
    assert capsys.readouterr().out == f"{both}: both processes of diffflow, ddpm\n"
    assert main(["compare", str(runs / "diffflow"), *out, str(one)]) == 0
    # Two rows more.
    heights = [image.imread(path).shape[0] for path in (one, both)]
    assert heights[1] - heights[0] == pytest.approx(2 * PANEL_INCHES * 150, abs=2)
    assert main(["compare", str(runs / "ddpm"), *out, str(one)]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_columns_in_another_order(runs: Path) -> None:
    pictures = [runs / f"{name}.png" for name in ("plain", "turned", "samples")]
    for picture, columns in zip(pictures, ("x1,x2", "x2,x1"), strict=False):
        words = ["compare", str(runs / "diffflow"), "--out", str(picture), "--columns", columns]
        assert main([*words, "--device", "cpu"]) == 0
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    words = ["sample", str(runs / "diffflow"), "--n", "60", "--out", str(runs / "s.csv")]
    words += ["--device", "cpu", "--columns", "x2"]
    assert main(words) == 2
    assert not (runs / "s.csv").exists()
    assert main([*words, "--figure", str(pictures[2])]) == 0
    assert image.imread(pictures[2]).shape[:2] == (675, 645)


def test_a_film(runs: Path) -> None:
    out = runs / "f.gif"
    assert main(["animate", str(runs / "ddpm"), "--out", str(out), "--device", "cpu"]) == 0
    with Image.open(out) as film:
        assert film.n_frames > 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["compare", "diffflow", "circles"],
            "'circles (diffflow)' and 'diffflow' have other data, ci",
        ),
        (["compare", "diffflow", "diffflow"], "expected each run once"),
        (
            ["compare", "diffflow", "--columns", "x1,z"],
            "2 names out of x1, x2, each once, got 'x1",
        ),
        (["animate", "diffflow", "--columns", "x1"], "2 names out of x1, x2, each once, got 'x1'"),
        (["compare"], "expected one run directory or more"),
        (["animate", "nothing"], "nothing"),
    ],
)
def test_refused(
    runs: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *names = words
    flags = names[names.index("--columns") :] if "--columns" in names else []
    paths = [str(runs / name) for name in names[: len(names) - len(flags)]] + flags
    out = runs / f"x.{'png' if command == 'compare' else 'gif'}"
    code = main([command, *paths, "--out", str(out)])
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()
