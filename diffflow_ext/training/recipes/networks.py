"""Networks and flows of a configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.data.conditions import Conditions
from diffflow_ext.flows import glow, spline_flow
from diffflow_ext.nets import FourierMLP, MaskedNet, UNet

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

    def forward(self, t: Tensor, x: Tensor, *context: Any) -> Tensor:
        """Evaluates the network; shape (B, *event) in and out."""
        return self.net(t, x.flatten(1), *context).reshape(x.shape)

    def null_context(self, count: int) -> Any:
        """Returns the network's context that stands for none, of `count` rows."""
        return self.net.null_context(count)  # pyright: ignore[reportCallIssue]


def build_net(
    network: Network,
    event_shape: tuple[int, ...],
    channel_multiplier: float = 1.0,
    output_scale: float = 1.0,
    *,
    conditions: Conditions | None = None,
) -> nn.Module:
    """Returns an untrained network for ``net(t, x)``, drawn from torch's generator.

    With conditions it is ``net(t, x, context)``.
    """
    if network.net == "unet":
        net = _unet(network, event_shape, channel_multiplier, output_scale, conditions=conditions)
    else:
        net = build_perceptron(network, event_shape, output_scale, conditions)
    return _of_hidden_parts(network, net, conditions)


def _of_hidden_parts(network: Network, net: nn.Module, conditions: Conditions | None) -> nn.Module:
    """Returns a network; with masks that of what they hide."""
    if conditions is None or conditions.masks is None:
        return net
    return MaskedNet(net, as_channels=network.net == "unet")


def _context_sizes(conditions: Conditions | None) -> dict[str, Any]:
    if conditions is None:
        return {}
    return {"num_classes": conditions.num_classes, "context_dim": conditions.context_dim}


def build_perceptron(
    network: Network | FFJORDNetwork,
    event_shape: tuple[int, ...],
    output_scale: float = 1.0,
    conditions: Conditions | None = None,
) -> nn.Module:
    """Returns an untrained perceptron, for images with flattening."""
    net = FourierMLP(
        math.prod(event_shape),
        width=network.width,
        depth=network.depth,
        activation=network.activation,
        time_scale=network.time_scale,
        output_scale=output_scale,
        **_context_sizes(conditions),
    )
    return net if len(event_shape) == 1 else FlatNet(net)


def build_forward_net(
    network: NFDMNetwork,
    event_shape: tuple[int, ...],
    time_functions: int,
    conditions: Conditions | None = None,
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
        net = TimelessNet(_unet(narrow, event_shape, 1.0, 1.0, outputs, conditions))
        return _of_hidden_parts(network, net, conditions)
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
    inputs = channels + (0 if conditions is None else conditions.context_dim)
    layers: list[nn.Module] = [nn.Linear(inputs, width), activation()]
    for _ in range(network.depth):
        layers += [nn.Linear(width, width), activation()]
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
    kind = nn.Sequential if conditions is None else SequentialOfBoth
    return _of_hidden_parts(network, kind(*layers, last), conditions)


class SequentialOfBoth(nn.Sequential):
    """Layers over rows of x and of the context beside one another."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, context: Tensor
    ) -> Tensor:
        """Evaluates the layers; shapes (B, d) and (B, context_dim)."""
        return super().forward(torch.cat([x, context], dim=1))


class TimelessNet(nn.Module):
    """Makes a network of x alone from one of time and x."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Evaluates the network at time 0."""
        return self.net(torch.zeros((), dtype=x.dtype, device=x.device), x, *context)


def _unet(
    network: Network,
    event_shape: tuple[int, ...],
    channel_multiplier: float,
    output_scale: float,
    out_channels: int | None = None,
    conditions: Conditions | None = None,
) -> nn.Module:
    channels, height, width = event_shape
    inputs, sizes, masks = channels, {}, conditions and conditions.masks
    if masks is None:
        sizes = _context_sizes(conditions)
    else:
        inputs, out_channels = channels + masks.context_shape[0], out_channels or channels
    if height != width:
        raise ValueError(
            f"train: net='unet': expected square images, got {height} x {width}; give --image-size"
        )
    return UNet(
        inputs,
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
        **sizes,
    )


def build_flow(
    network: FlowNetwork, event_shape: tuple[int, ...], conditions: Conditions | None = None
) -> Any:
    """Returns an untrained normalizing flow, drawn from torch's generator.

    Only one of splines takes conditions, of a table.
    """
    if network.flow == "glow":
        return glow(event_shape, network.glow_levels, network.glow_blocks, network.glow_hidden)
    (dim,) = event_shape
    hidden = whole_list(network.flow_hidden)
    context_dim = 0 if conditions is None else conditions.context_dim
    return spline_flow(
        dim, network.flow_transforms, hidden, network.flow_bins, context_dim=context_dim
    )
