r"""DDPM: a diffusion with a fixed forward process.

.. math::
    x_i = \alpha_i x_0 + \sigma_i \varepsilon, \quad
    \alpha_i^2 = \prod_{j \le i} (1 - \beta_j), \quad \sigma_i^2 = 1 - \alpha_i^2,
    \qquad i = 1 \dots T

A network predicts :math:`\varepsilon` from :math:`x_i` and the time :math:`t_i = i/T \in (0, 1]`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines.choice import Engine
from diffflow_ext.engines.ode.solver import Divergence, Solver
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.flows.prior import StandardNormal
from diffflow_ext.functional.checks import check_choice, checked_count, checked_flag, checked_shape
from diffflow_ext.functional.contexts import Context
from diffflow_ext.functional.noise import Key, checked_sample_offset, sample_uniforms
from diffflow_ext.functional.perturb import perturb
from diffflow_ext.functional.sums import event_sum
from diffflow_ext.likelihood.ode import flow_log_prob
from diffflow_ext.likelihood.variational import (
    Decoder,
    Variance,
    check_images,
    decoder_cost,
    kl_weights,
    prior_kl,
)
from diffflow_ext.processes.chain import DiscreteVP, Schedule, chain_by_name
from diffflow_ext.processes.grids import TimeGrid

from .chain_steps import LastStep, Sampler, sampled_times, sampler_steps, take_step
from .denoising import (
    EpsNetwork,
    check_network,
    checked_data,
    eager,
    fixed_key,
    given_context,
    mean_square_error,
    mean_square_error_of_batch,
    network_output,
    time_grid,
    zeros_beside,
)
from .state import StatefulModel


class DDPM(StatefulModel):
    r"""A denoising diffusion model in discrete time, with noise prediction.

    Arguments:
        eps_net: The network :math:`\varepsilon(t, x)`, an nn.Module or any callable, called with
            t of shape () or (B,) in (0, 1] and x of shape (B, *event), and with a context as
            :math:`\varepsilon(t, x, c)`, c with one row for each row of x.
        schedule: "linear", "cosine", or a :class:`diffflow_ext.processes.DiscreteVP`. "linear"
            spaces :math:`\beta_i` evenly from 0.1/T to 20/T (at most 0.999), the published
            schedule for T = 1000. For T >= 3 the last state is about as close to noise.
        num_timesteps: The length T of the chain. Default: 1000, or that of `schedule`.

    The state dict has the chain as "betas", and a state of another chain is refused.

    Raises:
        TypeError: If `eps_net` is not callable.
        ValueError: If `schedule` is unknown, or of another length than `num_timesteps`.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Example:
        >>> from diffflow_ext.nets import FourierMLP
        >>> model = DDPM(FourierMLP(2), "cosine")
        >>> model.mean_loss(torch.randn(64, 2)).backward()
        >>> model.sample((10, 2), 20, sampler="ddim").shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        eps_net: EpsNetwork,
        schedule: Schedule | DiscreteVP = "linear",
        num_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        check_network("DDPM", eps_net)
        self.eps_net: Any = eps_net
        self.process = chain_by_name("DDPM", schedule, num_timesteps)

    def constants(self) -> dict[str, Tensor]:
        """Returns the variances of the chain."""
        return {"betas": self.process.betas.clone()}

    @property
    def num_timesteps(self) -> int:
        """The length T of the chain."""
        return self.process.num_timesteps

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
        r"""Returns the simplified loss of each sample at one random time.

        .. math:: L = \tfrac1d \| \varepsilon - \varepsilon(t_i, x_i) \|^2, \quad
                  i \sim U\{1 \dots T\}

        Time and noise of a sample depend only on the key and its global index.

        Arguments:
            x0: The data, shape (B, *event), float32 or float64.
            key: Seed and stream of the noise. Default: drawn from torch's generator.
            context: What the network is given too: a tensor (B, ...), or a mapping of such.
            sample_offset: The global index of the first sample.
            engine: "auto", "fused" (one call of compiled code, for perceptrons on the CPU) or
                "autograd", which has second derivatives.

        Returns:
            The losses, shape (B,), dimensionless. Differentiable in the network's parameters and
            in the context.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.

        References:
            | Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 14
            | https://arxiv.org/abs/2006.11239
        """
        op = "DDPM.loss"
        t, x_t, eps = self._perturbed(op, x0, key, sample_offset)
        net = given_context(op, self.eps_net, context, x_t)
        return mean_square_error(op, net, t, x_t, eps, engine)

    def _perturbed(
        self, op: str, x0: Tensor, key: Key | None, sample_offset: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a random time of each sample, its state then, and the noise in it."""
        x0 = checked_data(op, x0)
        key = fixed_key(op, key, x0.device)
        u = sample_uniforms(x0, key, 1, sample_offset)[:, 0]
        t = ((u * self.num_timesteps).floor() + 1) / self.num_timesteps
        x_t, eps = perturb(
            x0,
            alpha_t=self.process.alpha(t),
            sigma_t=self.process.sigma(t),
            key=key,
            sample_offset=sample_offset,
        )
        return t, x_t, eps

    def mean_loss(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        context: Context | None = None,
        weight: Tensor | None = None,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        """Returns the mean (or weighted sum) of :meth:`loss` over the batch, shape ().

        It is 0 for an empty batch. Weights have shape (B,) and are 1/B by default; other arguments
        are those of :meth:`loss`.
        """
        op = "DDPM.mean_loss"
        t, x_t, eps = self._perturbed(op, x0, key, sample_offset)
        net = given_context(op, self.eps_net, context, x_t)
        return mean_square_error_of_batch(op, net, t, x_t, eps, weight, engine)

    # --- likelihood ------------------------------------------------------------------------------

    def elbo(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        context: Context | None = None,
        decoder: Decoder = "gaussian",
        variance: Variance = "large",
        timesteps: int | None = None,
        clip: bool = False,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns a lower bound of log p(x0), p the density of ancestral samples.

        .. math:: \log p(x_0) \ge -L_T - \sum_{i=2}^T L_{i-1} - L_0

        with one draw of the noise for each term. Either all T terms are evaluated, or `timesteps`
        of them for an unbiased estimate: L_0, and one term drawn for each sample from each of
        `timesteps` - 1 equal strata of the others.

        Arguments:
            x0: The data, shape (B, *event).
            key: Seed and stream of the noise.
            context: As in :meth:`loss`.
            decoder: "gaussian" for continuous or dequantised data: the bound of a log-density.
                "discretised" for 8-bit images scaled to :math:`2 k / 255 - 1`: the bound of a
                log-probability, so that bits/dim = -elbo / (d ln 2).
            variance: Of the reverse steps: "large", :math:`\beta_i`, which is nearly the best
                choice for smooth densities, or "small", :math:`\tilde\beta_i`, for point masses.
            timesteps: How many of the T terms to evaluate, at least 2. Default: all.
            clip: Whether the model clips its predictions of x_0 to [-1, 1].
            sample_offset: The global index of the first sample.

        Returns:
            Estimates of the bound, shape (B,), in nats. Differentiable; all graphs are kept, so
            evaluate under torch.no_grad().

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.

        References:
            | Denoising Diffusion Probabilistic Models (Ho et al., 2020), equations 5 and 13
            | https://arxiv.org/abs/2006.11239
        """
        op = "DDPM.elbo"
        x0 = checked_data(op, x0)
        checked_flag(op, "clip", clip)
        check_choice(op, "decoder", decoder, Decoder)
        check_choice(op, "variance", variance, Variance)
        if decoder == "discretised":
            check_images(op, x0)
        key = fixed_key(op, key, x0.device)
        sample_offset = checked_sample_offset(op, sample_offset, len(x0))
        scale, constant = (w.to(x0.device) for w in kl_weights(self.process, variance))
        cost, dimensions = prior_kl(self.process, x0), math.prod(x0.shape[1:])
        net = given_context(op, self.eps_net, context, x0)
        for step, (i, factor) in enumerate(self._terms(op, x0, timesteps, key, sample_offset)):
            noise = {"key": key, "step": step, "sample_offset": sample_offset}
            error = self._error(net, x0, i, clip, noise)
            if step == 0:
                cost = cost + decoder_cost(self.process, decoder, x0, error)
            else:
                square = event_sum(error.square(), torch.float64)
                cost = cost + factor * (scale[i] * square + dimensions * constant[i])
        return -cost.to(x0.dtype)

    def _terms(
        self, op: str, x0: Tensor, timesteps: int | None, key: Key, offset: int
    ) -> list[tuple[int | Tensor, float]]:
        """Returns the indices i to evaluate, shape () or (B,), and their weights."""
        T = self.num_timesteps
        if timesteps is None:
            return [(i, 1.0) for i in range(1, T + 1)]
        strata = checked_count(op, "timesteps", timesteps, min(2, T), T + 1) - 1
        width = (T - 1) / max(strata, 1)
        u = sample_uniforms(x0, key, strata, offset)
        position = (u + torch.arange(strata, device=x0.device)) * width
        i = 2 + position.long().clamp(max=T - 2)
        return [(1, 1.0), *((column, width) for column in i.unbind(1))]

    def _error(
        self, net: EpsNetwork, x0: Tensor, i: int | Tensor, clip: bool, noise: dict[str, Any]
    ) -> Tensor:
        """Returns the noise at time i minus its prediction, or minus that of a clipped x_0."""
        t = torch.as_tensor(i, dtype=torch.float64, device=x0.device) / self.num_timesteps
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        x_t, eps = perturb(x0, alpha_t=alpha, sigma_t=sigma, **noise)
        error = eps - network_output("DDPM.elbo", net, t, x_t).to(x0.dtype)
        if not clip:
            return error
        ratio = (sigma / alpha).to(x0.dtype).reshape(-1, *(1,) * (x0.dim() - 1))
        return ((x0 + ratio * error).clamp(-1, 1) - x0) / ratio

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
        r"""Returns the log-density of the probability-flow ODE of the chain's process.

        .. math:: \frac{dx}{dt} = -\tfrac12 \beta(t)
                  \Bigl( x - \frac{\varepsilon(t, x)}{\sigma(t)} \Bigr)

        It starts at the first time that the network is trained on, :math:`t_1 = 1/T`. The noise
        there, of standard deviation :math:`\sigma_1` (0.01), counts as part of the data.
        Arguments, values and errors are those of :func:`diffflow_ext.likelihood.flow_log_prob`;
        `grid` may also be a number of steps from 1/T to 1, which are small near the data.
        """
        op = "DDPM.log_prob"
        x = checked_data(op, x, "x")
        first, power = 1 / self.num_timesteps, self.process.ode_power
        times = time_grid(op, grid, first, self.process.t_end, power)
        ode = ProbabilityFlow((self.eps_net,), self.process.flow_coefficients, ("eps_net",))
        return flow_log_prob(
            ode.given(op, context, x), x, times, StandardNormal(),
            solver=solver, divergence=divergence, key=key, sample_offset=sample_offset, **options,
        )  # fmt: skip

    # --- samples ---------------------------------------------------------------------------------

    @eager
    @torch.no_grad()
    def sample(
        self,
        shape: tuple[int, ...],
        num_steps: int | None = None,
        key: Key | None = None,
        *,
        context: Context | None = None,
        guidance: float = 1.0,
        sampler: Sampler = "ancestral",
        eta: float = 0.0,
        variance: Variance = "small",
        clip: bool = False,
        last_step: LastStep = "mean",
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns samples of the model, from noise to data in any number of steps.

        From time i to any earlier k, with the predicted data
        :math:`\hat x_0 = (x_i - \sigma_i \varepsilon) / \alpha_i` and
        :math:`s^2 = \eta^2 (1 - \alpha_i^2 / \alpha_k^2) \sigma_k^2 / \sigma_i^2`:

        .. math:: x_k = \alpha_k \hat x_0
                        + \sqrt{\sigma_k^2 - s^2} \, \frac{x_i - \alpha_i \hat x_0}{\sigma_i} + s z

        Ancestral sampling is the case :math:`\eta = 1`, whose noise `variance` may enlarge.

        Arguments:
            shape: The shape (B, *event).
            num_steps: The number of steps and of network evaluations, at times spread evenly over
                1 ... T, both included (one step starts at T). Default: all T.
            key: Seed and stream of the noise.
            context: As in :meth:`loss`, of B rows.
            guidance: The weight w of :class:`diffflow_ext.engines.conditions.Guided`; with another
                than 1, samples do not have the density that :meth:`elbo` and :meth:`log_prob` are
                of, and a step costs two evaluations.
            sampler: "ancestral" or "ddim".
            eta: The noise of "ddim", between 0 (none) and 1 (as much as "ancestral").
            variance: The noise of "ancestral": "small", that of the posterior given x_0, or
                "large", that of the forward step.
            clip: Whether to clip predictions of x_0 to [-1, 1]: for images.
            last_step: "mean" returns the prediction of x_0; "noisy" adds the noise of the
                Gaussian decoder of :meth:`elbo` ("ancestral" only).
            sample_offset: The global index of the first sample.

        Returns:
            The samples, shape (B, *event), dtype and device of the network's parameters, without
            gradients.

        Raises:
            ValueError: If an argument is out of its range.
            TypeError: If an argument has the wrong type.

        References:
            | Denoising Diffusion Probabilistic Models (Ho et al., 2020), Algorithm 2
            | https://arxiv.org/abs/2006.11239
            | Denoising Diffusion Implicit Models (Song et al., 2021), equations 12 and 16
            | https://arxiv.org/abs/2010.02502
        """
        op = "DDPM.sample"
        checked_flag(op, "clip", clip)
        shape = checked_shape(op, "shape", shape)
        indices = sampled_times(op, self.num_timesteps, num_steps)
        steps = sampler_steps(
            op, self.process, indices,
            sampler=sampler, eta=eta, variance=variance, last_step=last_step,
        )  # fmt: skip
        like = zeros_beside(op, shape, self.parameters())
        net = given_context(op, self.eps_net, context, like, guidance)
        key = fixed_key(op, key, like.device)
        x = StandardNormal().sample(
            shape, key, sample_offset=sample_offset, dtype=like.dtype, device=like.device
        )
        for step in steps:
            eps = network_output(op, net, step.i / self.num_timesteps, x)
            x = take_step(x, eps, step, key, clip, sample_offset)
        return x
