"""Networks for drifts, scores and predictions, each called as ``net(t, x)``."""

from .masked import MaskedNet
from .mlp import FourierMLP
from .noise import NoiseScore
from .unet import UNet

__all__ = [
    "FourierMLP",
    "MaskedNet",
    "NoiseScore",
    "UNet",
]
