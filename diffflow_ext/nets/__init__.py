"""Networks for the drift and the score, each called as ``net(t, x)``."""

from diffflow_ext.nets.mlp import FourierMLP

__all__ = ["FourierMLP"]
