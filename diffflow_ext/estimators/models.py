"""One density estimator for each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .density import DensityEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class DiffFlowDensity(DensityEstimator):
    """DiffFlow: two neural SDEs, from data to noise and back, trained together.

    Arguments:
        num_steps: Steps N of the paths.
        t_end: Time T of the noise.
        diffusion_start: Diffusion g at the data, and at the noise where `options` has no
            `diffusion_end`.

    The other arguments, attributes and methods are those of
    :class:`diffflow_ext.estimators.density.DensityEstimator`.
    """

    _model: ClassVar[str] = "diffflow"

    num_steps: int = 30
    t_end: float = 0.05
    diffusion_start: float | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class DiNofDensity(DensityEstimator):
    """DiNof: a linear diffusion up to a time, and a normalizing flow from there on.

    Its flow of splines needs zuko.

    Arguments:
        process: The diffusion: "vp", "subvp" or "ve".
        t_cutoff: The time, in (0, 1], at which the flow begins.
        flow: "spline", the default, or "none" for a Gaussian.

    The other arguments, attributes and methods are those of
    :class:`diffflow_ext.estimators.density.DensityEstimator`.
    """

    _model: ClassVar[str] = "dinof"

    process: str = "vp"
    t_cutoff: float = 0.6
    flow: str | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class NFDMDensity(DensityEstimator):
    """NFDM: a diffusion with a learned forward process, trained without simulation.

    Arguments:
        forward: The forward process: "learned", or "linear", a variational diffusion model.
        num_steps: Steps of a sample.

    The other arguments, attributes and methods are those of
    :class:`diffflow_ext.estimators.density.DensityEstimator`.
    """

    _model: ClassVar[str] = "nfdm"

    forward: str = "learned"
    num_steps: int = 100


@dataclass(kw_only=True, eq=False, repr=False)
class DDPMDensity(DensityEstimator):
    """DDPM: a network that predicts the noise of a fixed diffusion.

    Arguments:
        timesteps: Steps of the diffusion.
        noise_schedule: "linear" or "cosine".

    The other arguments, attributes and methods are those of
    :class:`diffflow_ext.estimators.density.DensityEstimator`.
    """

    _model: ClassVar[str] = "ddpm"

    timesteps: int = 1000
    noise_schedule: str = "linear"
