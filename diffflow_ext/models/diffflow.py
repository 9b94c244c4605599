r"""DiffFlowSDE: a learned forward SDE and its learned reversal.

.. math::
    \text{forward} \quad & dx = f(t, x) \, dt + g(t) \, dw, \quad x(t_0) \sim \text{data} \\
    \text{reverse} \quad & dx = [f(t, x) - g(t)^2 s(t, x)] \, dt + g(t) \, dw,
                           \quad x(t_N) \sim \mathcal N(0, I)

Drift f and score s are trained together so that both have the same law on paths; the loss bounds
the negative log-likelihood of the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffflow_ext.engines.choice import Engine, EngineChoice
from diffflow_ext.engines.ode.solver import Divergence, Solver
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.engines.paths import engine_choice, forward_path
from diffflow_ext.flows.prior import as_prior, prior_given
from diffflow_ext.functional.checks import checked_shape, checked_state, checked_weights
from diffflow_ext.functional.contexts import Context
from diffflow_ext.functional.noise import Key, NoiseKey
from diffflow_ext.likelihood.bounds import bound_minus_loss, bound_of_paths, path_bound
from diffflow_ext.likelihood.ode import flow_log_prob
from diffflow_ext.processes.grids import TimeGrid

from .denoising import eager, zeros_beside
from .pair import NetworkPair
from .reverse import LastStep, ReverseSampler, ReverseSolver, path_ode, reverse_samples


class DiffFlowSDE(NetworkPair):
    r"""A pair of neural SDEs, trained by maximum likelihood of paths.

    Networks are called as ``net(t, x)`` with t of shape () or (B,) and x of shape (B, *event), and
    return the shape of x; given a context, as ``net(t, x, context)``, with one row of it for each
    row of x (which may hold several states of a batch). They may be compiled, run under autocast,
    use dropout, share parameters. Gradients need them evaluated again: train() and eval() must
    stay as they were, values must be the same (an error says where they are not), and layers that
    count their calls (BatchNorm's running statistics) count these too; see
    :func:`diffflow_ext.engines.diffflow_loss`.

    Arguments:
        drift: The drift f, an nn.Module or any callable.
        score: The score s, an nn.Module or any callable.
        diffusion: The coefficient g(t) > 0: a number, a function of a tensor of times, or a module
            (:class:`diffflow_ext.processes.GeometricDiffusion`, learnable or not). The state dict
            has a number, and a state of another number is refused; it has no functions.
        params: Tensors that drift and score depend on besides the parameters of nn.Modules. Only
            callables that are not modules need it. The state dict has them as "params.0" etc.
        prior: The density of the last state instead of N(0, I): a flow of zuko or normflows, or
            any object with ``log_prob(x)`` and ``sample(n)``; see
            :func:`diffflow_ext.flows.as_prior`. Its parameters train together with the networks.
        scores_per_call: The number of states at which one call of the score evaluates it, see
            :func:`diffflow_ext.engines.diffflow_loss`. More than one pays on a GPU with small
            networks.

    Raises:
        TypeError: If drift or score is not callable.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021)
        | https://arxiv.org/abs/2110.07579

    Example:
        >>> from diffflow_ext.nets import FourierMLP
        >>> sde = DiffFlowSDE(FourierMLP(2), FourierMLP(2), diffusion=0.5)
        >>> grid = TimeGrid.power(30, t_end=1.0)
        >>> loss = sde.mean_loss(torch.randn(64, 2), grid)
        >>> loss.backward()
        >>> sde.sample((10, 2), grid).shape
        torch.Size([10, 2])
    """

    # --- training --------------------------------------------------------------------------------

    def forward(
        self, x0: Tensor, grid: TimeGrid, key: Key | None = None, **options: Any
    ) -> Tensor:
        """Returns :meth:`mean_loss`, so that wrappers which call the module train it."""
        return self.mean_loss(x0, grid, key, **options)

    @eager
    def loss(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        context: Context | None = None,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        """Returns the loss of each sample along one path, shape (B,), with its exact gradient.

        Arguments, values and errors are those of :func:`diffflow_ext.engines.diffflow_loss` for
        the networks, parameters and prior of this model. `engine` is "autograd", the adjoint for
        any networks; "fused", one call of compiled code for perceptrons (see
        :mod:`diffflow_ext.engines.fused.paths`), which ignores `scores_per_call`; or "auto",
        which is "fused" where possible. Noise is the same in both, values and gradients up to
        rounding; :meth:`engine_for` says which one "auto" takes.

        The context is a tensor of shape (B, ...), or a mapping of names to such tensors. It is
        given to drift, score and a conditional prior, and gets its exact gradient.
        """
        paths, x0 = self._engine(
            "loss", x0, grid, key, context, engine=engine,
            sample_offset=sample_offset, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        return paths.losses(x0)

    @eager
    def mean_loss(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        context: Context | None = None,
        weight: Tensor | None = None,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        """Returns the mean (or weighted sum) of :meth:`loss`, shape (), in nats; 0 of no samples.

        For training: value and gradient come from one sweep, as in
        :func:`diffflow_ext.engines.diffflow_mean_loss`. Networks that draw random numbers
        (dropout) draw them in another order than in :meth:`loss`. Weights have shape (B,), are 1/B
        by default, and get no gradient.
        """
        paths, x0 = self._engine(
            "mean_loss", x0, grid, key, context, engine=engine,
            sample_offset=sample_offset, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        return paths.mean_loss(x0, checked_weights("DiffFlowSDE.mean_loss", weight, x0))

    def engine_for(
        self,
        x0: Tensor,
        grid: TimeGrid,
        *,
        context: Context | None = None,
        checkpoint_every: int = 1,
    ) -> EngineChoice:
        """Returns which engine "auto" takes for data like x0, and why not the fused one."""
        options = {"key": NoiseKey(0), "checkpoint_every": checkpoint_every}
        problem, x0 = self._problem("engine_for", x0, grid, context=context, **options)
        return engine_choice(problem, x0)

    # --- likelihood ------------------------------------------------------------------------------

    @eager
    def elbo(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        context: Context | None = None,
        num_paths: int = 1,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
    ) -> Tensor:
        """Returns a lower bound of log p(x0), from one path per sample or from several.

        Formulas and sources are in :mod:`diffflow_ext.likelihood.bounds`; arguments and errors are
        those of :meth:`loss`. Time grows with the number K of paths of each sample; so does
        memory, unless gradients are off. Networks see each sample K times in a row, and perhaps a
        part of the batch: what they know of samples must come with x or with the context, not from
        an attribute such as the labels of the batch.

        Estimates have shape (B,), in nats, and are unbiased for K = 1. Differentiable.
        """
        key = NoiseKey.from_torch() if key is None else key

        def bound(x0: Tensor, sample_offset: int, context: Context | None) -> Tensor:
            noise = {"sample_offset": sample_offset, "checkpoint_every": checkpoint_every}
            problem, x0 = self._problem("elbo", x0, grid, key, context, **noise)
            return path_bound("DiffFlowSDE.elbo", problem, x0)

        return bound_of_paths("DiffFlowSDE.elbo", bound, x0, num_paths, sample_offset, context)

    @eager
    @torch.no_grad()
    def bound_minus_loss(
        self, x0: Tensor, grid: TimeGrid, key: Key, *, sample_offset: int = 0
    ) -> Tensor:
        r"""Returns what turns the loss of each sample into an estimate of -log p(x0), in nats.

        .. math:: -\text{elbo} - L = d \log \frac{g_N}{g_0} - \sum_i \tfrac12 \| \delta^F_i \|^2

        The sum depends only on the noise. Replacing it by its mean, N d / 2, would give the same
        expectation with a much larger variance, because L and the sum are correlated. Grid, key
        and offset are those of the loss; of the data only shape, dtype and device matter.
        """
        problem, x0 = self._problem("bound_minus_loss", x0, grid, key, sample_offset=sample_offset)
        return bound_minus_loss(problem, x0)

    @eager
    def log_prob(
        self,
        x: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        context: Context | None = None,
        solver: Solver = "heun",
        divergence: Divergence = "auto",
        num_probes: int = 1,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        r"""Returns log p(x) of the probability-flow ODE, shape (B,), in nats.

        .. math:: \frac{dx}{dt} = f - \tfrac12 g^2 s

        It is the density of samples with ``stochasticity=0``, and equals that of the stochastic
        process only if both networks are optimal. Arguments and errors are those of
        :func:`diffflow_ext.likelihood.flow_log_prob`, and so are gradients, which reach x, both
        networks, the diffusion and the prior. The grid may differ from those of training.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.4, equation 17
            | https://arxiv.org/abs/2110.07579
        """
        x = checked_state("DiffFlowSDE.log_prob", "x", x)
        ode = self.probability_flow(x.device).given("DiffFlowSDE.log_prob", context, x)
        return flow_log_prob(
            ode, x, grid, prior_given(as_prior(self.prior), ode.context), key=key, solver=solver,
            divergence=divergence, num_probes=num_probes, rtol=rtol, atol=atol,
            sample_offset=sample_offset, engine=engine,
        )  # fmt: skip

    def probability_flow(self, device: torch.device | str = "cpu") -> ProbabilityFlow:
        r"""Returns the velocity :math:`v = f - \tfrac12 g^2 s` as networks and coefficients.

        `device` is where the diffusion is evaluated if it is a module or a function.
        """
        return path_ode(self.drift, self.score, self.diffusion, self.extra_params, device)

    # --- paths and samples -----------------------------------------------------------------------

    @eager
    def encode(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        context: Context | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        """Returns the end x_N of a forward path from each sample, shape (B, *event).

        Gradients are those of :meth:`path`.
        """
        paths, x0 = self._engine("encode", x0, grid, key, context, sample_offset=sample_offset)
        return forward_path("DiffFlowSDE.encode", paths, x0)[-1]

    @eager
    def path(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        context: Context | None = None,
        sample_offset: int = 0,
    ) -> Tensor:
        """Returns a forward path from each sample, shape (N+1, B, *event), index i at time t_i.

        Differentiable in `x0`, the drift's parameters and the diffusion, exactly. Gradients need
        the memory of the states and of one step: the backward pass evaluates the drift again at
        each state, and raises an error if the drift draws random numbers.
        """
        paths, x0 = self._engine("path", x0, grid, key, context, sample_offset=sample_offset)
        return forward_path("DiffFlowSDE.path", paths, x0, all_states=True)

    def sample(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None = None,
        stochasticity: float = 1.0,
        last_step: LastStep = "noisy",
        *,
        context: Context | None = None,
        guidance: float = 1.0,
        solver: ReverseSolver = "euler",
        corrector_steps: int = 0,
        corrector_scale: float = 0.5,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns samples of the model: the reverse family from noise to data.

        .. math:: x_i = x_{i+1} - \left[ f - \tfrac{1 + \lambda^2}{2} g^2 s \right]
                        (t_{i+1}, x_{i+1}) \, \Delta t_i
                        + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

        Arguments:
            shape: The shape (B, *event).
            grid: The times; any grid, not only one that was trained on.
            key: Seed and stream of the noise.
            stochasticity: The factor :math:`\lambda \ge 0`. 1 is the trained process, 0 the
                probability-flow ODE.
            last_step: "noisy" treats the last step like all others; "mean" omits its noise;
                "tweedie" keeps it and then denoises, :math:`x + \sigma^2 s(t_1, x)` with
                :math:`\sigma = \lambda g_1 \sqrt{\Delta t_0}`, for one more evaluation.
            solver: "euler"; for the ODE (:math:`\lambda = 0`) also "heun" (order 2) and "rk4".
            corrector_steps: Langevin moves after each step but the last, each of one evaluation
                of the score: :math:`x + \eta s + \sqrt{2 \eta} \, \varepsilon`.
            corrector_scale: Their size, :math:`\eta = c \, g_i^2 \Delta t_i`.
            sample_offset: The global index of the first sample: samples n ... n+B-1 of one big
                call equal those of a call with this offset.
            context: What networks and prior are given, of B rows.
            guidance: The weight w of :class:`diffflow_ext.engines.conditions.Guided`, of the score
                alone; with another than 1, samples do not have the density that :meth:`elbo` and
                :meth:`log_prob` are of.

        Returns:
            The samples, shape (B, *event), dtype and device of the networks' parameters, without
            gradients.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 12 and 17, section 4.3
            | https://arxiv.org/abs/2110.07579
        """
        sampler = ReverseSampler(
            stochasticity, last_step, solver, corrector_steps, corrector_scale
        )
        given = {"context": context, "guidance": guidance, "sample_offset": sample_offset}
        return self._sample(shape, grid, key, sampler, given)

    def sample_path(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None = None,
        stochasticity: float = 1.0,
        last_step: LastStep = "noisy",
        *,
        context: Context | None = None,
        guidance: float = 1.0,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns all states of :meth:`sample`, shape (N+1, B, *event), index i at time t_i."""
        sampler = ReverseSampler(stochasticity, last_step, **options)
        given = {"context": context, "guidance": guidance, "sample_offset": sample_offset}
        return self._sample(shape, grid, key, sampler, given, all_states=True)

    @eager
    @torch.no_grad()
    def _sample(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None,
        sampler: ReverseSampler,
        given: dict[str, Any],
        all_states: bool = False,
    ) -> Tensor:
        shape = checked_shape("DiffFlowSDE.sample", "shape", shape)
        zeros = zeros_beside("DiffFlowSDE.sample", shape, self.network_parameters())
        problem, zeros = self._problem("sample", zeros, grid, key, **given)
        return reverse_samples(problem, self.diffusion, grid, zeros, sampler, all_states)
