r"""DiffFlowSDE: a learned forward SDE and its learned reversal.

.. math::
    \text{forward} \quad & dx = f(t, x) \, dt + g(t) \, dw, \quad x(t_0) \sim \text{data} \\
    \text{reverse} \quad & dx = [f(t, x) - g(t)^2 s(t, x)] \, dt + g(t) \, dw,
                           \quad x(t_N) \sim \mathcal N(0, I)

Drift f and score s are trained together so that both have the same law on paths; the loss bounds
the negative log-likelihood of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.engines.adjoint.losses import mean_path_loss, path_loss
from diffflow_ext.engines.choice import Engine, EngineChoice, check_engine
from diffflow_ext.engines.fused.paths import FusedPaths
from diffflow_ext.engines.network import Network
from diffflow_ext.engines.ode.solver import Divergence, Solver
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.engines.paths import call_or_reason, forward_path, prepare
from diffflow_ext.engines.problem import ActivationMemory, PathProblem, build_problem, listed
from diffflow_ext.flows.prior import as_prior
from diffflow_ext.functional.checks import (
    checked_count,
    checked_shape,
    checked_state,
    checked_weights,
    in_words,
)
from diffflow_ext.functional.noise import MAX_SAMPLE, Key, NoiseKey, checked_sample_offset
from diffflow_ext.likelihood.bounds import path_noise_energy
from diffflow_ext.likelihood.ode import flow_log_prob
from diffflow_ext.processes.diffusion import Diffusion, diffusion_values
from diffflow_ext.processes.grids import TimeGrid

from .denoising import eager, zeros_beside
from .reverse import LastStep, ReverseSampler, ReverseSolver, noise_end, reverse_path

__all__ = ["DiffFlowSDE"]


#: Rows of a batch of paths that a bound without gradient evaluates in one call.
PATHS_AT_A_TIME = 2**15


class DiffFlowSDE(nn.Module):
    r"""A pair of neural SDEs, trained by maximum likelihood of paths.

    Networks are called as ``net(t, x)`` with t of shape () or (B,) and x of shape (B, *event), and
    return the shape of x. They may be compiled, run under autocast, use dropout, share parameters.
    The backward pass of :meth:`loss` evaluates them again: train() and eval() must stay as they
    were, and layers that count their calls (BatchNorm's running statistics) count these too.

    Arguments:
        drift: The drift f, an nn.Module or any callable.
        score: The score s, an nn.Module or any callable.
        diffusion: The coefficient g(t) > 0: a number, a function of a tensor of times, or a module
            (:class:`diffflow_ext.processes.GeometricDiffusion`, learnable or not).
        params: Tensors that drift and score depend on besides the parameters of nn.Modules. Only
            callables that are not modules need it.
        prior: The density at the noise end in the place of N(0, I): a flow of zuko or normflows,
            or anything with ``log_prob(x)`` and ``sample(n)``; see
            :func:`diffflow_ext.flows.as_prior`. Its parameters train together with the networks.
        score_memory: Bytes of activations up to which scores of several states are evaluated in
            one call, see :func:`diffflow_ext.engines.diffflow_loss`. Worth it on a GPU with small
            nets.

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

    def __init__(
        self,
        drift: Network,
        score: Network,
        diffusion: Diffusion = 1.0,
        *,
        params: Iterable[Tensor] = (),
        prior: object = None,
        score_memory: int | None = None,
    ) -> None:
        super().__init__()
        for name, net in (("drift", drift), ("score", score)):
            if not callable(net):
                raise TypeError(
                    f"DiffFlowSDE: expected {name} to be callable as {name}(t, x), "
                    f"got {in_words(net)}"
                )
        self.drift: Any = drift
        self.score: Any = score
        self.diffusion: Any = diffusion
        # Without one, the kernels' own N(0, I).
        self.prior: Any = None if prior is None else as_prior(prior)
        self.extra_params = listed("DiffFlowSDE", params)
        self.score_memory = score_memory

    def network_parameters(self) -> list[Tensor]:
        """Returns the tensors that get gradients through drift, score and prior."""
        nets = (self.drift, self.score, self.prior)
        modules = [net for net in nets if isinstance(net, nn.Module)]
        return [p for net in modules for p in net.parameters()] + list(self.extra_params)

    def _problem(
        self, op: str, x0: Tensor, grid: TimeGrid, key: Key | None, **options: Any
    ) -> tuple[PathProblem, Tensor, Tensor]:
        return build_problem(
            f"DiffFlowSDE.{op}",
            self.drift,
            self.score,
            x0,
            grid,
            diffusion=self.diffusion,
            params=self.network_parameters(),
            prior=self.prior,
            key=key,
            score_memory=self.score_memory,
            **options,
        )

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
        checkpoint_every: int = 1,
        sample_offset: int = 0,
        engine: Engine = "auto",
        activation_memory: ActivationMemory = None,
    ) -> Tensor:
        r"""Returns the loss of each sample along one path, with its exact gradient.

        .. math:: L = -\log \mathcal N(x_N; 0, I) + \sum_{i=0}^{N-1} \tfrac12 \| \delta^B_i \|^2

        Arguments:
            x0: The data, shape (B, *event), float32 or float64.
            grid: The times, from data to noise.
            key: Seed and stream of the noise. Default: drawn from torch's generator.
            checkpoint_every: Keep every k-th state and simulate the others again; 0 keeps the
                graph of every step. Neither values nor gradients depend on it.
            sample_offset: The global index of the first sample.
            engine: "autograd", the adjoint for any networks; "fused", one call of compiled code
                for perceptrons on the CPU (see :mod:`diffflow_ext.engines.fused.paths`); "auto", the
                second where it is possible. Both give the same noise, and the same values and
                gradients but for rounding; :meth:`engine_for` says which "auto" takes and why.
            activation_memory: Bytes of activations that are kept for the backward pass instead of
                being computed again, or "auto"; see
                :func:`diffflow_ext.engines.diffflow_loss`. The fused engine has no use for it.

        Returns:
            The losses, shape (B,), in nats.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
            RuntimeError: If a network depends on a trainable tensor that is not a parameter.
        """
        check_engine("DiffFlowSDE.loss", engine)
        p, x0, g = self._problem(
            "loss", x0, grid, key, checkpoint_every=checkpoint_every,
            sample_offset=sample_offset, activation_memory=activation_memory,
        )  # fmt: skip
        call = prepare("DiffFlowSDE.loss", engine, p, x0)
        return path_loss(p, x0, g) if call is None else call.losses(x0)

    @eager
    def mean_loss(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        weight: Tensor | None = None,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
        engine: Engine = "auto",
        activation_memory: ActivationMemory = None,
    ) -> Tensor:
        """Returns the mean (or weighted sum) of :meth:`loss` over the batch, for training.

        Value and gradient come from one sweep with N+1 network evaluations fewer. Networks that
        draw random numbers (dropout) draw them in another order than in :meth:`loss`.

        Arguments:
            x0: The data, shape (B, *event).
            grid: The times, from data to noise.
            key: Seed and stream of the noise.
            weight: Weights of the samples, shape (B,); default 1/B. No gradient flows into them.
            checkpoint_every: As in :meth:`loss`.
            sample_offset: The global index of the first sample.
            engine: As in :meth:`loss`.
            activation_memory: As in :meth:`loss`; only drifts' activations are kept, because the
                score is evaluated once anyway.

        Returns:
            The mean, shape (), in nats.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
            RuntimeError: If a network depends on a trainable tensor that is not a parameter.
        """
        op = "DiffFlowSDE.mean_loss"
        check_engine(op, engine)
        p, x0, g = self._problem(
            "mean_loss", x0, grid, key, checkpoint_every=checkpoint_every,
            sample_offset=sample_offset, activation_memory=activation_memory,
        )  # fmt: skip
        each = checked_weights(op, weight, x0)
        call = prepare(op, engine, p, x0)
        if call is None:
            return mean_path_loss(p, x0, g, each)
        return call.mean_loss(x0, each)

    def engine_for(self, x0: Tensor, grid: TimeGrid, *, checkpoint_every: int = 1) -> EngineChoice:
        """Returns what engine="auto" comes to for data like x0.

        Returns:
            The engine's name, "fused" or "autograd", and for the latter the reason.
        """
        p, x0, _ = self._problem(
            "engine_for", x0, grid, NoiseKey(0), checkpoint_every=checkpoint_every
        )
        found = call_or_reason(p, x0)
        if isinstance(found, FusedPaths):
            return EngineChoice("fused", "")
        return EngineChoice("autograd", found)

    # --- likelihood ------------------------------------------------------------------------------

    @eager
    def elbo(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        num_paths: int = 1,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns a lower bound of log p(x0), from one path per sample or from several.

        With :math:`w_k` the bound's estimate on path k,

        .. math::
            w_k &= \sum_i \tfrac12 \| \delta^F_i \|^2 - L - d \log \frac{g_N}{g_0} \\
            \log p(x_0) &\ge \mathbb E \Big[ \log \frac1K \sum_{k=1}^K e^{w_k} \Big]
                         \ge \mathbb E [w_1]

        where p is the density of the discrete reverse process, which the bound reaches as K grows.
        The last term of :math:`w_k` comes from the normalisers of the Gaussian steps; without it
        the bound is wrong as soon as g varies.

        Arguments:
            x0: The data, shape (B, *event).
            grid: The times, from data to noise.
            key: Seed and stream of the noise.
            num_paths: Paths K of each sample. Time grows with K; so does memory, unless gradients
                are off.
            checkpoint_every: As in :meth:`loss`.
            sample_offset: The global index of the first sample.

        Returns:
            Estimates of the bound, shape (B,), in nats, unbiased for K = 1. Differentiable.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), equation 16
            | https://arxiv.org/abs/2110.07579
            | Importance Weighted Autoencoders (Burda et al., 2016), equation 8
            | https://arxiv.org/abs/1509.00519
        """
        op = "DiffFlowSDE.elbo"
        paths = checked_count(op, "num_paths", num_paths, 1, 2**20)
        offset = checked_sample_offset(op, sample_offset, 0)
        key = NoiseKey.from_torch() if key is None else key
        if paths == 1:
            return self._one_path_elbo(x0, grid, key, checkpoint_every, offset)
        x0 = checked_state(op, "x0", x0)
        if (offset + x0.shape[0]) * paths > MAX_SAMPLE:
            raise ValueError(
                f"{op}: expected (sample_offset + batch) * num_paths <= 2^32, got ({offset} + "
                f"{x0.shape[0]}) * {paths}; use another stream for more samples"
            )
        # Path k of sample i has the noise of sample i K + k, however the batch is split.
        rows = x0.shape[0] if torch.is_grad_enabled() else max(1, PATHS_AT_A_TIME // paths)
        parts = [
            self._one_path_elbo(
                part.repeat_interleave(paths, 0), grid, key, checkpoint_every,
                (offset + index * rows) * paths,
            ).unflatten(0, (-1, paths))
            for index, part in enumerate(x0.split(max(rows, 1)))
        ]  # fmt: skip
        return torch.cat(parts).logsumexp(1) - math.log(paths)

    def _one_path_elbo(
        self, x0: Tensor, grid: TimeGrid, key: Key, checkpoint_every: int, sample_offset: int
    ) -> Tensor:
        p, x0, g = self._problem(
            "elbo", x0, grid, key, checkpoint_every=checkpoint_every, sample_offset=sample_offset
        )
        energy = path_noise_energy(p, x0)
        dimensions = math.prod(x0.shape[1:])
        call = prepare("DiffFlowSDE.elbo", "auto", p, x0)
        loss = path_loss(p, x0, g) if call is None else call.losses(x0)
        return energy - loss - dimensions * torch.log(g[-1] / g[0])

    @eager
    @torch.no_grad()
    def bound_minus_loss(
        self, x0: Tensor, grid: TimeGrid, key: Key, *, sample_offset: int = 0
    ) -> Tensor:
        r"""Returns what turns the loss of each sample into an estimate of -log p(x0).

        .. math:: -\text{elbo} = L + d \log \frac{g_N}{g_0}
                                 - \sum_i \tfrac12 \| \delta^F_i \|^2

        The sum is known from the noise alone. Its mean, N d / 2, would do in expectation, but L
        and the sum scatter together, and much more than their difference.

        Arguments:
            x0: The data, of which only shape, dtype and device count.
            grid: The times of the loss.
            key: The key of the loss.
            sample_offset: That of the loss.

        Returns:
            -elbo - loss, shape (B,), in nats.
        """
        p, x0, g = self._problem("bound_minus_loss", x0, grid, key, sample_offset=sample_offset)
        return math.prod(x0.shape[1:]) * torch.log(g[-1] / g[0]) - path_noise_energy(p, x0)

    @eager
    def log_prob(
        self,
        x: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        solver: Solver = "heun",
        divergence: Divergence = "auto",
        num_probes: int = 1,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        r"""Returns log p(x) of the probability-flow ODE, :math:`\lambda = 0`.

        .. math::
            \frac{dx}{dt} = v = f - \tfrac12 g^2 s, \qquad
            \log p(x_0) = \log \mathcal N(x_N; 0, I) + \int_{t_0}^{t_N} \nabla \cdot v \, dt

        The ODE's density equals that of the stochastic processes only where both networks are at
        their optimum; it is a density of its own otherwise, that of samples with
        ``stochasticity=0``. Networks must act on each sample alone and not draw random numbers:
        switch dropout off with eval().

        Arguments:
            x: The data, shape (B, *event), float32 or float64.
            grid: The times. Fixed solvers take one step for each of the grid, which need not be
                one that was trained on; "dopri5" needs its ends alone.
            key: Seed and stream of the probes of "hutchinson".
            solver: "euler", "heun", "rk4", or "dopri5" (adaptive, through torchdiffeq).
            divergence: "exact" costs d vector-Jacobian products at each evaluation; "hutchinson"
                `num_probes`, and is unbiased; "auto" is exact up to 64 dimensions.
            num_probes: Probes of the estimate, fresh at each step of a fixed solver.
            rtol: Relative tolerance of "dopri5".
            atol: Absolute tolerance of "dopri5".
            sample_offset: The global index of the first sample.
            engine: As in :func:`diffflow_ext.engines.integrate`.

        Returns:
            The log-densities, shape (B,), in nats. No gradient flows through them.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
            ImportError: If "dopri5" is asked for and torchdiffeq is missing.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.4, equation 17
            | https://arxiv.org/abs/2110.07579
            | Score-Based Generative Modeling through SDEs (Song et al., 2021), section 4.3
            | https://arxiv.org/abs/2011.13456
        """
        return flow_log_prob(
            self.probability_flow(checked_state("DiffFlowSDE.log_prob", "x", x).device),
            x, grid, as_prior(self.prior), key=key, solver=solver,
            divergence=divergence, num_probes=num_probes, rtol=rtol, atol=atol,
            sample_offset=sample_offset, engine=engine,
        )  # fmt: skip

    def probability_flow(self, device: torch.device | str = "cpu") -> ProbabilityFlow:
        r"""Returns the velocity :math:`v = f - \tfrac12 g^2 s` as networks and coefficients.

        Arguments:
            device: Where the diffusion is, if it is a module or a function of tensors.
        """

        def coefficients(t: float) -> tuple[float, ...]:
            times = torch.tensor([t], dtype=torch.float64, device=device)
            return 0.0, 1.0, -0.5 * float(diffusion_values(self.diffusion, times)) ** 2

        return ProbabilityFlow((self.drift, self.score), coefficients)

    # --- paths and samples -----------------------------------------------------------------------

    @eager
    @torch.no_grad()
    def encode(
        self, x0: Tensor, grid: TimeGrid, key: Key | None = None, *, sample_offset: int = 0
    ) -> Tensor:
        """Returns the end x_N of a forward path from each sample, shape (B, *event)."""
        return self._forward_path("encode", x0, grid, key, sample_offset, keep=False)

    @eager
    @torch.no_grad()
    def path(
        self, x0: Tensor, grid: TimeGrid, key: Key | None = None, *, sample_offset: int = 0
    ) -> Tensor:
        """Returns a forward path from each sample, shape (N+1, B, *event), index i at time t_i."""
        return self._forward_path("path", x0, grid, key, sample_offset, keep=True)

    def _forward_path(
        self,
        op: str,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None,
        sample_offset: int,
        *,
        keep: bool,
    ) -> Tensor:
        p, x0, _ = self._problem(op, x0, grid, key, sample_offset=sample_offset)
        states = x0.new_empty((p.num_steps + 1, *x0.shape)) if keep else None
        call = prepare(op, "auto", p, x0)
        if call is not None:
            last = call.forward(x0, states)
            return last if states is None else states
        if states is not None:
            states[0] = x0
        last = forward_path(p, x0, states)
        return last if states is None else states

    def sample(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None = None,
        stochasticity: float = 1.0,
        last_step: LastStep = "noisy",
        *,
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
            last_step: "noisy" takes the step into the data like all others; "mean" leaves its
                noise out; "tweedie" takes it and then denoises, :math:`x + \sigma^2 s(t_1, x)`
                with
                :math:`\sigma = \lambda g_1 \sqrt{\Delta t_0}`, for one more evaluation.
            solver: "euler"; for the ODE (:math:`\lambda = 0`) also "heun" (order 2) and "rk4".
            corrector_steps: Langevin moves after each step but the last, each of one evaluation
                of the score: :math:`x + \eta s + \sqrt{2 \eta} \, \varepsilon`.
            corrector_scale: Their size, :math:`\eta = c \, g_i^2 \Delta t_i`.
            sample_offset: The global index of the first sample: samples n ... n+B-1 of one big
                call equal those of a call with this offset.

        Returns:
            The samples, shape (B, *event), dtype and device of the networks' parameters.

        Raises:
            ValueError: If an argument is out of its range.
            TypeError: If an argument has the wrong type.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 12 and 17, section 4.3
            | https://arxiv.org/abs/2110.07579
        """
        sampler = ReverseSampler(
            stochasticity, last_step, solver, corrector_steps, corrector_scale
        )
        return self._sample(shape, grid, key, sampler, sample_offset, keep=False)

    def sample_path(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None = None,
        stochasticity: float = 1.0,
        last_step: LastStep = "noisy",
        *,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns all states of :meth:`sample`, shape (N+1, B, *event), index i at time t_i."""
        sampler = ReverseSampler(stochasticity, last_step, **options)
        return self._sample(shape, grid, key, sampler, sample_offset, keep=True)

    @eager
    @torch.no_grad()
    def _sample(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None,
        sampler: ReverseSampler,
        sample_offset: int,
        *,
        keep: bool,
    ) -> Tensor:
        shape = checked_shape("DiffFlowSDE.sample", "shape", shape)
        p, x, _ = self._problem(
            "sample", zeros_beside(shape, self.network_parameters()), grid, key,
            sample_offset=sample_offset,
        )  # fmt: skip
        x = noise_end(p, x)
        states = x.new_empty((p.num_steps + 1, *shape)) if keep else None
        if states is not None:
            states[-1] = x
        call = prepare("DiffFlowSDE.sample", "auto", p, x) if sampler.plain else None
        if call is not None:
            x0 = call.reverse(x, sampler.stochasticity, sampler.last_step, states)
            return x0 if states is None else states
        flow, times = self.probability_flow(x.device), grid.times.tolist()
        x0 = reverse_path(p, flow, times, x, sampler, states)
        return x0 if states is None else states
