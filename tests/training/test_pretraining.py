"""DiffFlow's networks learn to predict noise before the first path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training_runs import write_table

from diffflow_ext.functional import normal
from diffflow_ext.training import configure, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import build_recipe
from diffflow_ext.training.store.directory import read_metrics

SMALL: dict[str, Any] = {
    "prediction": "noise", "pretraining": 6, "steps": 10, "num_steps": 4, "width": 8, "depth": 1,
    "batch_size": 32, "seed": 5, "threads": 1, "log_every": 1, "warmup": 2,
}  # fmt: skip


class Watched(nn.Module):
    """Predicts a share of the state as its noise, and keeps what it is asked."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.weight = nn.Parameter(torch.tensor(share))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.asked.append((t, x))
        return self.weight * x


def recipe(**values: Any) -> Any:
    made = build_recipe(resolve(configure(**{**SMALL, **values}), is_image=False), (3,))
    made.module.drift.net, made.module.score.net = Watched(0.5), Watched(0.25)
    return made


@pytest.mark.parametrize("ends", [(0.0, 0.05), (1.0, 3.0)])
def test_both_networks_see_the_data_with_noise_of_a_random_time(
    ends: tuple[float, float],
) -> None:
    made = recipe(t_start=ends[0], t_end=ends[1], power=0.5)
    x0, key = torch.randn(5000, 3), made.key(2)
    losses = made.sample_losses(x0, 2, 7)
    (t, x_t), (other_t, other_x) = (
        part.net.asked[-1] for part in (made.module.drift, made.module.score)
    )
    assert torch.equal(t, other_t)
    assert torch.equal(x_t, other_x)
    eps = normal((5000, 3), key, purpose="dsm", sample_offset=7)
    errors = [(share * x_t - eps).square().mean(1) for share in (0.5, 0.25)]
    torch.testing.assert_close(losses, errors[0] + errors[1])
    process, u = made.path.process, made.path.unit_time(t)
    expected = process.alpha(u)[:, None] * x0 + process.sigma(u)[:, None] * eps
    torch.testing.assert_close(x_t, expected)
    # As the times of the grid: evenly spaced to the power.
    even = ((t - ends[0]) / (ends[1] - ends[0])).sqrt()
    assert even.min() >= 0
    for share in (0.25, 0.5, 0.75):
        assert float((even < share).float().mean()) == pytest.approx(share, abs=0.03)
    # Another step draws anew.
    assert not torch.equal(made.sample_losses(x0, 3, 7), losses)


def test_paths_come_after_it() -> None:
    made = recipe()
    x0 = torch.randn(8, 3)
    made.objectives[0].loss(x0, 5, 0)
    assert len(made.module.drift.net.asked) == 1
    made.module.drift.net.asked.clear()
    made.objectives[0].loss(x0, 6, 0)
    assert len(made.module.drift.net.asked) > 1


def test_what_paths_would_refuse_is_refused_before_it(tmp_path: Path) -> None:
    table = write_table(tmp_path / "points.csv")
    config = configure(data=str(table), **SMALL)
    with pytest.raises(ValueError, match=r"expected g >= 1e-09 and g sqrt\(dt\)"):
        train(config.replaced(t_end=1e-37, diffusion_start=1.0), tmp_path / "run")


def test_parameters_of_paths_alone_stay_as_they_are(tmp_path: Path) -> None:
    table = write_table(tmp_path / "points.csv")
    config = configure(data=str(table), **SMALL).replaced(
        learn_diffusion=True, save_every=1, keep_checkpoints=10, schedule="constant"
    )
    rate = 3e-3
    train(config, tmp_path / "run")
    folders = [tmp_path / "run" / "checkpoints" / f"step-{step:08d}" for step in (6, 10)]
    ends = [load_file(folder / "model.safetensors") for folder in folders]
    fresh = dict(recipe(learn_diffusion=True).module.named_parameters())
    diffusion = [name for name in fresh if name.startswith("diffusion")]
    assert diffusion
    for name in diffusion:
        torch.testing.assert_close(ends[0][name], fresh[name].detach())
        # Adam's first step is the learning rate, however long it waited.
        first = load_file(tmp_path / "run/checkpoints/step-00000007/model.safetensors")
        change = (first[name] - ends[0][name]).abs()
        assert 0 < change.max() <= 1.001 * rate
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert ["bound" in line for line in lines] == [False] * 6 + [True] * 4
