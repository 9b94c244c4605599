"""The discrete chain of DDPM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from diffflow_ext.functional.checks import check_choice, checked_count, checked_finite
from diffflow_ext.functional.tensors import checked_tensor

from .linear import LinearProcess

#: Times up to this much above i/T count as i/T, because float32 times are rounded by 6e-8.
_ROUNDING = 1e-7
#: Schedules of the variances by name.
Schedule = Literal["linear", "cosine"]


@dataclass(frozen=True, eq=False)
class DiscreteVP(LinearProcess):
    r"""The VP process with the rates of a discrete chain, the diffusion of DDPM.

    .. math::
        x_i = \sqrt{1 - \beta_i} \, x_{i-1} + \sqrt{\beta_i} \, z_i, \quad i = 1 \dots T, \qquad
        \beta(t) = -T \log(1 - \beta_i) \text{ for } t \in \bigl(\tfrac{i-1}T, \tfrac iT\bigr]

    The rate of the continuous process is constant in each step, so that the chain is its exact
    restriction to :math:`t_i = i/T`: :math:`\alpha(t_i)^2 = \prod_{j \le i} (1 - \beta_j)`.

    Arguments:
        betas: The variances :math:`\beta_1 \dots \beta_T` in (0, 1), kept in float64.

    Raises:
        ValueError: If `betas` is not a vector of at least one number in (0, 1).
        TypeError: If `betas` is not a tensor.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), equations 2 and 4
        | https://arxiv.org/abs/2006.11239
    """

    betas: Tensor
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        betas = checked_tensor("DiscreteVP", "betas", self.betas).detach()
        betas = betas.to("cpu", torch.float64, copy=True)
        if betas.dim() != 1 or not betas.numel():
            raise ValueError(f"DiscreteVP: expected betas of shape (T,), got {tuple(betas.shape)}")
        bad = (~((betas > 0) & (betas < 1))).nonzero()
        if bad.numel():
            i = int(bad[0])
            raise ValueError(
                f"DiscreteVP: expected betas in (0, 1), got betas[{i}]={float(betas[i])}"
            )
        rates = -len(betas) * torch.log1p(-betas)
        log_alphas = torch.zeros(len(betas) + 1, dtype=torch.float64)
        log_alphas[1:] = 0.5 * torch.log1p(-betas).cumsum(0)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "_tables", {betas.device: (rates, log_alphas)})

    def __repr__(self) -> str:
        return f"DiscreteVP(T={self.num_timesteps})"

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteVP:
        r"""Returns the chain with evenly spaced :math:`\beta_i` (Ho et al., 2020, section 4).

        Arguments:
            T: The number of steps, >= 1.
            beta_start: The first variance, in (0, 1).
            beta_end: The last variance, in (0, 1).

        Raises:
            ValueError: If an argument is out of its range.
        """
        T = checked_count("DiscreteVP.linear", "T", T, 1, 2**24)
        start = checked_finite("DiscreteVP.linear", "beta_start", beta_start)
        end = checked_finite("DiscreteVP.linear", "beta_end", beta_end)
        return cls(torch.linspace(start, end, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> DiscreteVP:
        r"""Returns the cosine schedule, which destroys the data more evenly.

        .. math:: \beta_i = \min\Bigl(1 - \frac{c(i/T)}{c((i-1)/T)}, \beta_{max}\Bigr), \qquad
                  c(u) = \cos^2\Bigl(\frac{u + s}{1 + s} \frac\pi2\Bigr)

        Arguments:
            T: The number of steps, >= 1.
            s: The offset, >= 0, that keeps the first variances from vanishing.
            max_beta: The largest variance, in (0, 1).

        Raises:
            ValueError: If an argument is out of its range.

        References:
            | Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eq. 17
            | https://arxiv.org/abs/2102.09672
        """
        T = checked_count("DiscreteVP.cosine", "T", T, 1, 2**24)
        s = checked_finite("DiscreteVP.cosine", "s", s)
        limit = checked_finite("DiscreteVP.cosine", "max_beta", max_beta)
        if s < 0:
            raise ValueError(f"DiscreteVP.cosine: expected s >= 0, got s={s}")
        u = torch.arange(T + 1, dtype=torch.float64) / T
        c = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - c[1:] / c[:-1]).clamp(max=limit))

    @property
    def num_timesteps(self) -> int:
        """The length T of the chain."""
        return self.betas.numel()

    @property
    def log_alphas(self) -> Tensor:
        r"""The values :math:`\log \alpha(i/T)`, i = 0 ... T, shape (T+1,), float64 on the CPU."""
        return self._tables[self.betas.device][1]

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the rates and log alpha(i/T) on a device."""
        if device not in self._tables:
            rates, log_alphas = self._tables[self.betas.device]
            self._tables[device] = rates.to(device), log_alphas.to(device)
        return self._tables[device]

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the index i - 1 of the step that t lies in, and t in units of steps, float64."""
        T = self.num_timesteps
        position = t.double() * T
        step = torch.ceil(position - _ROUNDING * T).long() - 1
        return step.clamp(0, T - 1), position

    def log_alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\log \alpha(t)`, float64: linear in each step."""
        (step, position), (rates, log_alphas) = self._interval(t), self._tables_on(t.device)
        return log_alphas[step] - 0.5 * rates[step] * (position - step) / self.num_timesteps

    def alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\alpha(t)`, at i/T :math:`\prod_{j \le i} \sqrt{1 - \beta_j}`."""
        return self.log_alpha(t).exp().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\sigma(t) = \sqrt{1 - \alpha(t)^2}`."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt().to(t.dtype)

    def drift_rate(self, t: Tensor) -> Tensor:
        r"""Returns :math:`r(t) = -\tfrac12 \beta(t)`, left-continuous at i/T."""
        return -0.5 * self._tables_on(t.device)[0][self._interval(t)[0]].to(t.dtype)

    def diffusion(self, t: Tensor) -> Tensor:
        r"""Returns :math:`g(t) = \sqrt{\beta(t)}`, left-continuous at i/T."""
        return self._tables_on(t.device)[0][self._interval(t)[0]].sqrt().to(t.dtype)


def chain_by_name(
    op: str, schedule: Schedule | DiscreteVP, num_timesteps: int | None
) -> DiscreteVP:
    """Returns a chain of a length, 1000 by default; a given chain must have that length."""
    if isinstance(schedule, DiscreteVP):
        T = schedule.num_timesteps
        if num_timesteps not in (None, T):
            raise ValueError(
                f"{op}: expected num_timesteps to be that of the schedule ({T}), "
                f"got {num_timesteps}; leave it out"
            )
        return schedule
    check_choice(op, "schedule", schedule, Schedule)
    T = 1000 if num_timesteps is None else num_timesteps
    T = checked_count(op, "num_timesteps", T, 1, 2**24)
    if schedule == "cosine":
        return DiscreteVP.cosine(T)
    return DiscreteVP(torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64).clamp(max=0.999))
