"""Batches: which rows, which mirrors, which noise, as functions of (seed, step) alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import same_bits
from torch import Tensor
from training_runs import write_images

from diffflow_ext import NoiseKey
from diffflow_ext.data import batch_indices, open_dataset
from diffflow_ext.likelihood import quantise
from diffflow_ext.training import Config, configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.loop import batches
from diffflow_ext.training.loop.batches import Batches, mirrored
from diffflow_ext.training.store.dataset import open_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (50, 1, 4, 6), generator=torch.Generator().manual_seed(0)).byte()


def config(**values: object) -> Config:
    made = configure(**{"data": "x", "batch_size": 32, "seed": 4, **values})
    return resolve(made, is_image=True)


def test_batch_of_vectors_is_rows_of_the_data() -> None:
    data = torch.randn(20, 3)
    made = resolve(configure(data="x", batch_size=8, seed=4), is_image=False)
    for step in (0, 7):
        assert torch.equal(Batches(made, data, CPU)(step), data[batch_indices(20, 8, 4, step)])


@pytest.mark.parametrize("flip", ["on", "off"])
def test_batch_of_images_holds_the_levels_of_its_rows(images: Tensor, flip: str) -> None:
    batch = Batches(config(flip=flip), images, CPU)(3)
    assert batch.dtype == torch.float32
    assert -1 <= float(batch.min()) < float(batch.max()) < 1
    levels, rows = quantise(batch), images[batch_indices(50, 32, 4, 3)]
    same = (levels == rows).flatten(1).all(1)
    turned = (levels == rows.flip(-1)).flatten(1).all(1)
    assert bool((same | turned).all())
    assert bool(same.all()) == (flip == "off")
    if flip == "on":
        assert 8 <= int(turned.sum()) <= 24


def test_noise_fills_the_space_between_levels(images: Tensor) -> None:
    batches = Batches(config(flip="off"), images, CPU)
    noise = torch.cat([(batches(step) + 1) * 128 % 1 for step in range(20)]).flatten()
    # 15,360 uniforms: mean and variance within four standard errors.
    assert abs(float(noise.mean()) - 0.5) < 4 * (1 / 12 / len(noise)) ** 0.5
    assert abs(float(noise.var()) - 1 / 12) < 4 * (1 / 180 / len(noise)) ** 0.5


def test_batch_depends_on_seed_and_step_alone(images: Tensor) -> None:
    first = Batches(config(flip="on"), images, CPU)
    expected = first(5)
    torch.manual_seed(1)
    first(6)
    assert same_bits(first(5), expected)
    assert same_bits(Batches(config(flip="on"), images, CPU)(5), expected)
    assert not torch.equal(first(6), expected)
    assert not torch.equal(Batches(config(flip="on", seed=5), images, CPU)(5), expected)


def test_each_image_is_mirrored_by_its_own_choice(images: Tensor) -> None:
    key = NoiseKey(1, stream=2)
    whole = mirrored(images, key)
    assert torch.equal(mirrored(images[10:30], key, sample_offset=10), whole[10:30])
    assert torch.equal(mirrored(whole, key), images)
    turned = (whole != images).flatten(1).any(1)
    assert 12 <= int(turned.sum()) <= 38
    other = (mirrored(images, key.at(3)) != images).flatten(1).any(1)
    assert not torch.equal(turned, other)


def test_large_data_stay_where_they_are(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_RESIDENT_BYTES", 10)
    far = Batches(config(flip="off"), images, torch.device("meta"))
    assert far.data.device == CPU
    monkeypatch.undo()
    assert Batches(config(flip="off"), images, torch.device("meta")).data.is_meta


def test_data_of_a_configuration(tmp_path: Path) -> None:
    folder = str(write_images(tmp_path / "images", 8))
    small = open_data(configure(data=folder, image_size=4, limit=30))
    expected = open_dataset(folder, image_size=4, limit=30)
    assert small.train.shape == (30, 1, 4, 4)
    assert torch.equal(small.train, expected.train)
    assert torch.equal(small.test, expected.test)
    points = open_data(configure(data="moons", data_seed=3))
    assert torch.equal(points.train, open_dataset("moons", seed=3).train)
