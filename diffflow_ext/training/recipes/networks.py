"""Networks and flows of a configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.flows import glow, spline_flow
from diffflow_ext.nets import FourierMLP, UNet

from ..config.rules import whole_list
from ..config.sections import FFJORDNetwork, FlowNetwork, Network, NFDMNetwork

ACTIVATIONS = {
    "elu": nn.ELU, "gelu": nn.GELU, "mish": nn.Mish, "relu": nn.ReLU, "silu": nn.SiLU,
    "tanh": nn.Tanh,
}  # fmt: skip


class FlatNet(nn.Module):
    """Applies a network over vectors to flattened images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the network; shape (B, *event) in and out."""
        return self.net(t, x.flatten(1)).reshape(x.shape)


def build_net(
    network: Network,
    event_shape: tuple[int, ...],
    channel_multiplier: float = 1.0,
    output_scale: float = 1.0,
) -> nn.Module:
    """Returns an untrained network for ``net(t, x)``, drawn from torch's generator."""
    if network.net == "unet":
        return _unet(network, event_shape, channel_multiplier, output_scale)
    return build_perceptron(network, event_shape, output_scale)


def build_perceptron(
    network: Network | FFJORDNetwork, event_shape: tuple[int, ...], output_scale: float = 1.0
) -> nn.Module:
    """Returns an untrained perceptron, for images with flattening."""
    net = FourierMLP(
        math.prod(event_shape),
        width=network.width,
        depth=network.depth,
        activation=network.activation,
        time_scale=network.time_scale,
        output_scale=output_scale,
    )
    return net if len(event_shape) == 1 else FlatNet(net)


def build_forward_net(
    network: NFDMNetwork, event_shape: tuple[int, ...], time_functions: int
) -> nn.Module:
    """Returns an untrained network of x_0 for a learned forward process, which starts at zero.

    It has the activation of the prediction, and no dropout.
    """
    factor, channels = network.forward_multiplier, event_shape[0]
    outputs = 2 * time_functions * channels
    assert factor is not None
    if network.net == "unet":
        assert network.unet_base is not None
        # Channels of a U-Net are even, and at least four.
        channels = max(4, 2 * round(factor * network.unet_base / 2))
        # The bound compares two of its values, which must not differ by chance.
        narrow = replace(network, unet_base=channels, dropout=0.0)
        return TimelessNet(_unet(narrow, event_shape, 1.0, 1.0, outputs))
    if len(event_shape) > 1:
        raise ValueError(
            "train: net='mlp': expected a U-Net for the forward process of images; leave net out,"
            " or take forward='linear'"
        )
    assert network.width is not None
    assert network.depth is not None
    width = max(1, round(factor * network.width))
    assert network.activation is not None
    activation = ACTIVATIONS[network.activation]
    layers: list[nn.Module] = [nn.Linear(channels, width), activation()]
    for _ in range(network.depth):
        layers += [nn.Linear(width, width), activation()]
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(*layers, last)


class TimelessNet(nn.Module):
    """Makes a network of x alone from one of time and x."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Evaluates the network at time 0."""
        return self.net(torch.zeros((), dtype=x.dtype, device=x.device), x)


def _unet(
    network: Network,
    event_shape: tuple[int, ...],
    channel_multiplier: float,
    output_scale: float,
    out_channels: int | None = None,
) -> nn.Module:
    channels, height, width = event_shape
    if height != width:
        raise ValueError(
            f"train: net='unet': expected square images, got {height} x {width}; give --image-size"
        )
    return UNet(
        channels,
        height,
        base=network.unet_base,
        mults=whole_list(network.unet_mults),
        blocks=network.unet_blocks,
        attention=whole_list(network.unet_attention),
        dropout=network.dropout,
        channel_multiplier=channel_multiplier,
        time_scale=network.time_scale,
        out_channels=out_channels,
        output_scale=output_scale,
    )


def build_flow(network: FlowNetwork, event_shape: tuple[int, ...]) -> Any:
    """Returns an untrained normalizing flow, drawn from torch's generator."""
    if network.flow == "glow":
        return glow(event_shape, network.glow_levels, network.glow_blocks, network.glow_hidden)
    (dim,) = event_shape
    hidden = whole_list(network.flow_hidden)
    return spline_flow(dim, network.flow_transforms, hidden, network.flow_bins)
