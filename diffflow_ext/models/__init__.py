"""Generative models: DiffFlow, DiNof, NFDM and DDPM, with their samplers."""

from .ddpm import DDPM
from .diffflow import DiffFlowSDE
from .dinof import DiNof
from .nfdm import NFDM
from .ode_sampler import OdeSampler

__all__ = [
    "DDPM",
    "NFDM",
    "DiNof",
    "DiffFlowSDE",
    "OdeSampler",
]
