"""A step that is not finite: what is said of it, and what is left of the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffflow_ext.flows import ActNorm
from diffflow_ext.training import Config, TrainingError, configure, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.loop import step as step_module
from diffflow_ext.training.loop.batches import Batches
from diffflow_ext.training.loop.diagnosis import diagnose
from diffflow_ext.training.recipes.base import Recipe
from diffflow_ext.training.recipes.build import build_recipe
from diffflow_ext.training.recipes.diffflow import DiffFlowRecipe
from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.dataset import open_data
from diffflow_ext.training.store.directory import read_metrics

SMALL: dict[str, Any] = {"batch_size": 12, "width": 8, "depth": 1, "steps": 8, "threads": 1}


def recipe_of(model: str, **changes: Any) -> tuple[Recipe[Any], Tensor, Tensor]:
    """A model, a batch, and the rows that it is made of."""
    values = SMALL
    if model == "flow":
        pytest.importorskip("zuko")
        values = {name: SMALL[name] for name in ("batch_size", "steps", "threads")}
    config = configure(data="moons", model=model, **values, **changes)
    dataset = open_data(config)
    config = resolve(config, is_image=False)
    batches = Batches(config, dataset.train, torch.device("cpu"))
    return build_recipe(config, dataset.event_shape), batches(3), batches.rows(3)


class Broken(nn.Module):
    """A network that is not finite right of a point, from some time on."""

    def __init__(self, net: nn.Module, right_of: float, after: float) -> None:
        super().__init__()
        self.net, self.right_of, self.after = net, right_of, after

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        bad = (x[:, :1] > self.right_of) & (t > self.after)
        return torch.where(bad, math.inf, self.net(t, x))


def test_a_weight_is_named() -> None:
    recipe, x0, rows = recipe_of("diffflow")
    with torch.no_grad():
        recipe.module.score.input.weight[3, 1] = math.nan
    assert diagnose(recipe, x0, rows, 3, 0) == (
        "not finite are the weights score.input.weight (1 of 16 numbers)"
    )


@pytest.mark.parametrize("model", ["diffflow", "dinof", "nfdm", "ddpm", "flow"])
def test_a_sample_is_named_with_its_row(model: str) -> None:
    recipe, x0, rows = recipe_of(model)
    x0 = x0.clone()
    x0[[2, 7]] = 1e30
    if model == "flow":
        x0[[2, 7]] = math.nan
    original = recipe.sample_losses

    def each(x: Tensor, step: int, offset: int) -> Tensor:
        # DiffFlowSDE refuses data that are not finite, and float32 overflows behind them.
        return torch.where(x[:, 0].abs() < 1e20, original(x.clamp(-9, 9), step, offset), math.inf)

    recipe.sample_losses = each  # pyright: ignore
    recipe.where_not_finite = lambda *_: ""  # pyright: ignore
    text = diagnose(recipe, x0, rows, 3, 100)
    assert text == (
        f"not finite is the loss of samples 102 (row {int(rows[2])} of the training data), "
        f"107 (row {int(rows[7])} of the training data) of the batch"
    )


@pytest.mark.parametrize("name", ["drift", "score"])
def test_the_step_of_the_path_and_the_network_are_named(name: str) -> None:
    recipe, x0, rows = recipe_of("diffflow", num_steps=6, progressive="off")
    net = getattr(recipe.module, name)
    setattr(recipe.module, name, Broken(net, right_of=-math.inf, after=0.01))
    text = diagnose(recipe, x0, rows, 3, 0)
    assert "the loss of all 12 samples" in text
    assert f"the {name} at step" in text


def test_the_first_step_of_many_is_named() -> None:
    """The state that a drift sends away is behind the drift that did it."""
    recipe, x0, rows = recipe_of("diffflow", num_steps=6, progressive="off")
    recipe.module.drift = Broken(recipe.module.drift, right_of=-math.inf, after=-1.0)
    assert "the drift at step 0 of 6 isn't finite" in diagnose(recipe, x0, rows, 3, 0)


def test_a_gradient_is_named_before_clipping_spreads_it() -> None:
    """A loss is finite where its slope is not: sqrt at 0."""
    recipe, x0, rows = recipe_of("ddpm")
    bias = recipe.module.eps_net.output.bias
    (part,) = recipe.objectives
    plain = part.loss

    def loss(x: Tensor, step: int, offset: int) -> Tensor:
        return plain(x, step, offset) + (bias - bias.detach()).square().sum().sqrt()

    object.__setattr__(part, "loss", loss)
    assert diagnose(recipe, x0, rows, 3, 0) == (
        "not finite are the gradients eps_net.output.bias (2 of 2 numbers)"
    )


def test_nothing_wrong_is_said() -> None:
    assert diagnose(*recipe_of("diffflow"), 3, 0) == ""


# --- in a run ------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """Makes the losses of some steps NaN."""
    plain = DiffFlowRecipe._loss

    def loss(self: DiffFlowRecipe, x0: Tensor, step: int, offset: int) -> Tensor:
        value = plain(self, x0, step, offset)
        return value * math.nan if bad(step) else value

    monkeypatch.setattr(DiffFlowRecipe, "_loss", loss)


def cut_off_at(last: int) -> Callable[[int], bool]:
    def bad(step: int) -> bool:
        if step == last:
            raise RuntimeError("cut off")
        return False

    return bad


def config(**changes: Any) -> Config:
    return configure(
        data="moons", num_steps=3, progressive="off", save_every=3, log_every=1, **SMALL, **changes
    )


def test_a_skipped_step_is_counted_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step in (1, 4, 5))
    train(config(on_nonfinite="skip"), tmp_path / "whole")
    log = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in log] == list(range(1, 9))
    assert [line.get("skipped", 0) for line in log] == [0, 1, 1, 1, 2, 3, 3, 3]
    assert ["loss" in line for line in log] == [s not in (1, 4, 5) for s in range(8)]
    checkpoint = load_latest(tmp_path / "whole" / "checkpoints")
    assert checkpoint.meta["counters"]["skipped"] == [3, 0]
    # Adam and the average have seen five steps.
    steps = {float(v) for name, v in checkpoint.optim.items() if name.endswith(".step")}
    assert steps == {5.0}
    assert checkpoint.meta["counters"]["ema_updates"] == 5
    assert all(value.isfinite().all() for value in checkpoint.model.values())
    # Cut off behind the first of them and resumed, the same.
    with monkeypatch.context() as patch:
        poison(patch, cut_off_at(4))
        with pytest.raises(RuntimeError, match="cut off"):
            train(config(on_nonfinite="skip"), tmp_path / "cut")
    train(config(on_nonfinite="skip"), tmp_path / "cut", resume=True)
    resumed = load_latest(tmp_path / "cut" / "checkpoints")
    assert resumed.meta["counters"]["skipped"] == [3, 0]
    assert all(torch.equal(v, resumed.model[name]) for name, v in checkpoint.model.items())


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_flow_that_the_first_batch_spoils_is_no_step_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its scale would stay, and no step after it be finite."""
    pytest.importorskip("normflows")
    plain = ActNorm._start

    def spoiled(self: ActNorm, x: Tensor) -> None:
        plain(self, x)
        with torch.no_grad():
            self.t.fill_(math.nan)

    monkeypatch.setattr(ActNorm, "_start", spoiled)
    levels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=levels)
    small = configure(
        data=str(tmp_path / "images.npz"), model="flow", batch_size=8, steps=1, glow_blocks=1,
        glow_hidden=4, on_nonfinite=what, threads=1,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="a scale that isn't finite"):
        train(small, tmp_path / "run")


@pytest.mark.parametrize("found", [r"gradients .* numbers\).*0003", "underflow in dt"])
def test_a_run_stops_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Also where the search for the cause fails itself."""

    def fails(*_: Any) -> str:
        raise AssertionError(found)

    if found == "underflow in dt":
        monkeypatch.setattr(step_module, "diagnose", fails)
    poison(monkeypatch, lambda step: step == 4)
    with pytest.raises(TrainingError, match=f"loss is nan at step 5.*{found}"):
        train(config(), tmp_path / "run")
    assert load_latest(tmp_path / "run" / "checkpoints").step == 3


def test_a_run_that_skipped_nearly_everything_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step >= 2)
    with pytest.warns(UserWarning, match="6 of 8 steps were skipped"):
        train(config(on_nonfinite="skip"), tmp_path / "run")


def test_endless_skipping_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "MAX_SKIPPED", 3)
    poison(monkeypatch, lambda step: step >= 2)
    with pytest.raises(TrainingError, match="neither was any of the 3 before"):
        train(config(on_nonfinite="skip"), tmp_path / "run")
    assert load_latest(tmp_path / "run" / "checkpoints").step == 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all("NaN" not in line and json.loads(line) for line in lines)


def test_a_captured_step_cannot_be_skipped() -> None:
    with pytest.raises(ValueError, match=r"on_nonfinite='skip'.*CUDA graph"):
        config(on_nonfinite="skip", cuda_graph="on")
