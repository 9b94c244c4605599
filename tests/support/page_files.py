"""What pages of the documentation assume: files in the reader's folder, and names in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_files import idx, picture
from torch import Tensor, nn

from diffflow_ext.training import LoadedRun, configure, load_run, train

Names = dict[str, Any]


def _diamonds(rows: int = 240) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    price = rng.permutation(np.arange(400, 400 + rows))
    table = {"cut": rng.choice(["Fair", "Good", "Ideal"], rows), "price": price}
    return pd.DataFrame(
        table | {"carat": rng.lognormal(0, 0.3, rows), "depth": rng.normal(size=rows)}
    )


def table_of_diamonds() -> Names:
    _diamonds().to_csv("diamonds.csv", index=False)
    return {}


def gaps_and_digits() -> Names:
    """Rows with gaps, and pictures of the size of the page's images."""
    table_of_diamonds()
    gaps = _diamonds(6)
    gaps.loc[:2, "carat"] = np.nan
    gaps.loc[3, "cut"] = None
    gaps.to_csv("gaps.csv", index=False)
    pictures(Path("digits"), 4, size=16, channels=1)
    return {}


def board() -> Names:
    """Rows like those of checkerboard, some with gaps, and a run of a table."""
    rows = pd.DataFrame(np.random.default_rng(0).uniform(-1, 1, (8, 2)), columns=["x1", "x2"])
    rows.to_csv("rows.csv", index=False)
    rows.loc[:2, "x1"] = np.nan
    rows.to_csv("gaps.csv", index=False)
    table_of_diamonds()
    train(configure("diffflow", data="diamonds.csv", steps=5), "runs/table")
    return {}


def table_and_rows() -> Names:
    table = _diamonds()[["carat", "depth"]]
    table.to_csv("table.csv", index=False)
    table[:9].to_csv("rows.csv", index=False)
    return {}


def photos() -> Names:
    for name in ("cat", "dog"):
        pictures(Path("photos") / name, 20, size=40, channels=3)
    return {}


def trained_run() -> Names:
    train(configure("diffflow", data="moons", steps=5), "runs/moons")
    return {"run": load_run("runs/moons")}


class _UNet2DModel(nn.Module):
    """Takes and returns what the network of diffusers does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> SimpleNamespace:
        assert float(timestep.max()) <= 999
        return SimpleNamespace(sample=self.net(sample))


def diffusers() -> Names:
    return {"unet": _UNet2DModel(), "images": torch.rand(8, 3, 16, 16) * 2 - 1}


def pictures(folder: Path, count: int, size: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(256, size=(size, size, channels), dtype=np.uint8)
        (folder / f"{i}.png").write_bytes(picture(pixels.squeeze()))


def mnist(home: Path) -> None:
    """A set of the name and form of MNIST: 240 images of noise."""
    rng = np.random.default_rng(0)
    (home / "mnist").mkdir(parents=True)
    for part, count in (("train", 200), ("t10k", 40)):
        images = rng.integers(256, size=(count, 28, 28))
        labels = np.arange(count) % 10
        (home / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (home / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def no_network(patch: pytest.MonkeyPatch) -> None:
    """Keeps what pages send to services in this folder, where they find it again."""

    def push_to_hub(run: LoadedRun, repo_id: str, *, private: bool, **options: Any) -> str:
        run.save_pretrained(repo_id, **options)
        return repo_id

    patch.setattr(LoadedRun, "push_to_hub", push_to_hub)
    patch.setenv("WANDB_MODE", "offline")


#: Pages in docs/ that assume something, and README.md.
ASSUMED: dict[str, Callable[[], Names]] = {
    "README": table_and_rows,
    "coming_from": diffusers,
    "command_line": board,
    "howto/conditions": table_of_diamonds,
    "howto/filling_in": gaps_and_digits,
    "howto/follow": trained_run,
    "howto/pictures": photos,
    "howto/table": table_of_diamonds,
}
