"""Runs with masks, from training to what is drawn: known conditional distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_runs import assert_like
from process_runs import run as run_processes
from torch import Tensor
from training_runs import outcome, train_until_killed, write_table

from diffflow_ext.data import open_dataset
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.masks import Masks
from diffflow_ext.training import LoadedRun, configure, load_run, train
from diffflow_ext.training.config.defaults import resolve

NAN = math.nan
MEAN = np.array([0.5, -1.0, 0.0])
COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 1.5]])
TINY: dict[str, Any] = {
    "steps": 6, "batch_size": 10, "warmup": 2, "threads": 1, "save_every": 2, "seed": 5,
    "condition": "masks",
}  # fmt: skip
SMALL: dict[str, Any] = {"width": 8, "depth": 1}
UNET: dict[str, Any] = {
    "net": "unet", "unet_base": 8, "unet_mults": "1", "unet_blocks": 1, "unet_attention": "off"
}  # fmt: skip


# --- trained models -----------------------------------------------------------------------------


def gaussian(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what is missing of a row."""
    a, o = np.isnan(row), ~np.isnan(row)
    gain = COVARIANCE[a][:, o] @ np.linalg.inv(COVARIANCE[o][:, o])
    return MEAN[a] + gain @ (row[o] - MEAN[o]), COVARIANCE[a][:, a] - gain @ COVARIANCE[o][:, a]


RNG = np.random.default_rng(0)
DATA = RNG.multivariate_normal(MEAN, COVARIANCE, 20_000)


@pytest.fixture(scope="module", params=["ddpm", "diffflow", "nfdm", "dinof"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    model, out = request.param, tmp_path_factory.mktemp("runs") / "run"
    if model == "dinof":
        pytest.importorskip("zuko")
    sizes = {"ddpm": {"timesteps": 100}, "diffflow": {"num_steps": 10}}.get(model, {})
    config = configure(
        model, condition="masks", columns="continuous", steps=600, width=48, depth=2, warmup=20,
        threads=1, **sizes,
    )  # fmt: skip
    train(config, out, data=DATA, progress=False)
    return load_run(out)


def steps_of(run: LoadedRun) -> int | None:
    """DiNof takes 1000 steps by default."""
    return 50 if run.config.name == "dinof" else None


@pytest.mark.slow
def test_conditionals_of_a_gaussian(run: LoadedRun) -> None:
    for row in ([1.2, NAN, 0.7], [NAN, 0.3, NAN], [NAN, NAN, -1.5], [NAN, NAN, NAN]):
        given = np.array(row)
        missing = np.isnan(given)
        samples = run.sample(2000, given=given[None], num_steps=steps_of(run))
        assert torch.equal(samples[:, ~missing], torch.tensor(given[~missing]).expand(2000, -1))
        mean, covariance = gaussian(given)
        drawn = samples[:, missing].numpy()
        # Of the order of what networks as small as these miss.
        assert np.abs(drawn.mean(0) - mean).max() < 0.25
        assert np.abs(np.cov(drawn.T) - covariance).max() < 0.4


@pytest.mark.slow
def test_scores_of_draws_are_near_those_of_the_true_distribution(run: LoadedRun) -> None:
    rows = RNG.multivariate_normal(MEAN, COVARIANCE, 300)
    gaps = rows.copy()
    gaps[:, 1] = NAN
    filled = torch.stack(run.impute(gaps, 50, num_steps=steps_of(run)))
    truth = np.stack([gaussian(row)[0] for row in gaps])[:, 0]
    spread = float(gaussian(gaps[0])[1][0, 0] ** 0.5)
    exact = torch.tensor(RNG.normal(truth, spread, (50, 300)))
    y = torch.tensor(rows[:, 1])
    found, best = (crps(draws, y) for draws in (filled[..., 1], exact))
    assert found < 1.1 * best
    marginal = torch.tensor(RNG.permutation(DATA[:, 1])[: 50 * 300].reshape(50, 300))
    assert crps(marginal, y) > 1.2 * best


def crps(draws: Tensor, y: Tensor) -> float:
    n = len(draws)
    pairs = (draws[:, None] - draws[None]).abs().sum((0, 1)) / (n * (n - 1))
    return float(((draws - y).abs().mean(0) - pairs / 2).mean())


PATTERNS = 40 + 180 * torch.tensor(
    [[[i & 1, i >> 1], [1 - (i & 1), 1 - (i >> 1)]] for i in range(4)]
).repeat_interleave(2, 1).repeat_interleave(2, 2)


def patterns(n: int) -> tuple[Tensor, Tensor]:
    """Four images of 4 x 4 pixels whose lower half is the negative of the upper one, and noise."""
    which = torch.arange(n) % 4
    noise = torch.randint(-15, 16, (n, 4, 4), generator=torch.Generator().manual_seed(0))
    return (PATTERNS[which] + noise).byte()[:, None], which


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ddpm", "nfdm"])
def test_a_half_determines_the_other(model: str, tmp_path: Path) -> None:
    images, which = patterns(2000)
    sizes: dict[str, Any] = {
        "ddpm": {"timesteps": 50}, "nfdm": {"num_steps": 30, "forward": "linear"},
    }[model]  # fmt: skip
    config = configure(
        model, condition="masks", steps=800, batch_size=32, learning_rate=3e-3, warmup=20,
        threads=1, **UNET, **sizes,
    )  # fmt: skip
    train(config, tmp_path / "run", data=images, progress=False)
    run = load_run(tmp_path / "run")
    top = torch.zeros(4, 4, dtype=torch.bool)
    top[:2] = True
    given, truth = images[:200], which[:200]

    def right(samples: Tensor) -> float:
        lower = (samples[:, 0, 2:].double() - PATTERNS[:, None, 2:].double()).abs().mean((2, 3))
        return float((lower.argmin(0) == truth).double().mean())

    filled = run.sample(200, given=given, mask=top)
    assert torch.equal(filled[:, :, :2], given[:, :, :2])
    assert right(filled) > 0.95
    # Samples of the same model with nothing given are right by chance alone.
    assert right(run.sample(200)) < 0.45
    gaps = torch.where(top, given.float(), NAN)
    assert torch.equal(run.impute(gaps)[0], filled)
    # The left half leaves two patterns, both of which are drawn.
    left = run.sample(200, given=images[:1], mask=top.T).double()
    nearest = (left[:, 0] - PATTERNS[:, None].double()).abs().mean((2, 3)).argmin(0)
    assert set(nearest.tolist()) == {0, 2}
    assert 50 < int((nearest == 0).sum()) < 150


# --- runs of a few steps ------------------------------------------------------------------------


def test_runs_without_masks_say_how_to_train_one(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    plain = {name: value for name, value in TINY.items() if name != "condition"}
    train(configure("ddpm", timesteps=4, **UNET, **plain), tmp_path / "run", data=images,
          progress=False)  # fmt: skip
    run = load_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"condition='masks' \(--condition masks\).*: train such"):
        run.impute(np.full((1, 8, 8), NAN))
    with pytest.raises(ValueError, match="expected no mask, because the run was trained without"):
        run.sample(1, mask=np.ones((8, 8), bool))


@pytest.mark.parametrize("model", ["ddpm", "diffflow"])
def test_a_killed_run_ends_with_the_same_bits(model: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", columns=3)
    config = configure(model, data=str(path), **SMALL, **TINY)
    train(config, tmp_path / "whole", progress=False)
    train_until_killed(config, tmp_path / "run", 3)
    train(config, tmp_path / "run", resume=True, progress=False)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", columns=3)
    flags = [f"--{n.replace('_', '-')}={value}" for n, value in (TINY | SMALL).items()]
    words = ["train", "ddpm", str(path), *flags]
    run_processes(1, *words, "--out", str(tmp_path / "alone"))
    run_processes(2, *words, "--out", str(tmp_path / "two"))
    assert_like(tmp_path / "two", tmp_path / "alone")


@pytest.mark.parametrize("net", ["mlp", "unet"])
@pytest.mark.parametrize("model", ["diffflow", "nfdm", "dinof"])
def test_every_model_takes_masks_of_images(model: str, net: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    values: dict[str, Any] = TINY | (UNET if net == "unet" else {"net": "mlp", **SMALL})
    values |= {"dinof": {"flow": "none"}}.get(model, {"num_steps": 3})
    if model == "nfdm" and net == "mlp":
        values |= {"forward": "linear"}
    train(configure(model, **values), tmp_path / "run", data=images, progress=False)
    run = load_run(tmp_path / "run")
    shown = np.zeros((8, 8), bool)
    shown[:, 4:] = True
    filled = run.sample(2, given=images[:2], mask=shown, num_steps=3)
    assert np.array_equal(filled[:, 0, :, 4:], images[:2, :, 4:])
    assert run.sample(2, num_steps=3).shape == (2, 1, 8, 8)


def test_flows_of_images_take_no_masks() -> None:
    with pytest.raises(ValueError, match=r"Glow, takes no context.* take flow='none'"):
        resolve(configure("dinof", data="x", condition="masks"), is_image=True)
    with pytest.raises(ValueError, match="the flows of model='flow' take no context"):
        resolve(configure("flow", data="x", condition="masks"), is_image=False)


def test_data_sets_in_memory(tmp_path: Path) -> None:
    data = open_dataset(write_table(tmp_path / "t.csv"))
    train(configure("ddpm", timesteps=5, **SMALL, **TINY), tmp_path / "run", data=data,
          progress=False)  # fmt: skip
    assert load_run(tmp_path / "run").record.conditions == Conditions(masks=Masks((2,), (0, 1)))
