"""Networks for the drift and the score, each called as ``net(t, x)``."""

from diffflow_ext.nets.mlp import FourierMLP
from diffflow_ext.nets.unet import UNet

__all__ = ["FourierMLP", "UNet"]
