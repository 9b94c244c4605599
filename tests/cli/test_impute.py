"""diffflow impute: files of rows with gaps and of images, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.cli import main
from diffflow_ext.training import load_run

TINY = ["--steps=3", "--batch-size=10", "--warmup=1", "--threads=1", "--timesteps=4"]
SMALL = ["--width=8", "--depth=1"]
UNET = ["--unet-base=8", "--unet-mults=1", "--unet-blocks=1", "--unet-attention=off"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    words = RNG.choice(["low", "high"], 100)
    return pd.DataFrame({"a": RNG.normal(size=100), "b": RNG.normal(size=100), "word": words})


def trained(folder: Path, data: Path, *words: str) -> Path:
    assert main(["train", "ddpm", str(data), *TINY, *words, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def table(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    frame.to_csv(folder / "t.csv", index=False)
    return trained(folder, folder / "t.csv", "--condition=masks", *SMALL)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    np.save(folder / "x.npy", RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    return trained(folder, folder / "x.npy", "--condition=masks", *UNET)


GAPS = "word,other,a,b\nlow,1,,0.25\n,2,0.5,\n"


def test_rows(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "gaps.csv", tmp_path / "filled.csv"
    rows.write_text(GAPS)
    words = ["impute", str(table), str(rows), "--n=3", "--seed=2", "--out", str(out)]
    assert main([*words, "--num-steps=2"]) == 0
    assert "3 x 2 rows, what was missing drawn" in capsys.readouterr().out
    filled = pd.read_csv(out)
    assert [*filled.columns] == ["a", "b", "word"]
    assert not filled.isna().any(axis=None)
    assert [*filled.b[::2]] == [0.25] * 3
    assert [*filled.a[1::2]] == [0.5] * 3
    assert [*filled.word[::2]] == ["low"] * 3
    expected = pd.concat(load_run(table).impute(pd.read_csv(rows), 3, seed=2, num_steps=2))
    assert np.allclose(filled[["a", "b"]], expected[["a", "b"]])
    assert main([*words, "--candidates=9", "--overwrite"]) == 2
    assert "candidates=9: expected None" in capsys.readouterr().err


def test_rows_of_a_run_with_conditions(
    frame: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    run = trained(tmp_path, tmp_path / "t.csv", "--condition=word", *SMALL)
    (tmp_path / "gaps.csv").write_text("word,a,b\nlow,,0.25\nhigh,0.5,\n")
    words = ["impute", str(run), str(tmp_path / "gaps.csv"), "--out", str(tmp_path / "x.csv")]
    assert main([*words, "--candidates=16"]) == 0
    filled = pd.read_csv(tmp_path / "x.csv")
    assert [*filled.word] == ["low", "high"]
    assert (filled.b[0], filled.a[1]) == (0.25, 0.5)
    (tmp_path / "gaps.csv").write_text("word,a,b\n,,0.25\nhigh,0.5,\n")
    assert main([*words, "--overwrite"]) == 2
    assert "row 0 (counted from 0), column 'word'" in capsys.readouterr().err


def test_images(pictures: Path, tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    words = ["impute", str(pictures), str(tmp_path / "x.npy"), "--hide=left", "--n=2"]
    assert main([*words, "--out", str(tmp_path / "y.npy")]) == 0
    filled = np.load(tmp_path / "y.npy")
    assert filled.shape == (4, 8, 8, 1)
    for copy in (filled[:2], filled[2:]):
        assert np.array_equal(copy[:, :, 4:], images[:, :, 4:])
        assert not np.array_equal(copy[:, :, :4], images[:, :, :4])
    shown = torch.zeros(8, 8, dtype=torch.bool)
    shown[:, 4:] = True
    given = np.concatenate([images, images])
    expected = load_run(pictures).sample(4, given=given, mask=shown)
    assert np.array_equal(filled, np.moveaxis(expected.numpy(), 1, -1))


def test_what_is_refused(
    table: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, images = tmp_path / "gaps.csv", tmp_path / "x.npy"
    rows.write_text(GAPS)
    np.save(images, np.zeros((2, 8, 8), np.uint8))

    def refused(run: Path, data: Path, name: str, *words: str) -> Any:
        out = tmp_path / name
        assert main(["impute", str(run), str(data), *words, "--out", str(out)]) == 2
        return capsys.readouterr().err

    assert "hide=None: expected a half, such as bottom" in refused(pictures, images, "y.npy")
    assert "hide='top': expected none" in refused(table, rows, "y.csv", "--hide=top")
    assert "ends in .npz or .npy" in refused(pictures, images, "y.csv", "--hide=top")
    (tmp_path / "old.csv").write_text("")
    assert "is there already" in refused(table, rows, "old.csv")
    assert "another file than DATA" in refused(table, rows, "gaps.csv")
    assert "another file than DATA" in refused(table, rows, "gaps.csv", "--overwrite")
    assert "--hide: expected one of" in refused(pictures, images, "y.npy", "--hide=middle")
