r"""Both SDEs of DiffFlow as functions of the noise in a state, so that they start as a diffusion.

A linear process with rate :math:`r`, diffusion :math:`G` and noise :math:`\sigma` has, run with
another diffusion :math:`g`, the same marginals if its drift is

.. math::
    f(t, x) = r(t) \, x + \frac{G(t)^2 - g(t)^2}{2 \sigma(t)} \, \varepsilon(t, x), \qquad
    s(t, x) = -\frac{\varepsilon(t, x)}{\sigma(t)}

with :math:`\varepsilon(t, x) = E[\varepsilon \mid x_t = x]`, the noise that a network predicts,
and the score :math:`s`. For G = g this is the linear process, for g = 0 its probability-flow ODE.

References:
    | Score-Based Generative Modeling through SDEs (Song et al., 2021), appendix D.1
    | https://arxiv.org/abs/2011.13456
    | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 3 and 4
    | https://arxiv.org/abs/2110.07579
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffflow_ext.functional.checks import checked_finite

from .linear import VP


@dataclass(frozen=True)
class NoisePath:
    r"""Factors of the state and of its noise in DiffFlow's drift and score.

    The linear process is :class:`VP` in the time :math:`u = (t - t_0) / (T - t_0)`, with
    :math:`\beta_{min} = g(t_0)^2 (T - t_0)`, so that both factors of the drift are finite at the
    data, and :math:`\beta_{max}`. The diffusion is geometric from `g` to `g_end`.

    Arguments:
        g: The diffusion g > 0 at the data, in data units per square root of time.
        g_end: That at the noise; None is `g`.
        t_start: The time :math:`t_0` of the data.
        t_end: The time T > t_0 of the noise.
        beta_max: :math:`\beta_{max}`, at least :math:`\beta_{min}`. The state at T
            keeps :math:`e^{-(\beta_{min} + \beta_{max}) / 4}` of the data, 0.42 for 0.45 and 3; a
            larger one leaves less, and makes the last steps harder.
        floor: Times before this share of the path count as it: noise is in no state at the data.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument is not a number.

    Example:
        >>> from diffflow_ext.nets import FourierMLP, FromNoise
        >>> path = NoisePath(0.2, t_end=0.05)
        >>> drift, score = (FromNoise(FourierMLP(2), part) for part in (path.drift, path.score))
    """

    g: float
    g_end: float | None = None
    t_start: float = 0.0
    t_end: float = 0.05
    beta_max: float = 3.0
    floor: float = 1e-4

    def __post_init__(self) -> None:
        op = "NoisePath"
        if self.g_end is None:
            object.__setattr__(self, "g_end", self.g)
        for name in ("g", "g_end", "t_start", "t_end", "beta_max", "floor"):
            # Fractions and NumPy's numbers do not mix with tensors.
            object.__setattr__(self, name, checked_finite(op, name, getattr(self, name)))
        for name in ("g", "g_end"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{op}: expected {name} > 0, got {getattr(self, name)}")
        if not self.t_start < self.t_end:
            raise ValueError(
                f"{op}: expected t_start < t_end, got {self.t_start} and {self.t_end}"
            )
        if not 0 < self.floor < 1:
            raise ValueError(f"{op}: expected 0 < floor < 1, got {self.floor}")
        variance = self.g * self.g * self.duration
        if self.beta_max < variance:
            raise ValueError(
                f"{op}: expected beta_max >= g^2 (t_end - t_start), got {self.beta_max} < "
                f"{variance:.3g}; take a smaller g or a larger beta_max"
            )

    @property
    def duration(self) -> float:
        """T - t_0."""
        return self.t_end - self.t_start

    @property
    def process(self) -> VP:
        """The linear process, in the time u from 0 to 1."""
        return VP(self.g * self.g * self.duration, self.beta_max)

    def unit_time(self, t: Tensor) -> Tensor:
        """Returns u, at least `floor`."""
        return ((t - self.t_start) / self.duration).clamp(min=self.floor)

    def score(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns 0 and -1/sigma, the factors of x and of the noise in the score."""
        return torch.zeros_like(t), -1.0 / self.process.sigma(self.unit_time(t))

    def drift(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns r and (G^2 - g^2) / (2 sigma), the factors in the drift, per unit of time."""
        u, process = self.unit_time(t), self.process
        assert self.g_end is not None
        # The exact difference at the data, where both are divided by a small sigma.
        gap = u * (process.beta_max - process.beta_min) / self.duration
        gap = gap - self.g**2 * torch.expm1(2 * math.log(self.g_end / self.g) * u)
        return process.drift_rate(u) / self.duration, gap / (2 * process.sigma(u))
