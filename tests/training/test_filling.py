"""Missing parts drawn by models that were trained with masks: known conditional distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from process_runs import assert_like
from process_runs import run as run_processes
from torch import Tensor
from training_runs import outcome, train_until_killed, write_table

from diffflow_ext.data import open_dataset
from diffflow_ext.data.column import Column
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.masks import Masks
from diffflow_ext.functional.noise import NoiseKey, normal
from diffflow_ext.training import LoadedRun, configure, evaluate, load_run, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.evaluation.filling import DRAWS, Part, fill, given_part
from diffflow_ext.training.recipes.contexts import GivenContexts
from diffflow_ext.training.store.dataset import DatasetRecord

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


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ddpm", "diffflow", "nfdm", "dinof"])
def test_conditionals_of_a_gaussian(model: str, tmp_path: Path) -> None:
    if model == "dinof":
        pytest.importorskip("zuko")
    rng = np.random.default_rng(0)
    data = rng.multivariate_normal(MEAN, COVARIANCE, 20_000)
    sizes = {"ddpm": {"timesteps": 100}, "diffflow": {"num_steps": 10}}.get(model, {})
    config = configure(
        model, condition="masks", columns="continuous", steps=600, width=48, depth=2, warmup=20,
        threads=1, **sizes,
    )  # fmt: skip
    train(config, tmp_path / "run", data=data, progress=False)
    run = load_run(tmp_path / "run")
    for row in ([1.2, NAN, 0.7], [NAN, 0.3, NAN], [NAN, NAN, -1.5], [NAN, NAN, NAN]):
        given = np.array(row)
        missing = np.isnan(given)
        samples = run.sample(2000, given=given[None], num_steps=100 if model == "dinof" else None)
        assert torch.equal(samples[:, ~missing], torch.tensor(given[~missing]).expand(2000, -1))
        mean, covariance = gaussian(given)
        drawn = samples[:, missing].numpy()
        # Of the order of what networks as small as these miss.
        assert np.abs(drawn.mean(0) - mean).max() < 0.25
        assert np.abs(np.cov(drawn.T) - covariance).max() < 0.4
    # The continuous ranked probability score of the draws is near that of the true distribution.
    rows = rng.multivariate_normal(MEAN, COVARIANCE, 300)
    gaps = rows.copy()
    gaps[:, 1] = NAN
    filled = torch.stack(run.impute(gaps, 50, num_steps=50 if model == "dinof" else None))
    truth = np.stack([gaussian(row)[0] for row in gaps])[:, 0]
    spread = math.sqrt(float(gaussian(gaps[0])[1]))
    exact = torch.tensor(rng.normal(truth, spread, (50, 300)))
    y = torch.tensor(rows[:, 1])
    found, best = (crps(draws, y) for draws in (filled[..., 1], exact))
    assert found < 1.1 * best
    marginal = torch.tensor(rng.permutation(data[:, 1])[: 50 * 300].reshape(50, 300))
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
@pytest.mark.parametrize("model", ["ddpm", "nfdm", "diffflow"])
def test_a_half_determines_the_other(model: str, tmp_path: Path) -> None:
    images, which = patterns(2000)
    sizes: dict[str, Any] = {
        "ddpm": {"timesteps": 50}, "diffflow": {"num_steps": 10, "diffusion_start": 3.0},
        "nfdm": {"num_steps": 30, "forward": "linear"},
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


# --- what holds for runs of a few steps ---------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=200),
            "n": rng.integers(0, 30, 200),
            "w": rng.choice(["x", "y"], 200),
        }
    )
    frame.loc[::5, "a"] = NAN
    config = configure("ddpm", timesteps=5, missing="mask", **SMALL, **TINY)
    train(config, folder / "run", data=frame, progress=False)
    evaluate(folder / "run", 20, data=frame, figures=False, ode_n=5)
    return load_run(folder / "run")


ROWS = pd.DataFrame({"w": ["x", None, "y"], "a": [0.1, 0.2, NAN], "n": [NAN, 3.0, 5.0]})


def test_given_values_come_back_as_they_were(table: LoadedRun) -> None:
    copies = table.impute(ROWS.set_axis(["i", "j", "k"]), 3, seed=2)
    assert [*copies[1].index] == ["i", "j", "k"]
    assert [*copies[1].columns] == ["a", "n", "w"]
    for copy in copies:
        assert not copy.isna().any(axis=None)
        assert [*copy.a.iloc[:2]] == [0.1, 0.2]
        assert [*copy.n.iloc[1:]] == [3, 5]
        assert [*copy.w.iloc[[0, 2]]] == ["x", "y"]
    again = table.impute(ROWS, 3, seed=2)
    assert all(np.array_equal(one, two) for one, two in zip(copies, again, strict=True))
    assert not copies[0].equals(table.impute(ROWS, 1, seed=3)[0])
    own = table.sample_frame(3, given=ROWS, seed=2)
    assert np.array_equal(own, copies[0])
    # One row for all, or some of its values.
    one = table.sample_frame(4, given={"w": "y", "a": 0.7}, seed=1)
    assert set(one.w) == {"y"}
    assert set(one.a) == {0.7}
    whole, shown = ROWS.fillna({"w": "x", "a": 3.0, "n": 3.0}), ~ROWS[["a", "n", "w"]].isna()
    masked = table.sample_frame(3, given=whole, mask=shown, seed=2)
    assert np.array_equal(masked, own)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (
            "impute",
            {"rows": ROWS, "candidates": 9},
            "candidates=9: expected None, because the run",
        ),
        ("impute", {"rows": ROWS, "eta": 1.0, "n": 0}, "n=0"),
        ("impute", {"rows": ROWS.assign(w="z")}, "impute: expected one of 'x', 'y', got 'z'"),
        ("impute", {"rows": ROWS[["a"]]}, "which has no 'n'"),
        ("impute", {"rows": ROWS, "guidance": 2.0}, "guidance=2.0: the sampler of ddpm has"),
        ("sample_frame", {"n": 5, "given": ROWS}, "one row for all samples, or 5, one for each"),
        ("sample_frame", {"n": 5, "given": {"b": 1.0}}, "some of a, n, w, got one that has 'b'"),
        ("sample_frame", {"n": 5, "mask": [True]}, "expected given with a mask"),
        ("sample_frame", {"n": 3, "given": ROWS, "mask": [True]}, r"shape \(3\) or \(3, 3\)"),
        (
            "log_prob",
            {"rows": ROWS[1:2].assign(w="x"), "given": ROWS},
            "because the run has the density of whole",
        ),
    ],
)
def test_what_tables_refuse(
    table: LoadedRun, call: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(table, call)(**options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("pictures")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    config = configure("ddpm", timesteps=4, **UNET, **TINY)
    train(config, folder / "run", data=images, progress=False)
    return load_run(folder / "run")


def test_pictures_with_gaps(pictures: LoadedRun) -> None:
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 256, (2, 3, 8, 8)).astype(np.float64)
    gaps = whole.copy()
    gaps[0, :, :4] = NAN
    gaps[1, :, 2, 3] = NAN
    copies = pictures.impute(gaps, 3, seed=1)
    assert len(copies) == 3
    for copy in copies:
        assert copy.dtype == torch.uint8
        assert np.array_equal(copy.numpy()[~np.isnan(gaps)], gaps[~np.isnan(gaps)])
    assert not torch.equal(copies[0], copies[1])
    by_mask = pictures.sample(2, given=whole.astype(np.uint8), mask=~np.isnan(gaps)[:, 0], seed=1)
    assert torch.equal(by_mask, copies[0])
    last = np.moveaxis(gaps, 1, -1)
    assert torch.equal(pictures.impute(last, 1, seed=1)[0], copies[0])
    one = pictures.sample(2, given=gaps[0], seed=1)
    assert torch.equal(one[0], copies[0][0])
    raw = pictures.sample(2, given=gaps, seed=1, units="training")
    assert torch.equal(pictures.record.in_data_units(raw), copies[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x + 0.5,
            ValueError,
            "whole numbers from 0 to 255, or NaN .*, got 0.5 in image",
        ),
        (lambda x: x - 1, ValueError, "got -1 in image 0"),
        (lambda x: x + 256, ValueError, "got 256 in image 0"),
        (lambda x: x[..., :4], ValueError, r"shape \(3, 8, 8\) or \(n, 3, 8, 8\) as in the run"),
        (lambda x: x.astype(str), TypeError, "expected images of numbers"),
        (lambda x: np.where(np.arange(3)[:, None, None] == 1, NAN, x), ValueError, "in all chan"),
    ],
)
def test_what_pictures_refuse(
    pictures: LoadedRun, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pictures.impute(change(np.zeros((2, 3, 8, 8))))


def test_masks_of_pictures_are_bool(pictures: LoadedRun) -> None:
    with pytest.raises(TypeError, match="expected mask as bool"):
        pictures.sample(1, given=np.zeros((3, 8, 8)), mask=np.ones((8, 8)))
    with pytest.raises(ValueError, match=r"expected mask of shape \(8, 8\) or \(2, 8, 8\)"):
        pictures.sample(2, given=np.zeros((2, 3, 8, 8)), mask=np.ones((3, 8, 8), bool))


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


# --- a model that is known ----------------------------------------------------------------------


class Known:
    """A recipe whose samples are standard normals; its contexts are kept."""

    class Config:
        name = "known"

    config, is_image, sampler_options = Config(), False, ()

    def __init__(self, masks: Masks) -> None:
        self.conditions, self.event_shape = Conditions(masks=masks), masks.event_shape
        self.contexts: Any = None

    def num_steps(self) -> None:
        return None

    def given(self, stored: Tensor) -> Known:
        self.contexts = GivenContexts(self.conditions, stored, torch.device("cpu"))
        return self

    def draw(self, shape: tuple[int, ...], key: NoiseKey, **options: Any) -> Tensor:
        return normal(shape, key, sample_offset=options["sample_offset"])


def test_what_is_missing_is_never_drawn_as_missing() -> None:
    """Of a category of two values and a gap, the shares of the values stay those of the model."""
    word = Column("w", "category", values=(0.0, 1.0), shares=(0.2, 0.3, 0.5), missing=True)
    encoding = Encoding((Column("y", "continuous"), word))
    record = DatasetRecord("x", encoding, "", (2,))
    recipe: Any = Known(Masks.of((2,), encoding))
    part = given_part("impute", record, np.array([[0.5, NAN]])).repeated(20_000)
    samples = fill(recipe, record, part, seed=3)
    codes = encoding.decoded(samples)[:, 1]
    assert not bool(codes.isnan().any())
    assert float(codes.mean()) == pytest.approx(0.6, abs=0.02)
    assert (samples[:, 0] == 0.5).all()


def test_values_that_are_there_are_known_to_be_present() -> None:
    gap = {"missing": True, "shares": (0.5, 0.5)}
    encoding = Encoding((Column("a", "continuous", **gap), Column("b", "continuous", **gap)))
    record = DatasetRecord("x", encoding, "", (4,))
    masks = Masks.of((4,), encoding)
    part = Part(torch.tensor([[0.3, NAN]]).expand(500, 2), torch.zeros(500, 2).double())
    x, mask = part.inputs(record, masks, seed=1)
    assert torch.equal(mask, torch.tensor([True, False, True, True]).expand(500, 4))
    # Both are in the lower half of their normal: present.
    assert (x[:, 2:] < 0).all()
    assert len(x[:, 2].unique()) > 400


def test_draws_that_stay_gaps_are_said() -> None:
    word = Column("w", "category", values=(0.0, 1.0), shares=(1e-9, 1e-9, 1 - 2e-9), missing=True)
    encoding = Encoding((word,))
    record = DatasetRecord("x", encoding, "", (1,))
    part = given_part("impute", record, np.array([[NAN]]))
    with pytest.raises(ValueError, match=f"sample 0 .counted from 0., {DRAWS} draws of it are"):
        fill(Known(Masks.of((1,), encoding)), record, part, seed=3)  # pyright: ignore
