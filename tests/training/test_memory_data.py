"""Training on data in memory, resuming it, and evaluating it with the data given again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import refusal, write_points

from diffflow_ext.cli import main
from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.training import configure, evaluate, load_run, train

SMALL: dict[str, Any] = {"steps": 4, "num_steps": 3, "width": 8, "depth": 1, "batch_size": 16,
                         "threads": 1, "device": "cpu"}  # fmt: skip


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(write_points(tmp_path), float_precision="round_trip")


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (lambda frame: frame, ("a", "b")),
        (lambda frame: frame.to_numpy(), ("x1", "x2")),
        (lambda frame: torch.from_numpy(frame.to_numpy()), ("x1", "x2")),
        (open_dataset, ("a", "b")),
    ],
)
def test_it_is_the_run_of_the_file(
    frame: pd.DataFrame, tmp_path: Path, kind: Any, columns: tuple[str, ...]
) -> None:
    train(configure(data=str(tmp_path / "points.csv"), **SMALL), tmp_path / "file")
    train(configure(**SMALL), tmp_path / "memory", data=kind(frame), progress=False)
    run, other = load_run(tmp_path / "memory"), load_run(tmp_path / "file")
    assert run.record.columns == columns
    assert run.record.fingerprint == other.record.fingerprint
    assert torch.equal(run.sample(20), other.sample(20))


def test_a_run_goes_on_with_the_same_data(frame: pd.DataFrame, tmp_path: Path) -> None:
    train(configure(**SMALL, schedule="constant", progressive="off"), tmp_path / "run", data=frame)
    more = configure(**{**SMALL, "steps": 6}, schedule="constant", progressive="off")
    assert train(more, tmp_path / "run", data=frame, resume=True).taken == 2
    with pytest.raises(ValueError, match="its values have changed since the run began"):
        train(more, tmp_path / "run", data=frame + 1, resume=True)
    with pytest.raises(ValueError, match="expected DATA"):
        train(more, tmp_path / "run", resume=True)


def test_the_program_asks_for_a_file_with_them(
    frame: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(**SMALL, schedule="constant", progressive="off"), tmp_path / "run", data=frame)
    words = ("--out", str(tmp_path / "run"), "--resume", "--steps=6")
    assert "which were in memory when it was trained; give a file" in refusal(
        capsys, "train", *words
    )
    assert main(["train", str(tmp_path / "points.csv"), *words]) == 0
    assert load_run(tmp_path / "run").step == 6


def test_an_evaluation_needs_them_again(frame: pd.DataFrame, tmp_path: Path) -> None:
    train(configure(**SMALL), tmp_path / "run", data=frame)
    with pytest.raises(FileNotFoundError, match=r"in memory when it was trained, .*--data PATH"):
        evaluate(tmp_path / "run", 60, figures=False)
    found = evaluate(tmp_path / "run", 60, figures=False, data=frame, ode_n=0)
    assert found == evaluate(
        tmp_path / "run", 60, figures=False, data=tmp_path / "points.csv", ode_n=0
    )
    with pytest.raises(ValueError, match="the 2 columns of the run, got 1"):
        evaluate(tmp_path / "run", 60, figures=False, data=frame[["a"]])


def test_images_in_memory(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    data = open_dataset(levels)
    assert data.event_shape == (1, 8, 8)
    assert len(data.train) + len(data.valid) + len(data.test) == 60
    np.savez(tmp_path / "i.npz", images=levels)
    assert open_dataset(tmp_path / "i.npz").fingerprint == data.fingerprint
    assert open_dataset(torch.from_numpy(levels), image_size=4).event_shape == (1, 4, 4)


class Squares(torch.utils.data.Dataset[tuple[list[float], int]]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[list[float], int]:
        return [i**0.5, float(i % 7) ** 0.5], i % 2


def test_datasets_of_torch_are_rows_or_images() -> None:
    rows = np.array([Squares()[i][0] for i in range(40)])
    assert open_dataset(Squares()).fingerprint == open_dataset(rows).fingerprint
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(rows), torch.zeros(40))
    assert open_dataset(tensors).fingerprint == open_dataset(rows).fingerprint
    levels = torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8)
    images = torch.utils.data.TensorDataset(levels)
    assert open_dataset(images).fingerprint == open_dataset(levels).fingerprint


def test_frames_of_other_libraries(frame: pd.DataFrame) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pandas(frame.assign(word=["x", "y"] * (len(frame) // 2)))
    data = open_dataset(table)
    assert data.columns == ["a", "b", "word"]
    assert data.encoding is not None
    assert data.encoding.columns[2].values == ("x", "y")


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], [3.0]], torch.randn(30, 2).to_sparse(), torch.empty(30, 2, device="meta"),
        torch.utils.data.ChainDataset([]),
    ],
)  # fmt: skip
def test_what_is_no_array_is_named(rows: Any) -> None:
    with pytest.raises(TypeError, match=r"expected rows that make an array, got a .*; give an"):
        open_dataset(rows)


def test_columns_are_left_out(frame: pd.DataFrame) -> None:
    frame["name"] = "x"
    data: Dataset = open_dataset(frame, drop_columns="name")
    assert data.columns == ["a", "b"]
    assert data.name == "rows"
    assert open_dataset(frame.to_numpy()[:, :2].astype(float), drop_columns="x1").columns == ["x2"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.assign(b=[{}] * len(f)), TypeError, r"numbers or texts, 'rows' has b \(obj"),
        (lambda f: f.assign(b=np.nan), ValueError, r"finite numbers, row 0 .*column 'b'"),
        (lambda f: f[["a"]] * 0, ValueError, "a column that varies, 'rows' has only 'a', which"),
        (lambda f: f[:9], ValueError, "expected at least 20 rows, 'rows' has 9"),
        (lambda f: f.to_numpy()[:, 0], ValueError, r"an array with shape \(n, d\), 'rows' has"),
        (lambda f: f.to_numpy() > 0, TypeError, "truth values"),
        (lambda f: f.to_numpy()[None], TypeError, "expected bytes"),
        (lambda f: None, ValueError, "expected DATA"),
    ],
)
def test_what_does_not_suit(
    frame: pd.DataFrame, tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(configure(**SMALL), tmp_path / "run", data=change(frame))
    with pytest.raises(ValueError, match=r"data='moons': expected a configuration without data"):
        train(configure(data="moons", **SMALL), tmp_path / "run", data=frame)
    assert not (tmp_path / "run" / "config.toml").exists()
