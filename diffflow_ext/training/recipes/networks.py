"""From a configuration to networks and flows."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diffflow_ext.flows import glow, spline_flow
from diffflow_ext.nets import FourierMLP, UNet

from ..config.fields import TrainConfig
from ..config.rules import attention_sizes, whole_list

__all__ = ["FlatNet", "build_flow", "build_net"]


class FlatNet(nn.Module):
    """Lets a network over vectors serve for images.

    Arguments:
        net: A network over vectors, called as ``net(t, x)`` with x of shape (B, D).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the network on flattened images; shape (B, *event) in and out."""
        return self.net(t, x.flatten(1)).reshape(x.shape)


def build_net(
    config: TrainConfig, event_shape: tuple[int, ...], channel_multiplier: float = 1.0
) -> nn.Module:
    """Returns an untrained network for ``net(t, x)``, drawn from torch's generator.

    Arguments:
        config: The configuration, resolved for the data.
        event_shape: The shape of a sample.
        channel_multiplier: Factor of a U-Net's channels.
    """
    if config.net == "unet":
        return _unet(config, event_shape, channel_multiplier)
    net = FourierMLP(
        math.prod(event_shape),
        width=config.width,
        depth=config.depth,
        activation=config.activation,
        time_scale=config.time_scale,
    )
    return net if len(event_shape) == 1 else FlatNet(net)


def _unet(
    config: TrainConfig, event_shape: tuple[int, ...], channel_multiplier: float
) -> nn.Module:

    channels, height, width = event_shape
    if height != width:
        raise ValueError(
            f"train: net='unet': expected square images, got {height} x {width}; give --image-size"
        )
    return UNet(
        channels,
        height,
        base=config.unet_base,
        mults=whole_list(config.unet_mults),
        blocks=config.unet_blocks,
        attention=attention_sizes(config.unet_attention),
        dropout=config.dropout,
        channel_multiplier=channel_multiplier,
        time_scale=config.time_scale,
    )


def build_flow(config: TrainConfig, event_shape: tuple[int, ...]) -> Any:
    """Returns an untrained normalizing flow, drawn from torch's generator.

    Raises:
        ImportError: If the package that has it is missing.
    """

    if config.flow == "glow":
        levels = config.glow_levels or None
        return glow(event_shape, levels, config.glow_blocks, config.glow_hidden)
    hidden = whole_list(config.flow_hidden)
    (dim,) = event_shape
    return spline_flow(dim, config.flow_transforms, hidden, config.flow_bins)
