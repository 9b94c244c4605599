r"""Linear diffusions whose marginals are known in closed form.

.. math::
    dx = r(t) \, x \, dt + g(t) \, dw, \qquad
    x_t = \alpha(t) \, x_0 + \sigma(t) \, \varepsilon, \quad \varepsilon \sim \mathcal N(0, I)

A process is immutable and has four functions of time, related by

.. math:: \dot\alpha = r \alpha, \qquad \frac{d \sigma^2}{dt} = 2 r \sigma^2 + g^2

They take and return tensors of any shape in the dtype of the times. Time runs from the data (0)
to the noise (`t_end`).

References:
    | Score-Based Generative Modeling through SDEs (Song et al., 2021), section 3.4, appendix B
    | https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffflow_ext.functional.checks import checked_finite, in_words

#: Signal and noise in this ratio and its inverse, and their squares, are numbers of float32.
MAX_LOG_SNR = 40.0


class LinearProcess(ABC):
    """A linear diffusion; subclasses give alpha, sigma, drift_rate and diffusion."""

    #: The time of the noise.
    t_end: float = 1.0
    #: The earliest time at which networks are evaluated; sigma is small there, but not zero.
    t_min: float = 1e-3
    #: Default grids of the ODE have equal steps in t to this power.
    ode_power: float = 0.5
    #: The standard deviation of the Gaussian that x(t_end) is taken to have, in data units.
    prior_scale: float = 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Returns the mean factor :math:`\alpha(t)`, dimensionless."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns the standard deviation :math:`\sigma(t)` of x_t given x_0, in data units."""

    @abstractmethod
    def drift_rate(self, t: Tensor) -> Tensor:
        """Returns r(t), the drift divided by x, per unit of time."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """Returns g(t), in data units per square root of time."""

    def coefficients(self, t: float) -> tuple[float, float]:
        """Returns r(t) and g(t) as numbers, in the units of `drift_rate` and `diffusion`."""
        time = torch.tensor(t, dtype=torch.float64)
        return float(self.drift_rate(time)), float(self.diffusion(time))

    def flow_coefficients(self, t: float) -> tuple[float, float]:
        r"""Returns the coefficients of x and of the predicted noise in the probability-flow ODE.

        .. math:: \frac{dx}{dt} = r(t) \, x - \tfrac12 g^2 s
                                = r(t) \, x + \frac{g(t)^2}{2 \sigma(t)} \, \varepsilon(t, x)
        """
        rate, g = self.coefficients(t)
        return rate, 0.5 * g * g / float(self.sigma(torch.tensor(t, dtype=torch.float64)))

    def transition(self, t: float, t_next: float) -> tuple[float, float]:
        r"""Returns a and v of a forward step, :math:`x_{t'} = a x_t + \sqrt v \, z` for t' > t.

        .. math:: a = \frac{\alpha(t')}{\alpha(t)}, \qquad
                  v = \sigma(t')^2 - a^2 \sigma(t)^2
        """
        both = torch.tensor([t, t_next], dtype=torch.float64)
        alpha, alpha_next = self.alpha(both).tolist()
        sigma, sigma_next = self.sigma(both).tolist()
        a = alpha_next / alpha
        return a, sigma_next**2 - (a * sigma) ** 2


@dataclass(frozen=True)
class _LinearBeta(LinearProcess):
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        op = type(self).__name__
        low = checked_finite(op, "beta_min", self.beta_min)
        high = checked_finite(op, "beta_max", self.beta_max)
        if not 0 <= low <= high or high == 0:
            raise ValueError(
                f"{op}: expected 0 <= beta_min <= beta_max and beta_max > 0, "
                f"got beta_min={low}, beta_max={high}"
            )

    def beta(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min})`."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\log \alpha(t) = -\tfrac12 \int_0^t \beta`."""
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\alpha(t)`."""
        return self.log_alpha(t).exp()

    def drift_rate(self, t: Tensor) -> Tensor:
        r"""Returns :math:`r(t) = -\tfrac12 \beta(t)`."""
        return -0.5 * self.beta(t)


class VP(_LinearBeta):
    r"""The variance-preserving process: DDPM in continuous time.

    .. math::
        dx = -\tfrac12 \beta(t) x \, dt + \sqrt{\beta(t)} \, dw, \quad
        \alpha = e^{-\frac12 \int_0^t \beta}, \quad \sigma^2 = 1 - \alpha^2

    with :math:`\beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min})` on [0, 1].

    Arguments:
        beta_min: The rate at t = 0, >= 0, per unit of time.
        beta_max: The rate at t = 1, > 0 and >= `beta_min`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument is not a number.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), equations 32 and 33
        | https://arxiv.org/abs/2011.13456
    """

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\sigma(t) = \sqrt{1 - \alpha(t)^2}`."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        r"""Returns :math:`g(t) = \sqrt{\beta(t)}`."""
        return self.beta(t).sqrt()


class SubVP(_LinearBeta):
    r"""The sub-VP process: VP with a smaller variance at every time.

    .. math::
        dx = -\tfrac12 \beta(t) x \, dt
             + \sqrt{\beta(t) \bigl(1 - e^{-2 \int_0^t \beta}\bigr)} \, dw, \quad
        \alpha = e^{-\frac12 \int_0^t \beta}, \quad \sigma = 1 - \alpha^2

    Arguments:
        beta_min: The rate at t = 0, >= 0, per unit of time.
        beta_max: The rate at t = 1, > 0 and >= `beta_min`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument is not a number.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), equation 35, appendix B
        | https://arxiv.org/abs/2011.13456
    """

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\sigma(t) = 1 - \alpha(t)^2`."""
        return -torch.expm1(2 * self.log_alpha(t))

    def diffusion(self, t: Tensor) -> Tensor:
        r"""Returns :math:`g(t) = \sqrt{\beta(t) (1 - \alpha(t)^4)}`."""
        return (-self.beta(t) * torch.expm1(4 * self.log_alpha(t))).sqrt()


@dataclass(frozen=True)
class VE(LinearProcess):
    r"""The variance-exploding process: noise is added, data are not scaled.

    .. math::
        dx = \sigma(t) \sqrt{2 \log(\sigma_{max} / \sigma_{min})} \, dw, \quad
        \alpha = 1, \quad \sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t

    on [0, 1]. At t = 0 the noise is :math:`\sigma_{min}`, not 0. States are as large as
    :math:`\sigma(t)`: networks must scale them.

    Arguments:
        sigma_min: The standard deviation at t = 0, > 0, in data units.
        sigma_max: The standard deviation at t = 1: about the largest distance in the data.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument is not a number.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), equations 30 and 31
        | https://arxiv.org/abs/2011.13456
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: ClassVar[float] = 1e-5  # pyright: ignore[reportIncompatibleVariableOverride]
    ode_power: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        low = checked_finite("VE", "sigma_min", self.sigma_min)
        high = checked_finite("VE", "sigma_max", self.sigma_max)
        if not 0 < low < high:
            raise ValueError(
                f"VE: expected 0 < sigma_min < sigma_max, got sigma_min={low}, sigma_max={high}"
            )

    @property
    def prior_scale(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The standard deviation of the noise at `t_end`."""
        return float(self.sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\alpha(t) = 1`."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t`."""
        return self.sigma_min * torch.exp(self._log_ratio * t)

    def drift_rate(self, t: Tensor) -> Tensor:
        """Returns r(t) = 0."""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        r"""Returns :math:`g(t) = \sigma(t) \sqrt{2 \log(\sigma_{max} / \sigma_{min})}`."""
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)


@dataclass(frozen=True)
class LogSNR(LinearProcess):
    r"""The variance-preserving process whose logarithm of signal to noise is linear in time.

    .. math::
        \alpha^2 = \operatorname{sigmoid}(\lambda), \quad
        \sigma^2 = \operatorname{sigmoid}(-\lambda), \quad
        \lambda(t) = \lambda_0 - \rho t, \qquad
        r = -\tfrac12 \rho \sigma^2, \quad g^2 = \rho \sigma^2

    on [0, 1] with :math:`\rho = \lambda_0 - \lambda_1`. There is noise at t = 0 already, of
    standard deviation about :math:`e^{-\lambda_0 / 2}`.

    Arguments:
        start: :math:`\lambda_0` at the data; 12 is noise of 0.0025.
        end: :math:`\lambda_1` at the noise; -5 leaves 0.08 of the data.

    Raises:
        ValueError: If `start` is not above `end`, or one of them is beyond 40.
        TypeError: If an argument is not a number.

    References:
        | Variational Diffusion Models (Kingma et al., 2021)
        | https://arxiv.org/abs/2107.00630
    """

    start: float = 12.0
    end: float = -5.0
    ode_power: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        start = checked_finite("LogSNR", "start", self.start)
        end = checked_finite("LogSNR", "end", self.end)
        if not -MAX_LOG_SNR <= end < start <= MAX_LOG_SNR:
            raise ValueError(
                f"LogSNR: expected {-MAX_LOG_SNR:g} <= end < start <= {MAX_LOG_SNR:g}, "
                f"got start={start}, end={end}"
            )
        # Fractions and NumPy's numbers do not mix with tensors.
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "end", end)

    @property
    def rate(self) -> float:
        r"""The fall :math:`\rho` of the logarithm, per unit of time."""
        return self.start - self.end

    @property
    def first_alpha(self) -> float:
        r"""The part :math:`\alpha(0)` of the data in the first state."""
        return 1 / math.sqrt(1 + math.exp(-self.start))

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\lambda(t)`."""
        return self.start - self.rate * t

    def alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\alpha(t)`."""
        return self.log_snr(t).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\sigma(t)`."""
        return (-self.log_snr(t)).sigmoid().sqrt()

    def drift_rate(self, t: Tensor) -> Tensor:
        r"""Returns :math:`r(t) = -\tfrac12 \rho \sigma(t)^2`."""
        return -0.5 * self.rate * (-self.log_snr(t)).sigmoid()

    def diffusion(self, t: Tensor) -> Tensor:
        r"""Returns :math:`g(t) = \sqrt\rho \, \sigma(t)`."""
        return math.sqrt(self.rate) * self.sigma(t)


_PROCESSES: dict[str, type[VP] | type[SubVP] | type[VE]] = {"vp": VP, "subvp": SubVP, "ve": VE}


def process_by_name(name: str, **options: float) -> LinearProcess:
    """Returns the process called "vp", "subvp" or "ve".

    Arguments:
        name: The name.
        options: Arguments of the class: `beta_min` and `beta_max`, or `sigma_min` and `sigma_max`.

    Raises:
        ValueError: If there is no such process, or an option is out of its range.
        TypeError: If the process has no such option.
    """
    kind = _PROCESSES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f"process_by_name: expected one of {list(_PROCESSES)}, got {in_words(name)}"
        )
    return kind(**options)


def process_of(op: str, process: object) -> LinearProcess:
    """Returns a process, or the one of a name."""
    if isinstance(process, LinearProcess):
        return process
    if not isinstance(process, str):
        raise TypeError(
            f"{op}: expected process as a name or a LinearProcess, got {in_words(process)}"
        )
    return process_by_name(process)
