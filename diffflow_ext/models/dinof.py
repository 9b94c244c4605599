r"""DiNof: a linear diffusion that stops early, and a normalizing flow as its prior.

.. math::
    x_t = \alpha(t) \, x_0 + \sigma(t) \, \varepsilon, \quad t \in (0, T_m], \qquad
    x_{T_m} \sim p_{flow}

A network predicts :math:`\varepsilon` up to the cutoff :math:`T_m`; the flow models the states
there. With :math:`T_m = T` and a Gaussian as the flow this is a plain diffusion model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffflow_ext.engines.choice import Engine
from diffflow_ext.engines.ode.solver import Divergence, Solver, integrate
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.flows.prior import Prior, StandardNormal, as_prior, prior_given
from diffflow_ext.functional.affine import affine_step
from diffflow_ext.functional.checks import (
    check_choice,
    checked_finite,
    checked_shape,
    checked_state,
)
from diffflow_ext.functional.contexts import Context, checked_context
from diffflow_ext.functional.noise import Key, sample_uniforms
from diffflow_ext.functional.perturb import perturb
from diffflow_ext.likelihood.ode import flow_log_prob
from diffflow_ext.processes.grids import TimeGrid
from diffflow_ext.processes.linear import VE, LinearProcess, process_of

from .denoising import (
    EpsNetwork,
    batch_mean,
    check_network,
    checked_data,
    checked_times,
    eager,
    fixed_key,
    given_context,
    mean_square_error,
    network_output,
    time_grid,
    zeros_beside,
)
from .predictors import Sampler, resolve_sampler, sampler_steps, take_steps
from .reverse import LastStep
from .state import StatefulModel, constant, prior_constants

ProcessName = Literal["vp", "subvp", "ve"]
LossWeight = Literal["variance", "likelihood"]
#: The flow's noise is this draw of purpose "dsm", the score's is draw 0.
_FLOW_DRAW = 1
#: Steps of a sampler over the whole time of a process.
_DEFAULT_STEPS = 1000
#: Langevin steps grow with the square of the ratio, which must be finite.
MAX_SNR = 1e100


class DiNof(StatefulModel):
    r"""A diffusion up to a cutoff, with a normalizing flow as its prior there.

    The two parts have separate losses, and no gradient couples them: the flow models data of the
    diffusion, which has no parameters. Train them together or one after the other, and clip their
    gradients separately (:meth:`score_parameters`, :meth:`flow_parameters`): the flow's are larger
    by orders of magnitude.

    Arguments:
        eps_net: The network :math:`\varepsilon(t, x)`, an nn.Module or any callable, called with
            t of shape () or (B,) in (0, t_cutoff] and x of shape (B, *event), and with a context
            as :math:`\varepsilon(t, x, c)`. The score is :math:`-\varepsilon(t, x) / \sigma(t)`.
        flow: The flow: of zuko or normflows, or anything that :func:`diffflow_ext.flows.as_prior`
            takes; a conditional one has the context too. Default: :math:`\mathcal N(0, s^2 I)`
            with the process's `prior_scale`, or the noise at the cutoff, :math:`s = \sigma(T_m)`,
            for "ve". It is a good prior only if the noise at the cutoff dominates the data.
        process: "vp", "subvp", "ve", or a :class:`diffflow_ext.processes.LinearProcess`.
        t_cutoff: The cutoff :math:`T_m`, at most the process's `t_end`.
        t_min: The earliest time, where sampling and the ODE end. Default: that of the process,
            1e-3, for "ve" 1e-5.
        loss_weight: The weight :math:`\lambda(t)` of :meth:`score_loss`: "variance",
            :math:`\sigma^2`, for samples, or "likelihood", :math:`g^2`.

    The state dict has `t_cutoff` and values of the process; a state of others is refused.

    Raises:
        TypeError: If `eps_net`, `flow` or `process` is of the wrong kind.
        ValueError: If a time or a name is out of range.

    References:
        | Diffusion Models with Deterministic Normalizing Flow Priors (Zand et al., 2023)
        | https://arxiv.org/abs/2309.01274
        | Score-Based Generative Modeling through SDEs (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456

    Example:
        >>> from diffflow_ext.nets import FourierMLP
        >>> model = DiNof(FourierMLP(2), None, "ve", t_cutoff=0.8)
        >>> model.mean_loss(torch.randn(64, 2)).backward()
        >>> model.sample((10, 2), 50).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        eps_net: EpsNetwork,
        flow: Any = None,
        process: ProcessName | LinearProcess = "vp",
        t_cutoff: float = 0.6,
        t_min: float | None = None,
        *,
        loss_weight: LossWeight = "variance",
    ) -> None:
        super().__init__()
        check_network("DiNof", eps_net)
        check_choice("DiNof", "loss_weight", loss_weight, LossWeight)
        self.process = process_of("DiNof", process)
        self.t_cutoff = checked_finite("DiNof", "t_cutoff", t_cutoff)
        t_min = self.process.t_min if t_min is None else t_min
        self.t_min = checked_finite("DiNof", "t_min", t_min)
        if not 0 < self.t_min < self.t_cutoff <= self.process.t_end:
            raise ValueError(
                f"DiNof: expected 0 < t_min < t_cutoff <= {self.process.t_end}, the end of the "
                f"process, got t_min={self.t_min}, t_cutoff={self.t_cutoff}"
            )
        self.eps_net: Any = eps_net
        self.loss_weight = loss_weight
        flow = _gaussian_at(self.process, self.t_cutoff) if flow is None else flow
        self.prior: Prior = as_prior(flow)

    def constants(self) -> dict[str, Tensor]:
        """Returns the cutoff, alpha and sigma at times of the process, and a Gaussian's scale."""
        times = torch.arange(1, 9, dtype=torch.float64, device="cpu") / 8 * self.process.t_end
        values = torch.stack([self.process.alpha(times), self.process.sigma(times)])
        own = {"t_cutoff": constant(self.t_cutoff), "process": values}
        return {**own, **prior_constants(self.prior)}

    def score_parameters(self) -> Iterator[nn.Parameter]:
        """Returns the parameters that :meth:`score_loss` trains."""
        return self.eps_net.parameters() if isinstance(self.eps_net, nn.Module) else iter(())

    def flow_parameters(self) -> Iterator[nn.Parameter]:
        """Returns the parameters that :meth:`flow_loss` trains."""
        return self.prior.parameters() if isinstance(self.prior, nn.Module) else iter(())

    def score(self, t: float | Tensor, x: Tensor, context: Context | None = None) -> Tensor:
        r"""Returns the score :math:`-\varepsilon(t, x) / \sigma(t)`, t > 0 of shape () or (B,)."""
        x = checked_state("DiNof.score", "x", x)
        net = given_context("DiNof.score", self.eps_net, context, x)
        t = checked_times("DiNof.score", t, x)
        eps = network_output("DiNof.score", net, t, x).to(x.dtype)
        return -eps / self.process.sigma(t).reshape(t.shape + (1,) * (x.dim() - 1) * t.dim())

    # --- training --------------------------------------------------------------------------------

    def forward(self, x0: Tensor, key: Key | None = None, **options: Any) -> Tensor:
        """Returns :meth:`mean_loss`, so that wrappers which call the module train it."""
        return self.mean_loss(x0, key, **options)

    def score_loss(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        context: Context | None = None,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        r"""Returns the denoising score matching loss of each sample at one random time.

        .. math:: L = \frac{\lambda(t)}{d \, \sigma(t)^2}
                      \| \varepsilon - \varepsilon(t, x_t) \|^2, \quad t \sim U(t_{min}, T_m)

        Time and noise of a sample depend only on the key and its global index. Arguments and
        errors are those of :meth:`diffflow_ext.models.DDPM.loss`. The losses have shape (B,) and
        are differentiable in the network's parameters.

        References:
            | Score-Based Generative Modeling through SDEs (Song et al., 2021), equation 7
            | https://arxiv.org/abs/2011.13456
        """
        op = "DiNof.score_loss"
        x0 = checked_data(op, x0)
        key = fixed_key(op, key, x0.device)
        u = sample_uniforms(x0, key, 1, sample_offset)[:, 0]
        t = self.t_min + u * (self.t_cutoff - self.t_min)
        sigma = self.process.sigma(t)
        x_t, eps = perturb(
            x0, alpha_t=self.process.alpha(t), sigma_t=sigma, key=key, sample_offset=sample_offset
        )
        net = given_context(op, self.eps_net, context, x_t)
        loss = mean_square_error(op, net, t, x_t, eps, engine)
        if self.loss_weight == "variance":
            return loss
        return loss * (self.process.diffusion(t) / sigma).square().to(loss.dtype)

    def flow_loss(
        self,
        x0: Tensor,
        key: Key | None = None,
        *,
        context: Context | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns the negative log-likelihood of the flow for each sample at the cutoff.

        .. math:: L = -\log p_{flow}(\alpha(T_m) \, x_0 + \sigma(T_m) \, \varepsilon)

        In nats, shape (B,), differentiable in the flow's parameters. Arguments and errors are
        those of :meth:`score_loss`, and the noise is independent of its noise with the same key.
        """
        op = "DiNof.flow_loss"
        x0 = checked_data(op, x0)
        key = fixed_key(op, key, x0.device)
        time = torch.tensor(self.t_cutoff, dtype=torch.float64)
        x_last, _ = perturb(
            x0,
            alpha_t=float(self.process.alpha(time)),
            sigma_t=float(self.process.sigma(time)),
            key=key,
            step=_FLOW_DRAW,
            sample_offset=sample_offset,
        )
        return -prior_given(self.prior, checked_context(op, context, x_last)).log_prob(x_last)

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
        """Returns the mean (or weighted sum) of both losses over the batch, shape ().

        It is 0 for an empty batch. No parameter has a gradient from both. Weights have shape (B,)
        and are 1/B by default; other arguments are those of :meth:`score_loss`.
        """
        op = "DiNof.mean_loss"
        key = fixed_key(op, key, checked_data(op, x0).device)
        common: dict[str, Any] = {"context": context, "sample_offset": sample_offset}
        both = self.score_loss(x0, key, engine=engine, **common) + self.flow_loss(
            x0, key, **common
        )
        return batch_mean(op, both, weight)

    # --- likelihood ------------------------------------------------------------------------------

    def probability_flow(self) -> ProbabilityFlow:
        """Returns the ODE that has the diffusion's marginals."""
        return ProbabilityFlow((self.eps_net,), self.process.flow_coefficients, ("eps_net",))

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
        r"""Returns the log-density of the model: of samples drawn by the "ode" sampler.

        .. math::
            \log p(x) = \log p_{flow}(x_{T_m}) + \int_{t_{min}}^{T_m} \nabla \cdot v(t, x_t) \, dt,
            \qquad v = r(t) \, x + \frac{g(t)^2}{2 \sigma(t)} \, \varepsilon(t, x)

        The noise of standard deviation :math:`\sigma(t_{min})` counts as part of the data: 0.01
        for "vp" and "ve", 1e-4 for "subvp". Arguments, values and errors are those of
        :func:`diffflow_ext.likelihood.flow_log_prob`; `grid` may also be a number of steps from
        `t_min` to `t_cutoff`.
        """
        op = "DiNof.log_prob"
        x = checked_data(op, x, "x")
        times = time_grid(op, grid, self.t_min, self.t_cutoff, self.process.ode_power)
        ode = self.probability_flow().given(op, context, x)
        return flow_log_prob(
            ode, x, times, prior_given(self.prior, ode.context),
            solver=solver, divergence=divergence, key=key, sample_offset=sample_offset, **options,
        )  # fmt: skip

    # --- samples ---------------------------------------------------------------------------------

    @eager
    @torch.no_grad()
    def sample(
        self,
        shape: tuple[int, ...],
        num_steps: int | TimeGrid | None = None,
        key: Key | None = None,
        *,
        context: Context | None = None,
        guidance: float = 1.0,
        sampler: Sampler = "auto",
        corrector_steps: int | None = None,
        snr: float = 0.16,
        last_step: LastStep = "mean",
        solver: Solver = "heun",
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns samples of the model: the flow's, then the diffusion back to the data.

        With :math:`\Delta = t_{i+1} - t_i`, everything at :math:`t_{i+1}`, and the transition
        :math:`a, v` from :math:`t_i` to :math:`t_{i+1}`:

        .. math::
            \text{em} \quad x_i &= x_{i+1} - [r \, x_{i+1} - g^2 s] \Delta + g \sqrt\Delta \, z \\
            \text{reverse diffusion} \quad x_i &= (2 - a) \, x_{i+1} + v \, s + \sqrt v \, z \\
            \text{corrector} \quad x_{i+1} &\leftarrow x_{i+1} + \delta s + \sqrt{2 \delta} \, z,
            \qquad \delta = 2 (\text{snr} \cdot \sigma)^2

        The corrector runs before each predictor. Its step replaces :math:`\| z \| / \| s \|` by
        :math:`\sigma`, the ratio of expectations. With norms of the batch a sample would depend
        on the others; with norms of the sample, steps would be unbounded where the score vanishes.

        Arguments:
            shape: The shape (B, *event).
            num_steps: The number of steps, equal in time, or a grid from about `t_min` to
                `t_cutoff`. Default: 1000 for the whole time of the process, so 600 for a cutoff
                of 0.6. Steps of "ode" are smaller near the data, as in :meth:`log_prob`.
            key: Seed and stream of the noise.
            context: What network and flow are given, of B rows.
            guidance: The weight w of :class:`diffflow_ext.engines.conditions.Guided`, of the
                network alone; with another than 1, samples do not have the density that
                :meth:`log_prob` is of.
            sampler: "em", "reverse_diffusion", "ode" (the probability flow), or "auto":
                "reverse_diffusion" for "ve", "em" for others.
            corrector_steps: Langevin steps before each predictor. Default: 1 for "ve" unless the
                sampler is "ode", 0 for others.
            snr: The signal-to-noise ratio of the corrector, > 0.
            last_step: "mean" omits the noise of the last step; "noisy" keeps it; "tweedie" keeps
                it and then denoises at t_min, for one more evaluation. "ode" has no noise, so the
                first two are the same.
            solver: The solver of "ode"; not used by the other samplers.
            sample_offset: The global index of the first sample.

        Returns:
            The samples, shape (B, *event), dtype and device of the network's parameters, without
            gradients.

        References:
            | Score-Based Generative Modeling through SDEs (Song et al., 2021), appendices E and G
            | https://arxiv.org/abs/2011.13456
        """
        op = "DiNof.sample"
        shape = checked_shape(op, "shape", shape)
        check_choice(op, "last_step", last_step, LastStep)
        check_choice(op, "solver", solver, Solver)
        kind, repeats = resolve_sampler(op, self.process, sampler, corrector_steps)
        ratio = checked_finite(op, "snr", snr)
        if not 0 < ratio <= MAX_SNR:
            raise ValueError(f"{op}: expected 0 < snr <= {MAX_SNR:g}, got {ratio}")
        grid = self._sampling_grid(op, num_steps, kind)
        like = zeros_beside(op, shape, self.parameters())
        key = fixed_key(op, key, like.device)
        context = checked_context(op, context, like)
        net = given_context(op, self.eps_net, context, like, guidance)
        x = prior_given(self.prior, context).sample(
            shape, key, sample_offset=sample_offset, dtype=like.dtype, device=like.device
        )
        if kind == "ode":
            ode = ProbabilityFlow((net,), self.process.flow_coefficients, ("eps_net",))
            x, _ = integrate(ode, x, grid, reverse=True, solver=solver)
        else:
            steps = sampler_steps(self.process, grid, kind, repeats, ratio, last_step)
            x = take_steps(op, net, x, steps, key, sample_offset)
        return self._denoised(net, x, grid.t_start) if last_step == "tweedie" else x

    def _sampling_grid(self, op: str, num_steps: int | TimeGrid | None, kind: str) -> TimeGrid:
        if num_steps is None:
            num_steps = max(round(_DEFAULT_STEPS * self.t_cutoff / self.process.t_end), 1)
        power = self.process.ode_power if kind == "ode" else 1.0
        return time_grid(op, num_steps, self.t_min, self.t_cutoff, power)

    def _denoised(self, net: EpsNetwork, x: Tensor, t: float) -> Tensor:
        """Returns the expected data given x at time t, (x - sigma eps) / alpha."""
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = float(self.process.alpha(time)), float(self.process.sigma(time))
        eps = network_output("DiNof.sample", net, t, x)
        return affine_step(x, eps, c_x=1 / alpha, c_a=-sigma / alpha)


def _gaussian_at(process: LinearProcess, t_cutoff: float) -> StandardNormal:
    if isinstance(process, VE) and t_cutoff < process.t_end:
        return StandardNormal(float(process.sigma(torch.tensor(t_cutoff, dtype=torch.float64))))
    return StandardNormal(process.prior_scale)
