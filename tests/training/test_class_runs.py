"""Runs given classes: names of folders from training to scores, and samples that lie in theirs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_files import picture

from diffflow_ext.cli import main
from diffflow_ext.data import open_dataset
from diffflow_ext.training import LoadedRun, configure, evaluate, load_run, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.evaluation.run_data import rows_of_run
from diffflow_ext.training.recipes.contexts import BatchContexts

TINY: dict[str, Any] = {
    "steps": 6, "batch_size": 10, "width": 8, "depth": 1, "warmup": 2, "threads": 1,
    "timesteps": 5, "net": "mlp", "condition": "label",
}  # fmt: skip
RNG = np.random.default_rng(0)


def write_pictures(root: Path, *classes: str, count: int = 20) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            content = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
            (root / name / f"{i:02}.png").write_bytes(picture(content))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    data = write_pictures(root / "data", "cat", "ant", "dog")
    train(configure("ddpm", data=str(data), **TINY), root / "run", progress=False)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> LoadedRun:
    return load_run(folder / "run")


def test_classes_are_given_by_name(run: LoadedRun, folder: Path, capsys: Any) -> None:
    assert run.record.conditions is not None
    assert run.record.conditions.classes == ("ant", "cat", "dog")
    assert "given label (0 = ant, 1 = cat, 2 = dog)" in repr(run)
    named, numbered = run.sample(4, given={"label": "dog"}), run.sample(4, given={"label": 2})
    assert torch.equal(named, numbered)
    assert torch.equal(run.sample(3, given=["dog", "ant", "cat"]), run.sample(3, given=[2, 0, 1]))
    out = folder / "x.npy"
    words = ["sample", str(folder / "run"), "--n", "4", "--out", str(out), "--given"]
    assert main([*words, "label=dog"]) == 0
    assert "given label (0 = ant, 1 = cat, 2 = dog)" in capsys.readouterr().out
    assert np.array_equal(np.load(out)[..., 0], named[:, 0].numpy())
    assert main([*words, "label=cow", "--overwrite"]) == 2
    assert "ant, cat, dog, got cow" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [("dog", "cat"), ("dog",), ("cat", "ant", "dog")])
def test_scores_find_classes_by_name(
    run: LoadedRun, folder: Path, tmp_path: Path, classes: tuple[str, ...], capsys: Any
) -> None:
    """Also where there are fewer classes, whose numbers would be others."""
    data = write_pictures(tmp_path / "more", *classes, count=3)
    out = tmp_path / "s.csv"
    assert main(["score", str(folder / "run"), str(data), "--out", str(out)]) == 0
    images = rows_of_run(run, str(data), conditions=False).values
    numbers = {"ant": 0, "cat": 1, "dog": 2}
    given = [numbers[name] for name in sorted(classes) for _ in range(3)]
    scores = run.log_prob(images, given=given)
    table = pd.read_csv(out)
    assert np.allclose(table.log_prob, scores, rtol=1e-5)
    files = [f"{name}/{i:02}.png" for name in sorted(classes) for i in range(3)]
    assert [*table.columns] == ["file", "log_prob"]
    assert [*table.file] == files
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", data))
    assert main(["score", str(folder / "run"), str(packed), "--out", str(out), "--overwrite"]) == 0
    assert pd.read_csv(out).equals(table)
    assert f"in {files[int(scores.argmin())]}\n" in capsys.readouterr().out
    assert not torch.equal(scores, run.log_prob(images, given=[0] * len(given)))


def test_scores_of_other_classes(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["score", str(folder / "run"), "--out", str(tmp_path / "s.csv")]
    data = write_pictures(tmp_path / "more", "cow", "dog", "bee", count=2)
    assert main([*words, str(data)]) == 2
    assert "ant, cat, dog, got bee, cow, in row 0" in capsys.readouterr().err
    assert main([*words, str(data / "dog")]) == 2
    found = capsys.readouterr().err
    assert "'00.png' of the folder" in found
    assert "0 = ant, 1 = cat, 2 = dog): if images have no class, name one" in found
    assert main([*words, str(data / "dog"), "--given", "label=dog"]) == 0
    # Numbers, as in dataset.json and arrays, are those of the run.
    levels = RNG.integers(0, 256, (3, 6, 6), dtype=np.uint8)
    for labels, code in (([0, 2, 1], 0), ([0, 3, 1], 2)):
        np.savez(tmp_path / "a.npz", x=levels, y=labels)
        assert main([*words, str(tmp_path / "a.npz"), "--overwrite"]) == code
        # Arrays have no names of files.
        assert pd.read_csv(tmp_path / "s.csv").shape == (3, 1)
    assert "classes from 0 to 2 in given, got 3 in row 1" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:evaluate. distances are left out")
def test_evaluation_finds_the_same_classes(folder: Path, tmp_path: Path) -> None:
    moved = (folder / "data").rename(folder / "moved")
    with pytest.raises(FileNotFoundError, match="expected the data of the run"):
        evaluate(folder / "run", 6, figures=False)
    result = evaluate(folder / "run", 6, data=moved, figures=False, ode_n=0, out=tmp_path / "out")
    assert result["bound_n"] == 6
    (moved / "ant").rename(moved / "aphid")
    with pytest.raises(ValueError, match="its values have changed since the run began"):
        evaluate(folder / "run", 6, data=moved, figures=False)
    (moved / "aphid").rename(moved / "ant")
    moved.rename(folder / "data")


def test_batches_have_the_shares_of_the_classes() -> None:
    """Without dropout an epoch has each row once."""
    data = open_dataset("8-gaussians", num_points=1000, condition="label")
    assert data.given is not None
    assert data.conditions is not None
    config = resolve(configure("ddpm", data="8-gaussians", condition="label", label_dropout=0.0,
                               batch_size=100), is_image=False)  # fmt: skip
    contexts = BatchContexts(config, data.conditions, data.given["train"], torch.device("cpu"))
    epoch = torch.cat([contexts.of(step, 0, 100) for step in range(10)])
    counts = data.given["train"][:, 0].long().bincount(minlength=8)
    assert epoch.sum(0).tolist() == [*counts.tolist(), 1000]


# --- samples of each class, by closed forms ------------------------------------------------------


def columns(x: torch.Tensor) -> torch.Tensor:
    """Returns the column of the checkerboard, -1 outside of it."""
    z = (x[:, 0] * math.sqrt(4 / 3) + 2).floor().long()
    return torch.where((z >= 0) & (z < 4), z, -1)


def components(x: torch.Tensor) -> torch.Tensor:
    """Returns the most likely of the eight Gaussians."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = 4 * torch.stack([angle.cos(), angle.sin()], dim=1) / math.sqrt(8 + 0.25)
    return torch.cdist(x.double(), centres).argmin(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data", "class_of", "own"),
    [
        ("ddpm", "checkerboard", columns, {"timesteps": 100, "steps": 1500}),
        ("nfdm", "8-gaussians", components, {"steps": 800}),
        ("diffflow", "8-gaussians", components, {"num_steps": 10, "steps": 800}),
    ],
)
def test_samples_lie_in_their_class(
    model: str, data: str, class_of: Callable[..., torch.Tensor], own: Any, tmp_path: Path
) -> None:
    sizes = {"batch_size": 256, "width": 64, "depth": 3, "warmup": 50, "threads": 1}
    config = configure(model, data=data, condition="label", **sizes, **own)
    train(config, tmp_path / "run", progress=False)
    run, count = load_run(tmp_path / "run"), 4 if data == "checkerboard" else 8
    for label in range(count):
        samples = run.sample(1000, given={"label": label})
        assert float((class_of(samples) == label).double().mean()) > 0.85
    test = open_dataset(data, condition="label").given_of("test")
    assert test is not None
    mixed = run.sample(4000, given=test[:4000])
    assert float((class_of(mixed) == test[:4000, 0]).double().mean()) > 0.85
    shares = class_of(mixed).clamp(min=0).bincount(minlength=count) / 4000
    assert shares.tolist() == pytest.approx([1 / count] * count, abs=0.03)
    if model != "ddpm":
        return
    strong = run.sample(1000, given={"label": 1}, guidance=2.0)
    assert float((class_of(strong) == 1).double().mean()) > 0.97
    # Without their condition samples are of all classes.
    free = class_of(run.sample(4000, given={"label": 1}, guidance=0.0))
    shares = free.clamp(min=0).bincount(minlength=count) / 4000
    assert shares.tolist() == pytest.approx([1 / count] * count, abs=0.08)
