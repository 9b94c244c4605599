"""Networks and flows of a configuration."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diffflow_ext.flows import glow, spline_flow
from diffflow_ext.nets import FourierMLP, UNet

from ..config.rules import whole_list
from ..config.sections import FFJORDNetwork, FlowNetwork, Network


class FlatNet(nn.Module):
    """Applies a network over vectors to flattened images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the network; shape (B, *event) in and out."""
        return self.net(t, x.flatten(1)).reshape(x.shape)


def build_net(
    network: Network, event_shape: tuple[int, ...], channel_multiplier: float = 1.0
) -> nn.Module:
    """Returns an untrained network for ``net(t, x)``, drawn from torch's generator."""
    if network.net == "unet":
        return _unet(network, event_shape, channel_multiplier)
    return build_perceptron(network, event_shape)


def build_perceptron(network: Network | FFJORDNetwork, event_shape: tuple[int, ...]) -> nn.Module:
    """Returns an untrained perceptron, for images with flattening."""
    net = FourierMLP(
        math.prod(event_shape),
        width=network.width,
        depth=network.depth,
        activation=network.activation,
        time_scale=network.time_scale,
    )
    return net if len(event_shape) == 1 else FlatNet(net)


def _unet(network: Network, event_shape: tuple[int, ...], channel_multiplier: float) -> nn.Module:
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
    )


def build_flow(network: FlowNetwork, event_shape: tuple[int, ...]) -> Any:
    """Returns an untrained normalizing flow, drawn from torch's generator."""
    if network.flow == "glow":
        return glow(event_shape, network.glow_levels, network.glow_blocks, network.glow_hidden)
    (dim,) = event_shape
    hidden = whole_list(network.flow_hidden)
    return spline_flow(dim, network.flow_transforms, hidden, network.flow_bins)
