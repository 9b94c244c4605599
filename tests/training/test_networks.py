"""Networks of configurations: their sizes and scales, and those of a learned forward process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffflow_ext.processes import LogSNR
from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import build_recipe

POINTS, IMAGES = (2,), (3, 8, 8)
UNET = {"unet_base": 8, "unet_mults": "1,2", "unet_blocks": 1, "unet_attention": "off"}


def built(shape: tuple[int, ...], **values: Any) -> Any:
    config = resolve(configure(**values), is_image=len(shape) == 3)
    return build_recipe(config, shape).module


def test_networks_of_diffflow_have_their_scales() -> None:
    for shape in (POINTS, IMAGES):
        sde = built(shape, drift_scale=3.0, score_scale=0.25, prediction="score")
        assert (sde.drift.output_scale, sde.score.output_scale) == (3.0, 0.25)
        noise = built(shape, score_scale=0.25, prediction="noise", t_start=0.5, t_end=2.5)
        assert (noise.score.net.output_scale, noise.score.t_start) == (0.25, 0.5)
        assert noise.score.floor == pytest.approx(2e-4)
        assert (
            noise.score.g == resolve(configure(), is_image=len(shape) == 3).model.diffusion_start
        )
    sde = built(POINTS, t_end=0.25, diffusion_start=0.5)
    assert (sde.drift.output_scale, sde.score.output_scale) == (1.0, 4.0)
    flat = built(IMAGES, net="mlp", drift_scale=3.0)
    assert flat.drift.net.output_scale == 3.0
    for model in ("dinof", "ddpm", "nfdm"):
        parts = [part for part in built(POINTS, model=model).modules() if hasattr(part, "embed")]
        assert [part.output_scale for part in parts] == [1.0]


@pytest.mark.parametrize("shape", [POINTS, IMAGES])
def test_a_new_forward_process_is_the_linear_one(shape: tuple[int, ...]) -> None:
    net = UNET if shape == IMAGES else {"width": 8}
    model = built(
        shape, model="nfdm", time_functions=3, log_snr_start=9.0, log_snr_end=-6.0, **net
    )
    assert model.process == LogSNR(9.0, -6.0)
    x0, t = torch.randn(4, *shape), torch.rand(4)
    known = model.forward_process.coefficients(x0)
    assert [part.shape for part in known] == [(4, 3, *shape)] * 2
    assert not any(part.any() for part in known)
    moved = model.forward_process.at(t, x0, known)
    rows = (4, *(1,) * len(shape))
    torch.testing.assert_close(moved.mean, model.process.alpha(t).reshape(rows) * x0)
    torch.testing.assert_close(moved.scale, model.process.sigma(t).reshape(rows).expand_as(x0))
    # It learns from the first step.
    model.mean_loss(x0).backward()
    weight, bias = list(model.forward_process.parameters())[-2:]
    assert weight.grad.any()
    assert bias.grad.any()


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_width_and_depth_of_the_forward_network_of_vectors(factor: float) -> None:
    model = built(POINTS, model="nfdm", width=12, depth=2, forward_multiplier=factor)
    layers = [part for part in model.forward_process.net if isinstance(part, nn.Linear)]
    width = int(12 * factor)
    sizes = [(2, width), (width, width), (width, width), (width, 2 * 2 * 2)]
    assert [(part.in_features, part.out_features) for part in layers] == sizes


def test_channels_of_the_forward_network_of_images() -> None:
    model = built(IMAGES, model="nfdm", time_functions=1, forward_multiplier=0.5, **UNET)
    for base, channels in ((6, 4), (22, 12), (94, 48)):
        other = built(IMAGES, model="nfdm", **{**UNET, "unet_base": base, "unet_mults": "1"})
        assert other.forward_process.net.net.input.out_channels == channels
    unet = model.forward_process.net.net
    assert (model.net.input.out_channels, unet.input.out_channels) == (8, 4)
    assert (model.net.output.out_channels, unet.output.out_channels) == (3, 6)
    # It has no time.
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, *IMAGES)
    assert torch.equal(model.forward_process.net(x), unet(torch.tensor(0.0), x))


def test_a_linear_process_has_no_network_and_no_g() -> None:
    model = built(POINTS, model="nfdm", forward="linear", width=8)
    assert model.forward_process.net is None
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"net"}


def test_perceptrons_of_images_have_a_linear_process_alone() -> None:
    message = "net='mlp': expected a U-Net for the forward process of images; .*forward='linear'"
    with pytest.raises(ValueError, match=message):
        built(IMAGES, model="nfdm", net="mlp")
    model = built(IMAGES, model="nfdm", net="mlp", forward="linear", width=8)
    assert model.sample((2, *IMAGES), 2).shape == (2, *IMAGES)
