"""Bounds of log p from paths."""

from __future__ import annotations

from torch import Tensor

from diffflow_ext.engines.problem import PathProblem
from diffflow_ext.functional.noise import noise_energy


def path_noise_energy(p: PathProblem, x0: Tensor) -> Tensor:
    """Returns the sum of 1/2 |delta_f|^2 over all steps of each sample's path."""
    energy = x0.new_zeros(x0.shape[0])
    for i in range(p.num_steps):
        energy = noise_energy(x0, p.key, i, p.sample_offset, energy)
    return energy
