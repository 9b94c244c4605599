"""Networks for the drift and the score, each called as ``net(t, x)``."""

from .mlp import FourierMLP
from .unet import UNet

__all__ = [
    "FourierMLP",
    "UNet",
]
