"""Noise between the levels of images, and bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import replace_everywhere

from diffflow_ext import NoiseKey
from diffflow_ext.functional import normal
from diffflow_ext.functional.noise import launch_normal
from diffflow_ext.likelihood import bits_per_dim, dequantise, quantise

KEY = NoiseKey(3, 9)


def levels(n: int = 64) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).repeat(n, 1)


def test_levels_come_back_and_stay_inside() -> None:
    images = levels(2000)
    x = dequantise(images, KEY)
    assert x.dtype == torch.float32
    assert float(x.min()) >= -1.0
    assert float(x.max()) < 1.0
    assert torch.equal(quantise(x), images)


def test_the_noise_is_that_of_its_purpose() -> None:
    images = levels(3)
    z = normal((3, 256), KEY, purpose="dequantise", sample_offset=5)
    expected = (images + torch.special.ndtr(z)) / 128 - 1
    torch.testing.assert_close(
        dequantise(images, KEY, sample_offset=5), expected, rtol=0, atol=2**-22
    )


def test_extreme_draws_stay_in_their_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for extreme in (-8.0, 8.0):
        replace_everywhere(monkeypatch, launch_normal, lambda out, *_: out.fill_(extreme))  # noqa: B023
        assert torch.equal(quantise(dequantise(levels(1), KEY)), levels(1))


def test_bits_of_a_uniform_density_are_eight() -> None:
    nats = 784 * math.log(2.0)  # density 1/2 on [-1, 1) in each dimension
    assert math.isclose(bits_per_dim(nats, 784), 8.0)
    torch.testing.assert_close(bits_per_dim(torch.tensor([nats, 0.0]), 784),
                               torch.tensor([8.0, 7.0]))  # fmt: skip


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="uint8"):
        dequantise(torch.zeros(2, 3), KEY)
    with pytest.raises(ValueError, match="shape"):
        dequantise(torch.tensor(3, dtype=torch.uint8), KEY)
    with pytest.raises(ValueError, match="dim"):
        bits_per_dim(1.0, 0)
    with pytest.raises(TypeError, match="floating"):
        quantise(levels(1))
    with pytest.raises(ValueError, match="NaN"):
        quantise(torch.tensor([math.nan]))
