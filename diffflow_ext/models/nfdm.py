r"""NFDM: a diffusion whose forward process is learned, and needs no simulation.

.. math::
    \text{forward} \quad & x_t = m(t, x_0) + s(t, x_0) \, \varepsilon, \quad t \in [0, 1] \\
    \text{reverse} \quad & dx = B(t, x, \hat x_0(t, x)) \, dt + g(t) \, dw, \qquad
        B = f - \tfrac12 g^2 c \\
    & f(t, x, x_0) = \dot m + \tfrac{\dot s}{s} (x - m), \qquad
      c(t, x, x_0) = -\frac{x - m}{s^2}

A network v(t, x) predicts the data, :math:`\hat x_0 = \alpha x - \sigma v(t, x)`: the v-prediction
:math:`v = \alpha \varepsilon - \sigma x_0` of the linear process. Where :math:`\hat x_0` is
:math:`x_0` itself, the reverse process retraces the forward one.

Means and scales are sums of functions of x_0 times fixed functions of time, of which derivatives
by time are known (:mod:`.learned_forward`); Bartosh et al. allow any network of x_0 and t.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines.choice import Engine, check_engine, refuse
from diffflow_ext.engines.ode.solver import Divergence, Solver
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.flows.prior import StandardNormal
from diffflow_ext.functional.checks import (
    checked_count,
    checked_flag,
    checked_shape,
)
from diffflow_ext.functional.contexts import Context, checked_context, leaves_of
from diffflow_ext.functional.memory import require_memory
from diffflow_ext.functional.noise import Key, checked_sample_offset, sample_uniforms
from diffflow_ext.functional.steps import checked_stochasticity
from diffflow_ext.likelihood.ode import flow_log_prob
from diffflow_ext.likelihood.variational import continuous_ends
from diffflow_ext.processes.grids import TimeGrid

from .denoising import (
    batch_mean,
    checked_data,
    eager,
    fixed_key,
    time_grid,
    zeros_beside,
)
from .nfdm_parts import LearnedDiffusion
from .nfdm_terms import Evaluation, curvature, evaluate, linear_rate, spread_times, step_between

#: The longest step of the penalty for curvature, as a share of its time.
_LONGEST = 0.4
#: Sampling has equal steps in t to this power.
_SAMPLING_POWER = 2.0


class NFDM(LearnedDiffusion):
    r"""A diffusion model with a learned Gaussian forward process, trained on one bound.

    .. math::
        -\log p(x_0) \le \mathbb E \, \frac{\| B(x_0) - B(\hat x_0) \|^2}{2 g^2}
        + \mathrm{KL}(q(x_1 | x_0) \, \| \, \mathcal N(0, I)) - \mathbb E \log p(x_0 | x_{t=0}),
        \quad t \sim U(0, 1)

    Without `forward_net` it is a variational diffusion model: the forward process is linear,
    :math:`m = \alpha x_0`, :math:`s = \sigma`, and its best g is that of the process. Compare with
    it.

    Arguments:
        net: The network v(t, x), an nn.Module or any callable, called with t of shape () or (B,)
            in [0, 1] and x of shape (B, *event), and with a context as v(t, x, c).
        forward_net: A network of x_0 alone that shapes means and scales, see
            :mod:`diffflow_ext.models.learned_forward` for what it returns. It should start at zero
            (its last layer): near the data the bound divides by a small g. Default: none.
        process: The linear process at both ends.
        straightness: The weight >= 0 of a penalty in the loss, on how much the prediction changes
            in a step without noise (:func:`diffflow_ext.models.nfdm_terms.curvature`), in nats per
            squared data unit. No paper has it in this form. A step of training costs one more
            evaluation.

    With `forward_net`, :math:`\log g^2(t) = \log (\rho \sigma^2) + \sum_{k<4} a_k t^k` with
    learned numbers a. The state dict has the ends of `process`, and a state of others is refused.

    Raises:
        TypeError: If a network is not callable, `process` no
            :class:`diffflow_ext.processes.LogSNR`, or `straightness` no number.
        ValueError: If `straightness` is negative or not finite, or `process` starts above 24,
            where float32 can't tell noise from none, with a `forward_net`.

    References:
        | Neural Flow Diffusion Models (Bartosh et al., 2024), https://arxiv.org/abs/2404.12940
        | Progressive Distillation (Salimans and Ho, 2022), https://arxiv.org/abs/2202.00512
        | SDE Matching (Bartosh et al., 2025), https://arxiv.org/abs/2502.02472
        | Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630

    Example:
        >>> from torch import nn
        >>> from diffflow_ext.nets import FourierMLP
        >>> forward_net = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 2 * 3 * 2))
        >>> _ = [nn.init.zeros_(p) for p in forward_net[-1].parameters()]
        >>> model = NFDM(FourierMLP(2), forward_net)
        >>> model.mean_loss(torch.randn(64, 2)).backward()
        >>> model.sample((10, 2), 20).shape
        torch.Size([10, 2])
    """

    # --- training --------------------------------------------------------------------------------

    def forward(self, x0: Tensor, key: Key | None = None, **options: Any) -> Tensor:
        """Returns :meth:`mean_loss`, so that wrappers which call the module train it."""
        return self.mean_loss(x0, key, **options)

    def loss(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        context: Context | None = None,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        r"""Returns the bound of -log p(x0) for each sample, with one time and one draw of noise.

        With `straightness`, its penalty is added.

        Sample b has the time :math:`u + b \varphi` modulo 1, with u drawn from the key and
        :math:`\varphi` the golden ratio: times of a batch are spread evenly over [0, 1], and each
        depends only on the key and the sample's global index.

        Arguments:
            x0: The data, shape (B, *event), float32 or float64.
            key: Seed and stream of the noise. Default: drawn from torch's generator.
            context: What both networks are given too: a tensor (B, ...), or a mapping of such.
            sample_offset: The global index of the first sample.
            engine: "auto", "fused" (one call of compiled code, for perceptrons on the CPU without
                `forward_net`) or "autograd", which has second derivatives.

        Returns:
            The losses, shape (B,), in nats. Differentiable in the parameters.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
        """
        op = "NFDM.loss"
        x0 = checked_data(op, x0)
        model = self._given(checked_context(op, context, x0))
        key = fixed_key(op, key, x0.device)
        sample_offset = checked_sample_offset(op, sample_offset, len(x0))
        t = spread_times(x0, key, sample_offset)
        noise: dict[str, Any] = {"key": key, "step": 0, "sample_offset": sample_offset}
        if self.straightness or self.forward_process.net is not None:
            check_engine(op, engine)
            refuse(op, engine, "compiled code can't evaluate a forward_net or straightness")
        if self.straightness:
            start = model._evaluated(op, x0, t, noise)
            span = _LONGEST * sample_uniforms(x0, key, 2, sample_offset)[:, 1]
            predict = partial(model.prediction, op=op)
            bend = curvature(model.forward_process, predict, start, span)
            rate = start.rate + self.straightness * bend
        else:
            rate = model._rate_of_bound(op, x0, t, noise, engine)
        return (rate.double() + continuous_ends(self.process, x0)).to(x0.dtype)

    def mean_loss(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        weight: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Returns the mean of :meth:`loss`, or its sum with weights of shape (B,); shape ().

        Options are `context`, `sample_offset` and `engine`.
        """
        loss = self.loss(x0, key, **options)
        return batch_mean("NFDM.mean_loss", loss, weight)

    def _rate_of_bound(
        self, op: str, x0: Tensor, t: Tensor, noise: dict[str, Any], engine: Engine
    ) -> Tensor:
        """Returns |B(x0) - B(x0_hat)|^2 / (2 g^2) at times (B,), for each sample."""
        if self.forward_process.net is None:
            return linear_rate(op, self.process, self.net, x0, t, noise, engine)
        return self._evaluated(op, x0, t, noise).rate

    def _evaluated(self, op: str, x0: Tensor, t: Tensor, noise: dict[str, Any]) -> Evaluation:
        predict = partial(self.prediction, op=op)
        return evaluate(self.forward_process, predict, self.squared_g(t), x0, t, noise)

    # --- likelihood ------------------------------------------------------------------------------

    def elbo(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        context: Context | None = None,
        timesteps: int = 100,
        sample_offset: int = 0,
    ) -> Tensor:
        """Returns a lower bound of log p(x0), p the density of the reverse process.

        Unbiased, in nats, shape (B,), from `timesteps` times of each sample, one in each of as
        many equal strata. Differentiable: all graphs are kept, so evaluate under torch.no_grad().
        """
        op = "NFDM.elbo"
        x0 = checked_data(op, x0)
        model = self._given(checked_context(op, context, x0))
        count = checked_count(op, "timesteps", timesteps, 1, 2**24)
        key = fixed_key(op, key, x0.device)
        sample_offset = checked_sample_offset(op, sample_offset, len(x0))
        size = 8 * count * len(x0)
        require_memory(op, f"timesteps={count}", size, "take fewer", x0.device)
        u = sample_uniforms(x0, key, count, sample_offset)
        total = continuous_ends(self.process, x0)
        for step, column in enumerate(u.unbind(1)):
            t = (column + step) / count
            noise = {"key": key, "step": step, "sample_offset": sample_offset}
            rate = model._rate_of_bound(op, x0, t, noise, "auto")
            total = total + rate.double() / count
        return -total.to(x0.dtype)

    def probability_flow(self) -> ProbabilityFlow:
        r"""Returns the reverse process without noise, :math:`dx/dt = f(t, x, \hat x_0)`.

        For the linear process it is :math:`\tfrac12 \rho \alpha \sigma \, v(t, x)`.
        """
        if self.forward_process.net is not None:
            ode, params = (self._velocity,), tuple(self.parameters())
            return ProbabilityFlow(ode, lambda t: (0.0, 1.0), ("velocity",), params)

        def coefficients(t: float) -> tuple[float, float]:
            # alpha sigma = 1 / (2 cosh(lambda / 2))
            half = 0.5 * (self.process.start - self.process.rate * t)
            return 0.0, 0.25 * self.process.rate / math.cosh(half)

        return ProbabilityFlow((self.net,), coefficients, ("net",))

    def _velocity(self, t: Tensor, x: Tensor) -> Tensor:
        x0 = self.prediction(t, x, op="NFDM.probability_flow")
        known = self.forward_process.coefficients(x0)
        return self.forward_process.at(t, x0, known).drift(x)

    @eager
    def log_prob(
        self,
        x: Tensor,
        grid: TimeGrid | int = 100,
        key: Key | None = None,
        *,
        context: Context | None = None,
        solver: Solver = "heun",
        divergence: Divergence = "auto",
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        r"""Returns the log-density of the ODE of :meth:`probability_flow`.

        .. math:: \log p(x) = \log \mathcal N(x_1; 0, I) + \int_0^1 \nabla \cdot v \, dt
                  + d \log \alpha(0), \qquad x_{t=0} = \alpha(0) \, x

        With a forward process that is not linear in x_0 this is a model of its own: the velocity
        of the mean prediction is not the mean of velocities, so the ODE has other marginals than
        the reverse SDE even where the prediction is perfect. The noise at t = 0 counts as part of
        the data. Arguments, values and errors are those of
        :func:`diffflow_ext.likelihood.flow_log_prob`; `grid` may also be a number of equal steps.
        """
        op = "NFDM.log_prob"
        x = checked_data(op, x, "x")
        times = time_grid(op, grid, 0.0, 1.0, 1.0)
        alpha = self.process.first_alpha
        context = checked_context(op, context, x)
        inner = leaves_of(context)
        ode = self._given(inner).probability_flow()
        density = flow_log_prob(
            replace(ode, context=context, inner_context=inner), alpha * x, times, StandardNormal(),
            solver=solver, divergence=divergence, key=key, sample_offset=sample_offset, **options,
        )  # fmt: skip
        return density + math.prod(x.shape[1:]) * math.log(alpha)

    # --- samples ---------------------------------------------------------------------------------

    @eager
    @torch.no_grad()
    def sample(
        self,
        shape: tuple[int, ...],
        num_steps: TimeGrid | int = 100,
        key: Key | None = None,
        stochasticity: float = 1.0,
        *,
        context: Context | None = None,
        guidance: float = 1.0,
        clip: bool = False,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns samples of the model, from noise to data in any number of steps.

        From t to t' < t the prediction is taken for the data, given which the step is exact:

        .. math:: x_{t'} = m' + s' \left( k \, \frac{x_t - m}{s} + \sqrt{1 - k^2} \, z \right),
                  \qquad \log k = -\tfrac12 \lambda^2 \int_{t'}^t \frac{g^2}{s^2} \, dt

        with m, s at t and m', s' at t', both of :math:`\hat x_0(t, x_t)`; the integral by the
        trapezoidal rule in the logarithm of signal to noise.

        Arguments:
            shape: The shape (B, *event).
            num_steps: The number of steps and of network evaluations, at times whose squares are
                evenly spaced; or a grid from 0 to 1.
            key: Seed and stream of the noise.
            stochasticity: The factor :math:`\lambda \ge 0` of the noise. 1 is the trained process
                (ancestral sampling for the linear one), 0 has no noise (DDIM's step).
            context: What both networks are given, of B rows.
            guidance: The weight w of :class:`diffflow_ext.engines.conditions.Guided`, of `net`
                alone; with another than 1, samples do not have the density that :meth:`elbo` is
                of.
            clip: Whether to clip predictions of x_0 to [-1, 1]: for images.
            sample_offset: The global index of the first sample.

        Returns:
            The samples, which are the last prediction, shape (B, *event), dtype and device of the
            network's parameters, without gradients.

        Raises:
            ValueError, TypeError: If an argument is out of its range or of the wrong type.
        """
        op = "NFDM.sample"
        checked_flag(op, "clip", clip)
        strength = checked_stochasticity(op, stochasticity)
        shape = checked_shape(op, "shape", shape)
        grid = time_grid(op, num_steps, 0.0, 1.0, _SAMPLING_POWER)
        like = zeros_beside(op, shape, self.parameters())
        model = self._given(checked_context(op, context, like), guidance)
        key = fixed_key(op, key, like.device)
        sample_offset = checked_sample_offset(op, sample_offset, shape[0])
        x = StandardNormal().sample(
            shape, key, sample_offset=sample_offset, dtype=like.dtype, device=like.device
        )
        times = grid.times_on(like.device, like.dtype)
        for i in range(grid.num_steps, 0, -1):
            x0 = model.prediction(times[i], x, op=op)
            x0 = x0.clamp(-1, 1) if clip else x0
            if i > 1:
                noise = {"key": key, "step": i, "sample_offset": sample_offset}
                x = model._step(x, x0, times[i], times[i - 1], strength, noise)
        return x0  # pyright: ignore[reportPossiblyUnboundVariable]

    def _step(
        self, x: Tensor, x0: Tensor, t: Tensor, t_next: Tensor, strength: float, noise: Any
    ) -> Tensor:
        """Returns the state at t_next < t for given data."""
        known = self.forward_process.coefficients(x0)
        now, later = (self.forward_process.at(time, x0, known) for time in (t, t_next))
        # The variance that g adds per unit of time, over that which is there.
        fresh = self.squared_g(t) / now.scale**2 + self.squared_g(t_next) / later.scale**2
        log_kept = -0.25 * strength**2 * (t - t_next) * fresh
        return step_between(x, now, later, log_kept, noise if strength else None)
