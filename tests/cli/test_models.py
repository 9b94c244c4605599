"""The program with a table and with images, from data to numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runs import refusal
from training_runs import write_images, write_table

from diffflow_ext.cli import main
from diffflow_ext.training import load_config

for library in ("normflows", "torchdiffeq", "matplotlib"):
    pytest.importorskip(library)

FAST = "--steps=4 --batch-size=8 --threads=1 --device=cpu --warmup=1".split()
DDPM = "--width=8 --depth=1 --timesteps=10".split()
NFDM = "--width=8 --depth=1 --time-functions=1".split()
UNET = "--unet-base=4 --unet-mults=1 --unet-blocks=1 --unet-attention=off --num-steps=2".split()
GLOW = "--glow-levels=1 --glow-blocks=1 --glow-hidden=4".split()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "points.csv", rows=600)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 14)


def call(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize(
    ("model", "small", "other"), [("ddpm", DDPM, "--sampler=ddim"), ("nfdm", NFDM, "--clip")]
)
def test_model_of_a_table(
    model: str, small: list[str], other: str, table: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, out = tmp_path / "run", tmp_path / "x.npy"
    call("train", model, table, "--out", run, *FAST, *small)
    config = load_config(run / "config.toml")
    assert (config.name, config.optimiser.steps) == (model, 4)
    call("sample", run, "--n=20", "--out", out)
    usual = np.load(out, allow_pickle=False)
    assert usual.shape == (20, 2)
    call("sample", run, "--n=20", "--out", out, "--overwrite", other)
    assert not np.array_equal(np.load(out), usual)
    capsys.readouterr()
    call("evaluate", run, "--n=60", "--ode-n=10", "--no-figures")
    result = json.loads((run / "evaluation.json").read_text())
    table_of_it = capsys.readouterr().out
    for name, title in result["estimators"].items():
        assert title in table_of_it
        assert f"{result[name]:.4f}" in table_of_it
    call("train", "--out", run, "--resume", "--steps=5")
    assert "step 5" in capsys.readouterr().out


def test_model_of_images(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "x.npz"
    call("train", images, "--out", run, *FAST, *UNET)
    call("sample", run, "--n=9", "--out", out, "--figure", tmp_path / "x.png")
    with np.load(out, allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        values = archive["arr_0"]
    assert (values.shape, values.dtype) == ((9, 14, 14, 1), np.dtype("uint8"))
    call("sample", run, "--n=9", "--out", tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), values)
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert "9 samples of 1 x 14 x 14" in capsys.readouterr().out
    line = refusal(capsys, "sample", run, "--out", tmp_path / "x.csv")
    assert line.endswith("x.csv: expected a file name that ends in .npz or .npy")


def test_features_of_images(
    images: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = tmp_path / "run", tmp_path / "features.safetensors"
    call("extractor", images, "--out", file, "--epochs=4")
    said = capsys.readouterr().out
    name = said.split()[1].rstrip(",")
    assert name.startswith("classifier-14x14@")
    assert float(said.split()[2]) > 90
    call("train", "flow", images, "--out", run, *FAST, *GLOW)
    capsys.readouterr()
    call("evaluate", run, "--n=70", "--extractor", file, "--no-figures")
    result = json.loads((run / "evaluation.json").read_text())
    assert result["fd_label"] == f"FD({name}, n=70)"
    # Noise against pictures: far away, and nothing like them.
    assert result["fd"] > 3 * result["fd_floor"]
    for measure in ("precision", "recall", "density", "coverage"):
        assert result[measure] < result[f"{measure}_floor"]
    assert f"FD({name}, n=70)" in capsys.readouterr().out
    assert "is there already" in refusal(capsys, "extractor", images, "--out", file)
    more = tmp_path / "more.safetensors"
    assert "expected images with labels" in refusal(capsys, "extractor", table, "--out", more)
    line = refusal(capsys, "evaluate", run, "--extractor", images / "train-labels-idx1-ubyte")
    assert "train-labels-idx1-ubyte" in line


def test_flags_that_do_not_suit_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag, expected in (
        ("--image-size=20", "expected image_size from 1 to 14"),
        ("--unet-base=3", "expected base * channel_multiplier to be an even number"),
    ):
        assert expected in refusal(capsys, "train", images, "--out", tmp_path / "run", flag)
    assert not (tmp_path / "run").exists()
