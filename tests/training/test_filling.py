"""Missing parts drawn by models that were trained with masks: known conditional distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from diffflow_ext.cli import main
from diffflow_ext.data.column import Column
from diffflow_ext.data.conditions import Conditions
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.data.masks import Masks
from diffflow_ext.estimators import DDPMDensity
from diffflow_ext.functional.noise import NoiseKey, normal
from diffflow_ext.training import LoadedRun, configure, evaluate, load_run, train
from diffflow_ext.training.evaluation.filling import DRAWS, Part, fill, given_part
from diffflow_ext.training.recipes.contexts import GivenContexts
from diffflow_ext.training.store.dataset import DatasetRecord

NAN = math.nan
RNG = np.random.default_rng(2)
TINY: dict[str, Any] = {
    "steps": 6, "batch_size": 10, "warmup": 2, "threads": 1, "save_every": 2, "seed": 5,
    "condition": "masks",
}  # fmt: skip
SMALL: dict[str, Any] = {"width": 8, "depth": 1}
UNET: dict[str, Any] = {
    "net": "unet", "unet_base": 8, "unet_mults": "1", "unet_blocks": 1, "unet_attention": "off"
}  # fmt: skip


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


def test_the_program_writes_given_values_as_they_were(table: LoadedRun, tmp_path: Path) -> None:
    out, given = tmp_path / "s.csv", "a=0.123456789012345,w=x"
    words = ["sample", str(table.folder), "--n", "3", "--out", str(out), "--device", "cpu"]
    assert main([*words, "--given", given]) == 0
    written = pd.read_csv(out)
    assert [*written.a] == [0.123456789012345] * 3
    assert [*written.w] == ["x"] * 3
    assert [*written.columns] == [*table.sample_frame(1).columns]


def test_a_mask_in_a_frame_is_found_by_its_names(table: LoadedRun) -> None:
    given = pd.DataFrame({"w": ["x", "y"], "n": [3, 4], "a": [0.5, -0.5]})
    mask = pd.DataFrame({"w": [False] * 2, "n": [True] * 2, "a": [False] * 2})
    by_name = table.sample_frame(2, given=given, mask=mask, seed=3)
    in_order = table.sample_frame(2, given=given, mask=np.array([False, True, False]), seed=3)
    assert [*by_name.n] == [3, 4]
    pd.testing.assert_frame_equal(by_name, in_order)
    with pytest.raises(
        ValueError, match=r"^sample: expected mask with the columns a, n, w, got n"
    ):
        table.sample(2, given=given, mask=mask[["n"]], units="training")


def test_given_numbers_that_their_type_does_not_hold_stay(tmp_path: Path) -> None:
    frame = pd.DataFrame({"k": RNG.permutation(np.arange(1, 101)), "x": RNG.normal(size=100)})
    frame = frame.astype({"x": "float32"})
    config = configure("ddpm", timesteps=5, columns="k=positive,x=continuous", **SMALL, **TINY)
    train(config, tmp_path / "run", data=frame, progress=False)
    run = load_run(tmp_path / "run")
    (filled,) = run.impute(pd.DataFrame({"k": [1.5, 2.0], "x": [NAN, 1 / 3]}))
    assert [*filled.k] == [1.5, 2.0]
    assert filled.x[1] == 1 / 3
    assert [*run.sample_frame(1, given={"k": 1.5}).k] == [1.5]
    assert run.sample_frame(1, given={"k": 2}).k.dtype == "int64"


def test_more_copies_than_memory_are_refused(table: LoadedRun) -> None:
    with pytest.raises(ValueError, match=r"^sample: .*draw fewer"):
        table.sample(2**31, given={"a": 0.1}, units="training")


def test_estimators_take_no_run_with_masks(table: LoadedRun) -> None:
    assert table.folder is not None
    with pytest.raises(ValueError, match=r"^load: expected a run without masks, got .*load_run"):
        DDPMDensity.load(table.folder)


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
