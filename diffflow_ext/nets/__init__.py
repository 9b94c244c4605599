"""Networks for drifts, scores and predictions, each called as ``net(t, x)``."""

from .mlp import FourierMLP
from .noise import OfNoise
from .unet import UNet

__all__ = [
    "FourierMLP",
    "OfNoise",
    "UNet",
]
