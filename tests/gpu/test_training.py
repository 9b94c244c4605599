"""Training runs on a CUDA device, as one graph a step and without.

In a file of its own: the configuration of a run needs tyro, which a machine may lack.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("tyro", reason="the configuration of a run needs tyro")

from training_runs import write_images, write_table

from diffflow_ext.training import configure, train

pytestmark = pytest.mark.gpu
Record = Callable[[str, object], None]


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def losses(run: Path) -> Tensor:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines])


@pytest.mark.parametrize("kind", ["points", "images"])
def test_a_training_run_is_that_of_the_plain_loop(
    kind: str, tmp_path: Path, record_property: Record
) -> None:
    config = configure(
        data=str(write_table(tmp_path / "points.csv")), steps=12, batch_size=16, num_steps=6,
        progressive="0:3,6:6", width=16, depth=1, warmup=3, save_every=5, log_every=1,
        device="cuda",
    )  # fmt: skip
    if kind == "images":
        config = config.replaced(
            data=str(write_images(tmp_path / "images", size=8)), autocast="bf16",
            width=128, depth=3, unet_base=16, unet_mults="1,2", unet_blocks=1, unet_attention="4",
        )  # fmt: skip
    train(config, tmp_path / "plain")
    train(config.replaced(cuda_graph="on"), tmp_path / "graph")
    # Adam computes in float32 in a graph, partly in float64 without.
    error = far(losses(tmp_path / "graph"), losses(tmp_path / "plain"))
    record_property("error", error)
    assert error < (1e-4 if kind == "points" else 1e-2)
    train(config.replaced(cuda_graph="on", steps=14), tmp_path / "graph", resume=True)
    assert len(losses(tmp_path / "graph")) == 14
