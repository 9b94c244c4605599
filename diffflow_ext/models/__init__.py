"""Generative models: DiffFlow, DiNof and DDPM, with their samplers."""

from .ddpm import DDPM
from .diffflow import DiffFlowSDE
from .dinof import DiNof

__all__ = [
    "DDPM",
    "DiNof",
    "DiffFlowSDE",
]
